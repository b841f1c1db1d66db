"""Video files of frames that can be read in any order, one camera a file, counted and checked exactly."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.codec.context import CodecContext, Flags
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from core.video_index import VideoError, VideoIndex, index_video

__all__ = ["CODECS", "VideoError", "VideoReader", "VideoWriter", "frame_rate"]


class Codec(NamedTuple):
    """How frames are encoded."""

    encoder: str
    pixels: str
    """Format that the encoder takes."""
    stored: str
    """Format in the file."""
    options: dict[str, str]


KEYFRAME_EVERY = 2
"""Frames; a random frame then costs at most two decoded ones."""
CODECS = {
    # RGB, not YUV: halving the colour resolution blurs small coloured objects, and the conversion biases colours and
    # costs as much as decoding does. No arithmetic coding, no deblocking: half the decoding time for 4 % more bytes.
    # No lookahead: with it x264 reads unset memory in pictures whose sides are no multiples of 16, and about one file
    # in a hundred differs between equal runs.
    "h264": Codec(
        "libx264rgb",
        "rgb24",
        "gbrp",
        {
            "crf": "20",
            "preset": "veryfast",
            "bf": "0",
            "tune": "zerolatency",
            "x264-params": "no-deblock=1:cabac=0:weightp=0",
        },
    ),
    "av1": Codec(
        "libsvtav1", "yuv420p", "yuv420p", {"crf": "20", "preset": "10", "svtav1-params": "lp=1:pred-struct=1"}
    ),
}
OPEN_FILES = 16
"""Videos one reader keeps open; each holds a decoder with a few frames."""
INDEX_BYTES = 2**25
"""Packets of indices that one reader remembers, also of videos it has closed: a million frames and more."""
_INHERITED: list[Any] = []
"""Decoders of a parent process, never freed: that would wait forever for threads which only the parent has."""


def frame_rate(control_hz: float) -> Fraction:
    """The nearest fraction a video can hold; off by less than 1e-4 of a frame after an hour at usual rates."""
    return Fraction(control_hz).limit_denominator(100_000)


class VideoWriter:
    """Appends RGB frames to one file; used as a context manager, complete when `finish` has returned."""

    def __init__(self, path: Path, size: tuple[int, int], control_hz: float, codec: str = "h264") -> None:
        self.path = path
        self.frames = 0
        self._rate, self._codec = frame_rate(control_hz), CODECS[codec]
        self._container = av.open(str(path), "w", format="mp4")
        os.environ.setdefault("SVT_LOG", "1")  # errors only; libsvtav1 writes a page about each file otherwise
        options = self._codec.options | {"g": str(KEYFRAME_EVERY)}
        self._stream: Any = self._container.add_stream(self._codec.encoder, rate=self._rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = self._codec.pixels
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
            if self._codec.pixels != "rgb24":
                frame = self._reformatter.reformat(frame, format=self._codec.pixels)
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def finish(self) -> VideoIndex:
        """Flush, close, and count what arrived in the file.

        Raises:
            VideoError: the file holds another number of frames than were appended.
        """
        self._container.mux(self._stream.encode())
        self._container.close()
        index = index_video(self.path)
        if len(index.packets) != self.frames:
            raise VideoError(f"{self.path} holds {len(index.packets)} frames of {self.frames}; write it again")
        return index


class VideoReader:
    """Reads frames of many files by their times, with a bounded number of open files.

    Safe after a fork and in copies sent to other processes: open files are never shared.
    """

    def __init__(self, hashes: Mapping[str, str] | None = None) -> None:
        """`hashes` are the fingerprints of saved indices by their paths; those not listed are not checked."""
        self._hashes = dict(hashes or {})
        self._indices: OrderedDict[Path, VideoIndex] = OrderedDict()
        self._open: OrderedDict[Path, _OpenVideo] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_hashes": self._hashes, "_indices": OrderedDict(), "_open": OrderedDict(), "_process": -1}

    def read(
        self, path: Path, times_s: Sequence[float] | Float[np.ndarray, " n"], index: Path | None = None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """The frames shown at these times, in this order; `index` is the file's saved index, where there is one.

        Raises:
            VideoError: there is no frame at one of the times, or the file is damaged.
        """
        return self._video(path, index).read(np.asarray(times_s, np.float64))

    def times_and_size(self, path: Path) -> tuple[Float[np.ndarray, " frames"], tuple[int, int]]:
        """When each frame of a file is shown, in seconds, and the frames' (height, width).

        Raises:
            VideoError: the file is damaged.
        """
        index = self._video(path, None).index
        return index.times, index.size

    def _video(self, path: Path, index: Path | None) -> "_OpenVideo":
        if self._process != os.getpid():
            _INHERITED.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        video = self._open.pop(path, None) or _OpenVideo(path, self._index(path, index))
        self._open[path] = video
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return video

    def _index(self, path: Path, saved: Path | None) -> VideoIndex:
        index = self._indices.pop(path, None)
        if index is None:
            index = VideoIndex.load(saved, self._hashes.get(str(saved))) if saved else index_video(path)
        self._indices[path] = index
        while len(self._indices) > 1 and sum(one.packets.nbytes for one in self._indices.values()) > INDEX_BYTES:
            self._indices.popitem(last=False)
        return index


class _OpenVideo:
    """One file: packets are read where the index says and handed to a decoder, without a demuxer."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self._path, self.index = path, index
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise VideoError(f"{path} cannot be opened: {error.strerror}") from None
        self._keys = np.flatnonzero(self.index.packets["is_key"])
        self._decoder = _decoder(path, self.index)
        self._reformatter = VideoReformatter()
        self._first, self._next, self._shown = 0, -1, 0
        """Packets that the decoder was started with and takes next (-1: it must be started), pts it gave last."""

    def close(self) -> None:
        os.close(self._file)

    def read(self, times_s: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        packets = self.index.at(times_s)
        frames = np.empty((len(packets), *self.index.size, 3), np.uint8)
        shown_in_order = sorted(set(packets.tolist()), key=lambda packet: self.index.packets["pts"][packet])
        try:
            for packet, frame in self._decode(shown_in_order):
                frames[packets == packet] = self._pixels(frame)
        except (av.FFmpegError, ValueError) as error:
            self._next = -1
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{self._path} is damaged: {error}") from None
        return frames

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, Any]]:
        """Wanted packets, which come in the order in which they are shown, and their frames."""
        by_pts = {int(self.index.packets["pts"][packet]): packet for packet in wanted}
        early: dict[int, Any] = {}
        for packet in wanted:
            if packet not in early:
                self._go_to(packet)
            while packet not in early:
                for frame in self._advance():
                    self._shown = frame.pts
                    if frame.pts in by_pts:
                        early[by_pts[frame.pts]] = frame
            yield packet, early.pop(packet)

    def _go_to(self, packet: int) -> None:
        """Start anew at the last keyframe that is shown no later, unless the decoder gets there by going on."""
        pts = self.index.packets["pts"]
        able = self._keys[(self._keys <= packet) & (pts[self._keys] <= pts[packet])]
        if not len(able):
            raise VideoError(f"{self._path} has no keyframe before {float(pts[packet] * self.index.time_base):.3f} s")
        key, is_ahead = int(able[-1]), self._first <= packet and pts[packet] >= pts[self._first]
        if self._next < 0 or not (is_ahead and key <= self._next and pts[packet] > self._shown):
            self._decoder.flush_buffers()
            self._first = self._next = key
            self._shown = -(2**62)

    def _advance(self) -> list[Any]:
        """Frames that leave the decoder when it takes the next packet, or after the last."""
        end, pts, number = len(self.index.packets), self.index.packets["pts"], self._next
        if number > end:
            raise VideoError(f"{self._path} is damaged: not every encoded frame can be decoded")
        self._next += 1
        if number < end and pts[number] < pts[self._first]:
            return []  # shown before the keyframe and made with frames that the decoder was not given
        return list(self._decoder.decode(self._packet(number) if number < end else None))

    def _packet(self, number: int) -> Any:
        row = self.index.packets[number]
        encoded = os.pread(self._file, int(row["size"]), int(row["offset"]))
        if len(encoded) != row["size"] or zlib.crc32(encoded) != row["checksum"]:
            raise VideoError(f"{self._path}: encoded frame {number} is not what was written; restore the file")
        packet = av.Packet(encoded)
        packet.pts = packet.dts = int(row["pts"])
        return packet

    def _pixels(self, frame: Any) -> np.ndarray:
        if frame.is_corrupt or (frame.height, frame.width) != self.index.size:
            raise VideoError(f"{self._path} is damaged at {float(frame.pts * self.index.time_base):.3f} s")
        if frame.format.name not in ("gbrp", "rgb24"):
            frame = self._reformatter.reformat(frame, format="rgb24")
        pixels: np.ndarray = frame.to_ndarray()
        return pixels


def _decoder(path: Path, index: VideoIndex) -> Any:
    try:
        decoder = CodecContext.create(index.codec, "r")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path} is encoded with {index.codec}, which cannot be decoded here: {error}") from None
    decoder.extradata, decoder.thread_count = index.extradata, 1
    decoder.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    if index.is_in_order:
        decoder.flags |= Flags.low_delay
    return decoder
