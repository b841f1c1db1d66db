"""What readers of all formats share: pictures turned and resized, numbers put together, as a mapping says."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.lazy_frames import LazyFrames, blocks
from core.pictures import decode_image
from core.spaces import ActionSpace


def decoded(images: Sequence[bytes]) -> LazyFrames:
    """Frames that are pictures of one size, JPEG or PNG each.

    Raises:
        ValueError: the first cannot be decoded; looking at the others raises it for them.
    """
    height, width = decode_image(images[0]).shape[:2]

    def read(start: int, stop: int) -> np.ndarray:
        frames = np.empty((stop - start, height, width, 3), np.uint8)
        for place, number in enumerate(range(start, stop)):
            pixels = decode_image(images[number])
            if pixels.shape != frames.shape[1:]:
                raise ValueError(f"frame {number} has {pixels.shape[:2]} pixels, the first {(height, width)}")
            frames[place] = pixels
        return frames

    return LazyFrames(len(images), (height, width), read)


def size_after(view: ViewMapping, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that frames of `size` have once they are turned and resized."""
    return view.size or (size[::-1] if view.rotate_deg in (90, 270) else size)


def transformed(frames: np.ndarray | LazyFrames, view: ViewMapping) -> np.ndarray | LazyFrames:
    """Frames turned and resized as the mapping says."""
    size = size_after(view, frames.shape[1:3])
    if not view.rotate_deg and size == frames.shape[1:3]:
        return frames

    def read(start: int, stop: int) -> np.ndarray:
        pictures = np.empty((max(0, stop - start), *size, 3), np.uint8)
        # A stretch of small pictures may be one of large frames, of which only a few fit in memory.
        whole = (frame for block in blocks(frames, start, stop) for frame in block)
        for place, frame in enumerate(whole):
            turned = np.rot90(frame, -view.rotate_deg // 90)
            if turned.shape[:2] != size:
                turned = np.asarray(Image.fromarray(turned).resize(size[::-1], Image.Resampling.BOX))
            pictures[place] = turned
        return pictures

    return LazyFrames(len(frames), size, read)


def put_together(
    pieces: Sequence[Numbers], find: Callable[[str], np.ndarray]
) -> Float[np.ndarray, "frames dims"] | None:
    """The pieces side by side, float32; None where there are none. `find` gives the source's values by name.

    Raises:
        ValueError: a piece is no number a frame, lacks a column, or pieces differ in length.
    """
    columns = [_piece(piece, find(piece.source)) for piece in pieces]
    if len({len(column) for column in columns}) > 1:
        lengths = {piece.source: len(column) for piece, column in zip(pieces, columns, strict=True)}
        raise ValueError(f"these differ in length: {lengths}")
    return np.concatenate(columns, axis=1).astype(np.float32) if columns else None


def _piece(piece: Numbers, values: np.ndarray) -> np.ndarray:
    if values.ndim == 0 or values.dtype.kind not in "fiub":
        raise ValueError(f"{piece.source} holds {values.dtype} of shape {values.shape}, not numbers of each frame")
    rows = values.reshape(len(values), -1).astype(np.float64)
    if piece.columns:
        if max(piece.columns) >= rows.shape[1]:
            raise ValueError(f"{piece.source} has {rows.shape[1]} columns, the mapping wants {list(piece.columns)}")
        rows = rows[:, list(piece.columns)]
    return piece.scale * rows + piece.offset


def action_space_of(mapping: Mapping, names: Sequence[str]) -> ActionSpace:
    """The mapping's action space; without one, a space of these names of which nothing else is known.

    Raises:
        ValueError: the mapping's has another size.
    """
    if mapping.action_space is None:
        return ActionSpace(names=tuple(names), units=("unspecified",) * len(names), kind="unspecified")
    if mapping.action_space.dims != len(names):
        raise ValueError(
            f"actions have {len(names)} numbers, the mapping's action_space {mapping.action_space.dims}: "
            f"{list(mapping.action_space.names)}"
        )
    return mapping.action_space


def task_of(mapping: Mapping, instruction: str) -> str:
    """The machine name of the task: the mapping's, or the instruction's words joined."""
    words = "".join(letter if letter.isalnum() else " " for letter in instruction.lower()).split()
    return mapping.task or "_".join(words) or "unknown"
