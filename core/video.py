"""Video files of frames that can be read in any order: h264, one camera a file, counted exactly."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

CODEC = "h264"
PIXEL_FORMAT = "yuv444p"
"""Full colour resolution: halving it blurs small coloured objects, biases colours by 1/255 and saves no bytes here."""
KEYFRAME_EVERY = 2
"""Frames; a random frame then costs at most two decoded ones."""
QUALITY = 16
"""Constant rate factor of x264: 0 is lossless, 18 looks lossless."""
OPEN_FILES = 16
"""Videos one reader keeps open; each holds a decoder with a few frames."""
_INHERITED: list[Any] = []
"""Open videos of a parent process, never freed: that would wait forever for threads which only the parent has."""


class VideoError(ValueError):
    """A video that does not hold what was asked of it."""


def frame_rate(control_hz: float) -> Fraction:
    """The nearest fraction a video can hold; off by less than 1e-4 of a frame after an hour at usual rates."""
    return Fraction(control_hz).limit_denominator(100_000)


class VideoWriter:
    """Appends RGB frames to one file; used as a context manager, complete when `finish` has returned."""

    def __init__(self, path: Path, size: tuple[int, int], control_hz: float) -> None:
        self.path = path
        self.frames = 0
        self._rate = frame_rate(control_hz)
        self._container = av.open(str(path), "w", format="mp4")
        # Without lookahead, which this short a group of frames has no use for, and which makes x264 read unset memory
        # in pictures whose sides are no multiples of 16: about one file in a hundred then differs between equal runs.
        options = {"crf": str(QUALITY), "g": str(KEYFRAME_EVERY), "bf": "0", "tune": "zerolatency"}
        self._stream: Any = self._container.add_stream("libx264", rate=self._rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXEL_FORMAT
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def append(self, frames: UInt8[np.ndarray, "n height width 3"]) -> None:
        """Encode `frames` after those already there."""
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = self._reformatter.reformat(frame, format=PIXEL_FORMAT)
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def finish(self) -> None:
        """Flush, close, and count what arrived in the file.

        Raises:
            VideoError: the file holds another number of frames than were appended.
        """
        self._container.mux(self._stream.encode())
        self._container.close()
        with av.open(str(self.path)) as container:
            found = container.streams.video[0].frames
        if found != self.frames:
            raise VideoError(f"{self.path} holds {found} frames of {self.frames}; write it again")


class VideoReader:
    """Reads frames of many files by number, with a bounded number of open files.

    Safe after a fork and in copies sent to other processes: open files are never shared.
    """

    def __init__(self, control_hz: float) -> None:
        self._rate = frame_rate(control_hz)
        self._open: OrderedDict[Path, _OpenVideo] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_process": -1}

    def read(self, path: Path, numbers: Sequence[int]) -> UInt8[np.ndarray, "n height width 3"]:
        """The frames with these numbers, in this order; a number may come more than once.

        Raises:
            VideoError: the file ends before one of them.
        """
        video = self._video(path)
        wanted = sorted(set(numbers))
        frames = np.empty((len(numbers), video.height, video.width, 3), np.uint8)
        places: dict[int, list[int]] = {number: [] for number in wanted}
        for place, number in enumerate(numbers):
            places[number].append(place)
        for number, pixels in video.frames(wanted):
            frames[places[number]] = pixels
        return frames

    def _video(self, path: Path) -> "_OpenVideo":
        if self._process != os.getpid():
            _INHERITED.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        video = self._open.pop(path, None) or _OpenVideo(path, self._rate)
        self._open[path] = video
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return video


class _OpenVideo:
    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path = path
        self._container = av.open(str(path))
        self._stream: Any = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self._rate = rate
        self._reformatter = VideoReformatter()
        self.height, self.width = self._stream.codec_context.height, self._stream.codec_context.width

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Number and pixels of each of the ascending `numbers`; seeks only where that is cheaper than going on."""
        decoded: Iterator[tuple[int, Any]] = iter(())
        reached = -1
        for number in numbers:
            if reached < 0 or number > reached + KEYFRAME_EVERY:
                decoded = self._from(number)
            for reached, frame in decoded:  # noqa: B007 (used after the loop)
                if reached >= number:
                    break
            if reached != number:
                raise VideoError(f"{self._path} has no frame {number}, the last one read is {reached}; write it again")
            yield number, self._reformatter.reformat(frame, format="rgb24").to_ndarray()

    def close(self) -> None:
        self._container.close()

    def _from(self, number: int) -> Iterator[tuple[int, Any]]:
        """Frames from the keyframe at or before `number` on."""
        self._container.seek(int(number / self._rate / self._stream.time_base), stream=self._stream)
        for frame in self._container.decode(self._stream):
            yield round(frame.pts * self._stream.time_base * self._rate), frame
