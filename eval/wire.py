"""What goes over the network between a policy and whoever asks it: the messages of openpi, read strictly.

A message is a msgpack map in a binary frame; an array in it is a map of `__ndarray__`, `data`, `dtype` and `shape`, as
the package openpi-client packs it. A text frame is an error, one sentence. Nothing is ever unpickled.

The server sends `ServerFacts` first. Then each request is a map of

    images           camera: uint8 (height, width, 3); or openpi's observation/CAMERA: such an array
    proprioception   (dims,); or openpi's state, observation/state
    instruction      text, at least in the first request; or openpi's prompt. Another one starts a new episode
    seed             whole number, 0 if none is ever given. Another one starts a new episode
    reset            true starts a new episode

and its answer a map of `actions` (horizon, dims) and `server_timing`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]
import numpy as np
from pydantic import ValidationError

from core.config import Config
from core.policy import Observation
from core.spaces import ActionSpace

PROTOCOL_VERSION = 1
MAX_ENTRIES, MAX_CONTAINERS, MAX_AXES = 256, 256, 8
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
DTYPES = {kind.str: kind for order in "<>" for kind in (np.dtype(order + code) for code in "?bBhHiIqQefd")}
"""Those of arrays: booleans and numbers of one to eight bytes, in both byte orders."""
OWN_NAMES = {
    "images": "images",
    "proprioception": "proprioception",
    "state": "proprioception",
    "observation/state": "proprioception",
    "instruction": "instruction",
    "prompt": "instruction",
    "seed": "seed",
    "reset": "reset",
}
CAMERA_PREFIX = "observation/"


class WireError(ValueError):
    """A message that cannot be understood."""


class ServerFacts(Config):
    """The first message of a server: what its policy needs and answers."""

    protocol_version: int = PROTOCOL_VERSION
    """Of these messages."""
    fingerprint: str
    """Weights and settings of the policy."""
    cameras: tuple[str, ...]
    """Images that it needs."""
    action_space: ActionSpace
    """Meaning of its actions."""
    horizon: int | None = None
    """Actions of a chunk, where the policy says so."""
    control_hz: float | None = None
    """Control steps a second that it was trained at, where it says so."""
    image_size: int | None = None
    """Pixels along a side of the images that it sees, where it says so; others are resized."""
    proprioception_dims: int | None = None
    """Numbers of the proprioception that it reads, where it says so; 0: none."""
    temperature: float | None = None
    """Of what it draws its tokens at, where it says so; 0: it takes the most likely."""
    max_message_bytes: int
    """Largest message that the server takes."""

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> "ServerFacts":
        """Those in a message.

        Raises:
            WireError: it holds none, or those of another version.
        """
        version = message.get("protocol_version")
        if version != PROTOCOL_VERSION:
            raise WireError(
                f"the server speaks protocol_version {version!r}, this client {PROTOCOL_VERSION}; "
                "start it with scripts/serve_policy.py of the same version"
            )
        try:
            return cls.model_validate(message)
        except ValidationError as error:
            raise WireError(f"the server's first message is not what it should be: {error}") from None


OPTIONAL_FACTS = tuple(name for name, field in ServerFacts.model_fields.items() if field.default is None)
"""What a policy may say of itself or leave out."""


class Request(NamedTuple):
    """What a client asks for."""

    observation: Observation
    instruction: str | None
    """None: as before."""
    seed: int | None
    """None: as before."""
    reset: bool
    """Start an episode, whatever the instruction and seed."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        WireError: it holds something else than numbers, text, numeric arrays, and lists and maps of these.
    """
    try:
        return bytes(msgpack.packb(message, default=_packed))
    except (TypeError, OverflowError) as error:
        raise WireError(f"a message cannot hold this: {error}") from None


def unpack(data: bytes) -> dict[str, Any]:
    """The message in bytes; arrays are writable copies in the machine's byte order.

    Raises:
        WireError: it is no msgpack map with text as keys, an array in it is not numeric or not as long as it says, or
            there are more lists and maps in it than any message has.
    """
    reader = _Reader()
    try:
        message = msgpack.unpackb(
            data,
            object_hook=reader.map,
            list_hook=reader.list,
            ext_hook=_no_extension,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError) as error:
        raise WireError(f"the message is not valid msgpack: {str(error) or type(error).__name__}") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise WireError(f"the message is a {type(message).__name__}, not a map with text as keys")
    return message


def read_request(message: Mapping[str, Any]) -> Request:
    """The request in a message.

    Raises:
        WireError: a key is unknown or given twice, or a value has the wrong type or shape.
    """
    found: dict[str, Any] = {}
    cameras: dict[str, Any] = {}
    for key, value in message.items():
        name = OWN_NAMES.get(key)
        if name is None and not key.startswith(CAMERA_PREFIX):
            raise WireError(f"unknown key {key[:60]!r}; known: {', '.join(OWN_NAMES)}, {CAMERA_PREFIX}CAMERA")
        into, entry = (cameras, key.removeprefix(CAMERA_PREFIX)) if name is None else (found, name)
        if entry in into:
            raise WireError(f"{entry} is given twice, once as {key}")
        into[entry] = value
    images = found.get("images", {})
    if not isinstance(images, dict) or not all(isinstance(camera, str) for camera in images):
        raise WireError(f"images is a {type(images).__name__}, not a map from cameras to arrays")
    if twice := sorted(set(images) & set(cameras)):
        raise WireError(f"camera {twice[0]} is given twice, in images and as {CAMERA_PREFIX}{twice[0]}")
    seen = {camera: _image(camera, image) for camera, image in (images | cameras).items()}
    observation = Observation(images=seen, proprioception=_proprioception(found.get("proprioception")))
    return Request(observation, _instruction(found), _seed(found), _is_reset(found))


def _instruction(found: Mapping[str, Any]) -> str | None:
    text = found.get("instruction")
    if text is not None and not isinstance(text, str):
        raise WireError(f"the instruction is a {type(text).__name__}, not text")
    return text


def _seed(found: Mapping[str, Any]) -> int | None:
    seed = found.get("seed")
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise WireError(f"seed is {str(seed)[:60]}, not a whole number from 0 to 2**63 - 1")
    return int(seed)


def _is_reset(found: Mapping[str, Any]) -> bool:
    reset = found.get("reset", False)
    if not isinstance(reset, bool | np.bool_):
        raise WireError(f"reset is {str(reset)[:60]}, not true or false")
    return bool(reset)


def _image(camera: str, image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise WireError(f"the image of camera {camera[:60]} is a {type(image).__name__}, not an array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        hint = "; the channels come first, move them to the end" if image.shape[:1] == (3,) else ""
        raise WireError(
            f"the image of camera {camera[:60]} is {image.dtype} {image.shape}, not uint8 (height, width, 3){hint}"
        )
    return image


def _proprioception(numbers: Any) -> np.ndarray | None:
    if numbers is None:
        return None
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1 or numbers.dtype.kind not in "fiu":
        got = f"{numbers.dtype} {numbers.shape}" if isinstance(numbers, np.ndarray) else type(numbers).__name__
        raise WireError(f"the proprioception is {got}, not an array of numbers (dims,)")
    values = numbers if numbers.dtype.kind == "f" else numbers.astype(np.float64)
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise WireError(f"the proprioception holds {values[place]} at place {place}; send finite numbers")
    return values


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.str not in DTYPES:
        raise TypeError(f"values of type {value.dtype}")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__}")


class _Reader:
    """Makes values of what msgpack read, and counts: a byte can stand for a list, which takes sixty times that."""

    def __init__(self) -> None:
        self.left = MAX_CONTAINERS

    def list(self, values: list[Any]) -> list[Any]:
        self._count()
        return values

    def map(self, values: dict[Any, Any]) -> Any:
        self._count()
        if ARRAY in values:
            return _array(values)
        return _scalar(values) if SCALAR in values else values

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise WireError(f"the message holds more than {MAX_CONTAINERS} lists and maps")


def _array(packed: dict[Any, Any]) -> np.ndarray:
    data, dtype, shape = (packed.get(key) for key in (b"data", b"dtype", b"shape"))
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        raise WireError(f"an array has the dtype {str(dtype)[:60]!r}; only numbers and booleans are read")
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise WireError(f"an array needs data of bytes and a shape, a list of at most {MAX_AXES} sides")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise WireError(f"an array has the shape {str(shape)[:60]}, not of whole numbers")
    if math.prod(shape) * kind.itemsize != len(data):
        raise WireError(f"an array of {dtype} {tuple(shape)} cannot have {len(data)} bytes of data")
    if kind == np.bool_:
        return np.frombuffer(data, np.uint8).reshape(shape) != 0
    return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="))


def _scalar(packed: dict[Any, Any]) -> Any:
    dtype, value = packed.get(b"dtype"), packed.get(b"data")
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if kind is None or not isinstance(value, bool | int | float):
        raise WireError(f"a number has the dtype {str(dtype)[:60]!r} and is a {type(value).__name__}")
    try:
        return kind.type(value)
    except (OverflowError, ValueError) as error:
        raise WireError(f"a number does not fit its dtype {dtype}: {error}") from None


def _no_extension(code: int, data: bytes) -> Any:
    raise WireError(f"the message holds an extension type, {code}; there is none in this protocol")
