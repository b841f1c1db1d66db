"""Where each encoded frame of a video lies, so that any of them is read without parsing the file again.

Built once from the container. A store keeps it beside its videos, with a checksum of every encoded frame: most damage
to compressed video decodes without complaint to other pictures.
"""

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float, Int

from core.run import fingerprint_of_file

PACKET = np.dtype([("offset", "<u8"), ("size", "<u4"), ("checksum", "<u4"), ("pts", "<i8"), ("is_key", "?")])
MOST_PIXELS = 64_000_000
"""A video that claims larger pictures is taken for damaged before anything is allocated."""


class VideoError(ValueError):
    """A video that does not hold what was asked of it."""


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """Codec and packets of one video stream, in decoding order."""

    codec: str
    extradata: bytes
    size: tuple[int, int]
    """(height, width)"""
    time_base: Fraction
    """Seconds a unit of pts."""
    packets: np.ndarray
    """One `PACKET` a frame."""

    @cached_property
    def is_in_order(self) -> bool:
        """Whether frames are shown in the order in which they are decoded."""
        return bool((np.diff(self.packets["pts"]) > 0).all())

    @cached_property
    def times(self) -> Float[np.ndarray, " frames"]:
        """When each frame is shown, in seconds, ascending."""
        return self.packets["pts"][self._order] * float(self.time_base)

    @cached_property
    def interval_s(self) -> float:
        """Usual time between frames; 1 where there is but one."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1.0

    @cached_property
    def _order(self) -> Int[np.ndarray, " frames"]:
        """Packets in the order in which their frames are shown."""
        return np.argsort(self.packets["pts"], kind="stable")

    def at(self, times_s: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Packets (their positions) of the frames that are shown nearest to the given times.

        Raises:
            VideoError: the nearest is farther away than half the usual time between frames.
        """
        shown = self.times
        after = np.clip(np.searchsorted(shown, times_s), 1, max(1, len(shown) - 1))
        right = np.minimum(after, len(shown) - 1)
        nearest = np.where(np.abs(times_s - shown[after - 1]) <= np.abs(shown[right] - times_s), after - 1, right)
        far = ~(np.abs(shown[nearest] - times_s) <= 0.5001 * self.interval_s)  # so that no number is far, too
        if far.any():
            time = float(times_s[far][0])
            raise VideoError(f"no frame is shown at {time:.4f} s, only from {shown[0]:.4f} to {shown[-1]:.4f} s")
        return self._order[nearest]

    def save(self, file: Path) -> None:
        """Write it; equal indices give equal bytes."""
        facts = [self.codec.encode(), self.extradata, str(self.time_base).encode()]
        arrays = {f"fact{number}": np.frombuffer(fact, np.uint8) for number, fact in enumerate(facts)}
        arrays |= {"height_width": np.array(self.size)} | {name: self.packets[name] for name in PACKET.names or ()}
        with io.BytesIO() as buffer:
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            file.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, file: Path, fingerprint: str | None = None) -> "VideoIndex":
        """What `save` wrote; checked first against the file's fingerprint, where one is given.

        Raises:
            VideoError: the file is missing or damaged.
        """
        try:
            if fingerprint and fingerprint_of_file(file) != fingerprint:
                raise ValueError("it is not what was written")
            with np.load(file, allow_pickle=False) as arrays:
                codec, extradata, time_base = (arrays[f"fact{number}"].tobytes() for number in range(3))
                packets = np.empty(len(arrays["offset"]), PACKET)
                for name in PACKET.names or ():
                    packets[name] = arrays[name]
                height, width = arrays["height_width"].tolist()
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            TypeError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise VideoError(
                f"{file} is missing or damaged ({error}); restore it, or convert its episodes again"
            ) from None
        base = Fraction(time_base.decode())
        return cls(codec=codec.decode(), extradata=extradata, size=(height, width), time_base=base, packets=packets)


def index_video(file: Path) -> VideoIndex:
    """Index of the first video stream of a file, made by reading it once without decoding.

    Raises:
        VideoError: it holds no video, or is damaged.
    """
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise VideoError(f"{file} holds no video")
            stream: Any = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise VideoError(f"{file} is encoded in a way that is not known here, or damaged")
            height, width = context.height, context.width
            if not 0 < height * width <= MOST_PIXELS or stream.time_base is None:
                raise VideoError(f"{file} claims pictures of {width} x {height} pixels")
            extradata = bytes(context.extradata or b"")
            codec, base = str(context.name), Fraction(stream.time_base)
            starts_anew = _starts_anew_of_h264(extradata) if codec == "h264" else lambda _: True
            rows = [_row(file, packet, starts_anew) for packet in container.demux(stream) if packet.size]
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{file} is no video that can be read: {error}") from None
    if not rows or len({row[3] for row in rows}) < len(rows):
        raise VideoError(f"{file} holds no frames, or two at one time; it is damaged")
    packets = np.array(rows, PACKET)
    packets["is_key"][0] = True  # there is nothing before it
    return VideoIndex(codec=codec, extradata=extradata, size=(height, width), time_base=base, packets=packets)


def _row(file: Path, packet: Any, starts_anew: Callable[[bytes], bool]) -> tuple[int, int, int, int, bool]:
    if packet.pos is None or packet.pos < 0 or packet.pts is None or packet.is_corrupt:
        raise VideoError(f"{file} has a damaged packet after {packet.dts}")
    encoded = bytes(packet)
    is_key = packet.is_keyframe and starts_anew(encoded)
    return packet.pos, packet.size, zlib.crc32(encoded), packet.pts, is_key


def _starts_anew_of_h264(extradata: bytes) -> Callable[[bytes], bool]:
    """Whether a keyframe is one (IDR) that the decoder can start with: others only promise to become right later.

    Units of the stream follow their length in 1 to 4 bytes (ISO/IEC 14496-15, 5.3.3.1); the type of an IDR slice is 5
    (ITU-T H.264, table 7-1).
    """
    width = (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else 0

    def starts_anew(encoded: bytes) -> bool:
        place = 0
        while width and place + width < len(encoded):
            if encoded[place + width] & 31 == 5:
                return True
            place += width + int.from_bytes(encoded[place : place + width], "big")
        return not width

    return starts_anew
