"""Under which conditions the episodes were run: what is the same everywhere, what differs, and with which versions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval.evaluation_page.evaluation import Evaluation
from eval.protocol import Protocol
from eval.results import Result, by_task


class Conditions(NamedTuple):
    """What is the same for all tasks or policies, and what differs."""

    shared: dict[str, str]
    columns: list[str]
    """The tasks or policies; none where nothing differs."""
    differing: dict[str, list[str]]
    """A value for each of them."""


def benchmark_conditions(evaluation: Evaluation) -> Conditions:
    """The benchmark's part of the protocols, a column a task."""
    known = {task: _protocol(results) for task, results in evaluation.tasks.items()}
    return tabulated({task: protocol.benchmark for task, protocol in known.items() if protocol is not None})


def policy_conditions(evaluation: Evaluation) -> Conditions:
    """The policy's part, a column an arm, or an arm and task where an arm's tasks differ."""
    columns: dict[str, dict[str, Any]] = {}
    for arm, results in evaluation.arms.items():
        known = {task: protocol.policy for task, group in by_task(results).items() if (protocol := _protocol(group))}
        if known and all(policy == next(iter(known.values())) for policy in known.values()):
            columns[arm] = next(iter(known.values()))
        else:
            columns |= {f"{arm}, {task}": policy for task, policy in known.items()}
    return tabulated(columns)


def tabulated(columns: Mapping[str, Mapping[str, Any]]) -> Conditions:
    """Facts by column as a table; a fact that a column lacks is a dash."""
    names = dict.fromkeys(name for facts in columns.values() for name in facts)
    cells = {
        name: [in_words(facts[name]) if name in facts else "\N{EN DASH}" for facts in columns.values()]
        for name in names
    }
    shared = {name: values[0] for name, values in cells.items() if len(set(values)) == 1}
    differing = {name: values for name, values in cells.items() if name not in shared}
    return Conditions(shared, list(columns) if differing else [], differing)


def in_words(value: Any) -> str:
    """A JSON value for people."""
    if value is None:
        return "not set"
    if value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(in_words(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value)


def versions(results: Sequence[Result]) -> dict[str, str]:
    """Package versions that the lines record; several of one package where they differ."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for package, version in result.versions.items():
            found.setdefault(package, {})[version] = None
    return {package: " or ".join(seen) for package, seen in found.items()}


def fingerprints(evaluation: Evaluation) -> dict[str, str]:
    """Which policy each arm was."""
    known = {arm: dict.fromkeys(r.policy_fingerprint for r in results) for arm, results in evaluation.arms.items()}
    return {arm: " or ".join(seen) for arm, seen in known.items()}


def _protocol(results: Sequence[Result]) -> Protocol | None:
    """That of an episode which came to its end, if there is one: it knows all conditions."""
    ordered = sorted(results, key=lambda result: result.error is not None)
    return next((result.protocol for result in ordered if result.protocol is not None), None)
