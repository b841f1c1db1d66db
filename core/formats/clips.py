"""Video files as people record them: what a clip holds, and its frames in order; what is damaged is refused."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int

from core.formats.interface import DAMAGE
from core.video_index import MOST_PIXELS

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""Containers that are opened: others, such as playlists, can name further files."""
OPEN_CLIPS = 8
"""Clips that are kept open between two stretches of frames."""
STRICT = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
"""Raise where a decoder notices damage, instead of painting over it."""
HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
"""Transfer characteristics whose colours are not those of a screen (ITU-T H.273, table 3)."""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""How Matroska begins, and its outermost element (RFC 9559, section 5.1)."""
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"udta", b"moof", b"mfra")
"""Outermost elements of MP4 and MOV (ISO/IEC 14496-12, section 8)."""
MISSING_WITH_SOUND_S = 0.5
"""Seconds that frames may end before the length that the container states: sound often lasts a little longer."""
MEDIA_DAMAGE = (av.FFmpegError, *DAMAGE)
"""What PyAV raises where a file is damaged."""
_OPEN: "OrderedDict[int, _Decoding]" = OrderedDict()
_INHERITED: list[Any] = []
"""Open clips of a parent process, never freed: that could wait for locks which only the parent releases."""
_NUMBERS = count()


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a video file says of its frames, found without decoding more than the first."""

    path: Path
    times: Float[np.ndarray, " frames"]
    """When each frame is shown, in seconds after the first, ascending."""
    duration_s: float
    """Until the end of the last frame."""
    stated_rate: float | None
    """Frames a second, as the container says."""
    is_timed: bool
    """Whether decoded frames carry these times (they do not in AVI)."""
    turn: tuple[int, int, int, int]
    """Display matrix a, b, c, d: the pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    size: tuple[int, int]
    """(height, width) as shown."""
    is_square: bool
    """Whether pixels are as wide as they are high."""

    @cached_property
    def interval_s(self) -> float:
        """Usual time between frames."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else self.duration_s

    @property
    def rate(self) -> float | None:
        """Frames a second, where it hardly varies; common rates exactly. None: it varies."""
        if len(self.times) < 2 or np.abs(np.diff(self.times) - self.interval_s).max() > 0.25 * self.interval_s:
            return None
        measured = (len(self.times) - 1) / float(self.times[-1])
        near = [rate for rate in (round(measured), round(measured) * 1000 / 1001, self.stated_rate) if rate]
        best = min(near, key=lambda rate: abs(rate - measured), default=measured)
        return float(best) if abs(best - measured) < 0.005 * measured else measured

    def at_rate(self, control_hz: float, steps: int) -> Int[np.ndarray, " steps"]:
        """Numbers of the frames that are shown nearest to the control steps.

        Raises:
            ValueError: the clip has fewer frames a second, or none near one of the steps.
        """
        if self.interval_s * control_hz > 1.05:
            raise ValueError(
                f"{self.path.name} has {1 / self.interval_s:.3f} frames a second, control_hz is {control_hz}: frames "
                f"would repeat; set control_hz in the mapping to at most {1 / self.interval_s:.0f}"
            )
        wanted = np.arange(steps) / control_hz
        after = np.clip(np.searchsorted(self.times, wanted), 1, max(1, len(self.times) - 1))
        right = np.minimum(after, len(self.times) - 1)
        is_left = np.abs(wanted - self.times[after - 1]) <= np.abs(self.times[right] - wanted)
        nearest = np.where(is_left, after - 1, right)
        far = np.abs(self.times[nearest] - wanted) > 1 / control_hz
        if far.any():
            raise ValueError(
                f"{self.path.name} shows no frame within a control step of {float(wanted[far][0]):.3f} s; "
                "the camera stalled there: cut the clip, or set a lower control_hz"
            )
        return nearest


def probe(path: Path) -> Clip:
    """What a clip holds.

    Raises:
        ValueError: it has no video, is damaged or cut, or has colours that cannot be shown as they are.
    """
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path.name} is empty; copy it again")
    _check_whole(path, size)
    with _opened(path) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.size:
                packets.append((packet.pts, packet.size, packet.duration or 0, packet.is_discard, packet.is_corrupt))
            if packet.is_corrupt or (packet.size and _claims_more(packets, size)):
                raise ValueError(f"{path.name} is cut off or damaged at frame {len(packets) - 1}; copy it again")
        stated = stream.frames
        times, last_s, is_timed = _times(container, stream, packets, path)
        lasts_s = (container.duration or 0) / av.time_base
        rate = float(stream.average_rate) if stream.average_rate else None
        ratio = stream.sample_aspect_ratio
        slack_s = MISSING_WITH_SOUND_S if len(container.streams) > 1 else 2 * last_s / len(packets)
    if stated and stated != len(packets):
        raise ValueError(f"{path.name} states {stated} frames and holds {len(packets)}; it was cut, or lost frames")
    if last_s < lasts_s - slack_s:
        raise ValueError(f"{path.name} states {lasts_s:.2f} s, its frames end at {last_s:.2f} s; it was cut off")
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream, path), None)
        if first is None:
            raise ValueError(f"{path.name} holds no frame that can be decoded")
        _check_colours(path, stream.codec_context.color_trc)
        turn, height_width = _turn_of(first, path), (first.height, first.width)
    return Clip(
        path=path,
        times=times - times[0],
        duration_s=float(last_s - times[0]),
        stated_rate=rate,
        is_timed=is_timed,
        turn=turn,
        size=height_width if turn[0] else height_width[::-1],
        is_square=not ratio or ratio == 1,
    )


