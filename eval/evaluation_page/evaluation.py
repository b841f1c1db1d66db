"""What the directory of an evaluation holds, read once; unfinished ones too."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from core.run import is_done, read_manifest
from eval.results import (
    RESULTS_FILE,
    Result,
    by_arm,
    by_task,
    latest,
    read_lines,
    require_one_protocol,
    require_shared_protocol,
)

STAGE_FILE = "stage.json"
Key = tuple[str, str, int]


class EvaluationError(ValueError):
    """A directory that no page can be made of."""


class Evaluation(NamedTuple):
    """One evaluation and how far it has come."""

    path: Path
    results: list[Result]
    lines: dict[Key, int]
    """Number, from 1, of the line of results.jsonl that counts for an episode."""
    replaced: int
    """Lines that a later one for the same episode replaced: an error, then a repeat."""
    record: dict[str, Any]
    """manifest.json, or stage.json as long as there is none; empty where the results stand alone."""
    is_finished: bool
    planned: dict[tuple[str, str], int]
    """Episodes that were asked for, by arm and task; empty where no record says."""

    @property
    def arms(self) -> dict[str, list[Result]]:
        """Results of each arm."""
        return by_arm(self.results)

    @property
    def tasks(self) -> dict[str, list[Result]]:
        """Results of each task."""
        return by_task(self.results)

    @property
    def missing(self) -> dict[tuple[str, str], int]:
        """Episodes that were asked for and have no result, by arm and task."""
        had = Counter((result.arm, result.task) for result in self.results)
        return {key: asked - had[key] for key, asked in self.planned.items() if asked > had[key]}

    def line(self, result: Result) -> int:
        """The number of the line that a result stands in."""
        return self.lines[result.key]


def read_evaluation(path: str | Path) -> Evaluation:
    """All that the page is made of.

    Raises:
        ResultsError: there is no results.jsonl, or it is not one.
        ProtocolError: an arm's results, or those of two arms on a task, were not got under the same conditions.
        EvaluationError: it holds no result yet, or stage.json is broken.
    """
    path = Path(path)
    file = path / RESULTS_FILE
    every = read_lines(file)
    results = latest(every)
    if not results:
        raise EvaluationError(f"{file} holds no result yet; wait for the first episode, or run scripts/evaluate.py")
    require_one_protocol(results)
    require_shared_protocol(results)
    record = read_manifest(path) if is_done(path) else _stage(path)
    lines = {result.key: number for number, result in enumerate(every, start=1)}
    return Evaluation(path, results, lines, len(every) - len(lines), record, is_done(path), _planned(record))


def _stage(path: Path) -> dict[str, Any]:
    file = path / STAGE_FILE
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise EvaluationError(f"{file} is not valid JSON ({error}); move it away to go without it") from None


def _planned(record: dict[str, Any]) -> dict[tuple[str, str], int]:
    arms = record.get("config", {}).get("arms", [])
    return {(arm["name"], plan["task"]): int(plan["episodes"]) for arm in arms for plan in arm["tasks"]}
