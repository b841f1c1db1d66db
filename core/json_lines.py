"""One JSON value a line, appended as work goes on; a kill in the middle of a line costs that line only."""

import json
from pathlib import Path
from typing import Any

from core.run import say


class LinesError(ValueError):
    """A line that is no JSON."""


def append_json_line(path: str | Path, value: Any) -> None:
    """Add one line in one flushed write; a half-written line that a killed run left is cut off first."""
    line = (json.dumps(value) + "\n").encode()
    with Path(path).open("ab+") as file:
        _cut_half_line(Path(path), file.tell())
        file.write(line)
        file.flush()


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of all whole lines; a half-written last one is left out, and that is said.

    Raises:
        LinesError: another line is no JSON; the message has its number.
    """
    *lines, rest = Path(path).read_text().split("\n")
    if rest:
        say(f"{path}: dropped a half-written last line (the run was killed while writing it)")
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise LinesError(f"{path}, line {number} is not JSON ({error}); remove that line") from None
    return values


def _cut_half_line(path: Path, size: int) -> None:
    with path.open("rb+") as file:
        content = file.read(size)
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
