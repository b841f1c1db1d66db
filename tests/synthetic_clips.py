"""Clips and tables as people record them, made up, for several files of tests."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLIP_90 = (0, 1, -1, 0)
"""Display matrix of a quarter turn clockwise (ISO/IEC 14496-12, tkhd)."""


def grey_of(number: int) -> int:
    return 10 + 5 * number


def write_clip(
    path: Path,
    frames: int = 12,
    rate: int = 10,
    size: tuple[int, int] = (32, 48),
    times_ms: list[int] | None = None,
    matrix: tuple[int, int, int, int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    audio: bool = False,
    key_every: int = 12,
) -> Path:
    """Frame `i` is `grey_of(i)`, with a white corner at the top left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        base = Fraction(1, rate if path.suffix == ".avi" else 1000)
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = key_every
        # Frames that refer to later ones, so that the order of decoding is not that of showing.
        stream.options = {"x264-params": "b-adapt=0:bframes=2"} if codec == "libx264" else {}
        stream.codec_context.thread_count = 1
        stream.bit_rate = 8_000_000
        sound = container.add_stream("aac", rate=48000) if audio else None
        for number in range(frames):
            picture = np.full((*size, 3), grey_of(number), np.uint8)
            picture[: size[0] // 2, : size[1] // 3] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = round(Fraction(times_ms[number], 1000) / base) if times_ms else int(number / (rate * base))
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
    if matrix:
        set_matrix(path, matrix)
    return path


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 2**30), content.index(b"tkhd"))
    a, b, c, d = (part * 65536 for part in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(content)


def write_actions(folder: Path, rows: int, time_s: list[float] | None = None, name: str = "actions") -> None:
    header = ["time_s"] * bool(time_s) + ["x", "gripper"]
    lines = [[*([time_s[row]] if time_s else []), row, -row] for row in range(rows)]
    text = "\n".join(",".join(map(str, line)) for line in [header, *lines])
    (folder / f"{name}.csv").write_text(text + "\n")


def numbers_seen(frames: np.ndarray) -> list[int]:
    """Which of the written frames these are, by the grey of the lower right corner."""
    greys = frames[:, -4:, -4:].reshape(len(frames), -1).astype(float).mean(axis=1)
    return [round((grey - 10) / 5) for grey in greys]
