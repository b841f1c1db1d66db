"""Recordings on the page: failures first, each with its first frame, a strip of frames and the video itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from core.pictures import at_height, picture_url
from eval.evaluation_page.evaluation import Evaluation
from eval.page.media import data_url
from eval.results import Result

MAX_VIDEO_BYTES = 10_000_000
MOST_SHOWN = 24
FAILURES_EACH = 3
"""Of one arm on one task, as long as there is room."""
STRIP_FRAMES, STRIP_HEIGHT, QUALITY = 6, 72, 78
BETWEEN = 2
FIRST_HEIGHT = 160
KINDS = {".mp4": "video/mp4", ".webm": "video/webm"}


class Clip(NamedTuple):
    """One recording."""

    arm: int
    result: Result
    line: int
    label: str
    """failure, error or success."""
    first: str
    """The first frame, a data URL; empty where the file cannot be read."""
    strip: str
    """Frames from the first to the last in a row, a data URL."""
    source: str
    """The video as a data URL; empty where it has no room on the page, or cannot be read."""
    problem: str
    """Why it cannot be played here."""


class Gallery(NamedTuple):
    """What is shown of the recordings, and how much is not."""

    clips: list[Clip]
    recorded: int
    """Episodes with a recording that is there."""
    failures: int
    """Those of them that were not solved."""
    gone: list[Result]
    """Episodes whose recording is not where their line says."""

    @property
    def shown_failures(self) -> list[Clip]:
        """Failures, errors included."""
        return [clip for clip in self.clips if clip.label != "success"]

    @property
    def shown_successes(self) -> list[Clip]:
        """What they are compared with."""
        return [clip for clip in self.clips if clip.label == "success"]


def gallery(evaluation: Evaluation, max_bytes: int = MAX_VIDEO_BYTES, most: int = MOST_SHOWN) -> Gallery:
    """The first recorded failures of each arm on each task, and its first recorded success to compare with.

    Args:
        evaluation: whose recordings they are.
        max_bytes: room for all videos together; those beyond it are shown as frames only.
        most: recordings that are shown.
    """
    named = [result for result in evaluation.results if result.video]
    there = [result for result in named if _file(evaluation, result).is_file()]
    clips, room = [], max_bytes
    for result in chosen(there)[:most]:
        clip, size = _clip(evaluation, result, room)
        room -= size
        clips.append(clip)
    failures = sum(not result.success_at_end for result in there)
    order = list(evaluation.tasks)
    clips.sort(key=lambda clip: (order.index(clip.result.task), clip.arm, clip.line))
    return Gallery(clips, len(there), failures, [result for result in named if result not in there])


def chosen(results: Sequence[Result]) -> list[Result]:
    """The order in which recordings get room: of each arm and task a failure, then a success, then more failures."""
    rounds: dict[tuple[int, int], Result] = {}
    groups: dict[tuple[str, str, bool], list[Result]] = {}
    for number, result in enumerate(results):
        group = groups.setdefault((result.arm, result.task, result.success_at_end), [])
        group.append(result)
        turn = 2 * (len(group) - 1) if not result.success_at_end else 1
        if len(group) <= (1 if result.success_at_end else FAILURES_EACH):
            rounds[turn, number] = result
    return [rounds[key] for key in sorted(rounds)]


def _clip(evaluation: Evaluation, result: Result, room: int) -> tuple[Clip, int]:
    """The recording, and how much of the room it takes."""
    file = _file(evaluation, result)
    size = file.stat().st_size
    first = strip = source = problem = ""
    try:
        frames = read_frames(file)
        first, strip = picture_url(at_height(frames[0], FIRST_HEIGHT), QUALITY), picture_url(strip_of(frames), QUALITY)
        if file.suffix not in KINDS:
            problem = f"browsers play {' and '.join(KINDS)}, not {file.suffix or 'a file without a suffix'}"
        elif size > room:
            problem = f"its {size / 1e6:.1f} MB have no room on this page"
        else:
            source = data_url(file, KINDS[file.suffix])
    except (av.FFmpegError, ValueError) as error:
        problem = f"it cannot be read ({error})"
    label = "error" if result.error else "success" if result.success_at_end else "failure"
    arm = list(evaluation.arms).index(result.arm)
    clip = Clip(arm, result, evaluation.line(result), label, first, strip, source, problem)
    return clip, size if source else 0


def read_frames(file: Path) -> list[UInt8[np.ndarray, "height width 3"]]:
    """All frames of a short video.

    Raises:
        FFmpegError: it is not a video.
        ValueError: it has no frames.
    """
    with av.open(str(file)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not frames:
        raise ValueError("it holds no frame")
    return frames


def strip_of(frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "height width 3"]:
    """Frames from the first to the last, evenly spread, in a row with white lines between them."""
    places = np.unique(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
    parts: list[np.ndarray] = []
    for place in places:
        line = np.full((STRIP_HEIGHT, BETWEEN, 3), 255, np.uint8)
        parts += [at_height(frames[place], STRIP_HEIGHT), line]
    return np.hstack(parts[:-1])


def _file(evaluation: Evaluation, result: Result) -> Path:
    return evaluation.path / str(result.video)