def frames_of(clip: Clip, numbers: Int[np.ndarray, " steps"]) -> Callable[[int, int], np.ndarray]:
    """A function that decodes a stretch of the frames with these ascending numbers.

    Asked for in order, the clip is decoded once; its end is decoded with the last of them, so that the frames can be
    counted.
    """
    key = next(_NUMBERS)

    def read(start: int, stop: int) -> np.ndarray:
        frames = np.empty((max(0, stop - start), *clip.size, 3), np.uint8)
        if not len(frames):
            return frames
        decoding = _resumed(key, clip, int(numbers[start]))
        try:
            for place, number in enumerate(numbers[start:stop]):
                frames[place] = decoding.frame(int(number))
            if stop == len(numbers):
                decoding.finish()
        except MEDIA_DAMAGE:
            _forget(key)
            raise
        if stop == len(numbers):
            _forget(key)
        return frames

    return read


class _Decoding:
    """A clip that is being decoded, from its first frame on."""

    def __init__(self, clip: Clip) -> None:
        self.process = os.getpid()
        self.next = 0
        self._clip = clip
        self._last: np.ndarray | None = None
        self._scope = _opened(clip.path)
        container, stream = self._scope.__enter__()
        self._time_base = float(stream.time_base)
        self._first_s: float | None = None
        self._frames = _decoded(container, stream, clip.path)
        self._reformatter = VideoReformatter()

    def frame(self, number: int) -> np.ndarray:
        """Pixels of a frame that is not before the last one asked for."""
        if number == self.next - 1 and self._last is not None:
            return self._last
        while True:
            frame = self._advanced()
            if self.next - 1 == number:
                break
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        self._last = _turned(rgb, self._clip.turn)
        if self._last.shape[:2] != self._clip.size:
            raise ValueError(
                f"{self._clip.path.name} changes its size from {self._clip.size} to {self._last.shape[:2]} at "
                f"frame {number}; cut it there"
            )
        return self._last

    def finish(self) -> None:
        """Decode what follows, so that the frames can be counted."""
        while self.next < len(self._clip.times):
            self._advanced()
        if next(self._frames, None) is not None:
            raise ValueError(f"{self._clip.path.name} has more than the {self.next} frames of its index; it is damaged")

    def close(self) -> None:
        self._scope.__exit__(None, None, None)

    def _advanced(self) -> Any:
        frame = next(self._frames, None)
        if frame is None:
            raise ValueError(
                f"{self._clip.path.name} ends after {self.next} frames of {len(self._clip.times)}; it is damaged"
            )
        if self._clip.is_timed:
            time_s = (frame.pts or 0) * self._time_base
            self._first_s = time_s if self._first_s is None else self._first_s
            if abs(time_s - self._first_s - self._clip.times[self.next]) > 0.5 * self._clip.interval_s:
                raise ValueError(f"{self._clip.path.name} has no frame {self.next} in its place; it is damaged")
        self.next += 1
        return frame


def _resumed(key: int, clip: Clip, number: int) -> _Decoding:
    """The clip, decoded up to the frame at most; opened again where it is beyond it or belongs to another process."""
    decoding = _OPEN.pop(key, None)
    if decoding is not None and decoding.process != os.getpid():
        _INHERITED.append(decoding)
        decoding = None
    if decoding is not None and number < decoding.next - 1:
        decoding.close()
        decoding = None
    _OPEN[key] = decoding or _Decoding(clip)
    while len(_OPEN) > OPEN_CLIPS:
        _forget(next(iter(_OPEN)))
    return _OPEN[key]


