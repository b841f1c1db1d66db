"""Pictures and recordings as data that stands in the page itself."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eval.results import Result, by_arm

MAX_VIDEO_BYTES = 8_000_000


class Recording(NamedTuple):
    """One video of the page."""

    arm: str
    label: str
    """success or failure."""
    result: Result
    source: str
    """A data URL."""


def data_url(path: Path, kind: str) -> str:
    """The content of a file as a URL that needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def choose_recordings(results: Sequence[Result], folder: Path) -> list[Recording]:
    """The first recorded success and failure of each arm, as long as they fit into the page."""
    chosen: list[Recording] = []
    room = MAX_VIDEO_BYTES
    for arm, group in by_arm(results).items():
        recorded = [result for result in group if result.video and (folder / result.video).is_file()]
        for is_success, label in ((True, "success"), (False, "failure")):
            result = next((one for one in recorded if one.success_at_end is is_success), None)
            if result is None or result.video is None:
                continue
            size = (folder / result.video).stat().st_size
            if size <= room:
                room -= size
                chosen.append(Recording(arm, label, result, data_url(folder / result.video, "video/mp4")))
    return chosen