def _forget(key: int) -> None:
    decoding = _OPEN.pop(key, None)
    if decoding is None:
        return
    if decoding.process == os.getpid():
        decoding.close()
    else:
        _INHERITED.append(decoding)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its only video stream, set to decode strictly with one thread."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(f"file:{path.absolute()}", container_options=options, metadata_errors="replace") as container:
        covers = [one for one in container.streams.video if "attached_pic" in str(one.disposition).lower()]
        streams = [one for one in container.streams.video if one not in covers]
        if len(streams) != 1:
            raise ValueError(f"{path.name} has {len(streams)} video streams; one is needed")
        context = streams[0].codec_context
        if not 0 < context.height * context.width <= MOST_PIXELS or not streams[0].time_base:
            raise ValueError(f"{path.name} claims pictures of {context.width} x {context.height} pixels")
        context.thread_count = 1
        context.options = STRICT
        yield container, streams[0]


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """All frames in the order in which they are shown."""
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise ValueError(f"{path.name} is damaged at frame {number}")
        yield frame


def _check_whole(path: Path, size: int) -> None:
    """Refuse a file that ends within one of its outermost elements: FFmpeg reads what is left without a word."""
    with path.open("rb") as file:
        head = file.read(4096)
        claimed = 8 + int.from_bytes(head[4:8], "little") if head[:4] == b"RIFF" else 0
        while head[4:8] in BOXES and claimed <= size:
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:  # 0: until the end of the file
                break
            claimed += length
            file.seek(min(claimed, size))
            head = file.read(16)
    place = head.find(SEGMENT) + len(SEGMENT)
    if head[:4] == EBML and len(SEGMENT) <= place < len(head) and head[place]:
        # The first byte's leading zeros tell how many bytes the number has; all ones stand for an unknown size.
        width = 9 - head[place].bit_length()
        number = int.from_bytes(head[place : place + width], "big") & ((1 << 7 * width) - 1)
        claimed = place + width + number if number != (1 << 7 * width) - 1 else 0
    if claimed > size:
        raise ValueError(f"{path.name} claims {claimed} bytes and has {size}; it was cut off, copy it again")


def _claims_more(packets: Sequence[tuple], size: int) -> bool:
    """Whether packets together claim more bytes than the file has: they overlap, and would never end."""
    return len(packets) % 1000 == 0 and sum(packet[1] for packet in packets) > size


def _times(container: Any, stream: Any, packets: Sequence[tuple], path: Path) -> tuple[np.ndarray, float, bool]:
    """When frames are shown, when the last ends (seconds), and whether decoded frames carry these times."""
    shown = [packet for packet in packets if not packet[3]]
    if not shown:
        raise ValueError(f"{path.name} holds no frames")
    if sum(packet[1] for packet in packets) > path.stat().st_size:
        raise ValueError(f"{path.name} claims more bytes of frames than it has; it is damaged")
    if container.format.name == "avi" or any(packet[0] is None for packet in shown):
        # AVI has a rate, and no times; those that FFmpeg makes up are in the wrong order.
        if not stream.average_rate:
            raise ValueError(f"{path.name} says neither when its frames are shown nor at which rate")
        interval = 1 / float(stream.average_rate)
        return np.arange(len(shown)) * interval, len(shown) * interval, False
    times = np.sort(np.array([packet[0] for packet in shown], np.float64)) * float(stream.time_base)
    if len(times) > 1 and (np.diff(times) <= 0).any():
        raise ValueError(f"{path.name} shows two frames at {times[:-1][np.diff(times) <= 0][0]:.3f} s; it is damaged")
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    last = max(shown, key=lambda packet: packet[0])
    return times, float(times[-1] + (last[2] * float(stream.time_base) or usual)), True


def _check_colours(path: Path, transfer: int) -> None:
    if int(transfer) in HIGH_DYNAMIC_RANGE:
        raise ValueError(
            f"{path.name} has high dynamic range ({HIGH_DYNAMIC_RANGE[int(transfer)]}), whose colours would come out "
            "pale; convert it with tone mapping, or switch HDR video off in the phone's camera settings"
        )


def _turn_of(frame: Any, path: Path) -> tuple[int, int, int, int]:
    """The display matrix, which phones write instead of turning pixels."""
    matrices = [bytes(one) for one in frame.side_data if one.type.name == "DISPLAYMATRIX"]
    if not matrices:
        return (1, 0, 0, 1)
    parts = np.frombuffer(matrices[0], np.int32, 5)[[0, 1, 3, 4]] / 65536
    a, b, c, d = (round(float(part)) for part in parts)
    if np.abs(parts - [a, b, c, d]).max() > 1e-3 or abs(a * d - b * c) != 1 or abs(a) + abs(b) != 1:
        raise ValueError(f"{path.name} is to be shown turned by {parts.tolist()}, which is no multiple of 90 degrees")
    return (a, b, c, d)


def _turned(pixels: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """A picture as its display matrix says, `(height, width, 3)`."""
    a, b, c, d = turn
    if not a:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: (d or b), :: (a or c)]
