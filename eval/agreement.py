"""Does success in simulation say which policy is better on the real robot? The two measures of SIMPLER.

Source: Li et al. (2024), Evaluating real-world robot manipulation policies in simulation, arXiv 2405.05941.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 0.001
"""A stated value may be so far off: it, and the success rates it was computed from, are printed to three decimals."""
MEASURES = ("pearson", "mmrv")


class AgreementError(ValueError):
    """A table that cannot be compared, or a stated value that does not come out."""


class ScoreTable(NamedTuple):
    """Success rates of the same policies on one task, on the robot and in simulation, in the same order."""

    policies: list[str]
    real: list[float]
    """Shares, 0 to 1."""
    simulated: list[float]
    stated: dict[str, float]
    """The measures that the file itself states: `pearson`, `mmrv`."""


class Agreement(NamedTuple):
    """How well a simulation predicts the robot."""

    pearson: float
    """Correlation of the success rates; not a number where one side is the same for all policies."""
    mmrv: float
    """Mean maximum rank violation, 0 (the same order) to 1."""
    mmrv_of_better: float
    """The same with the better policy of a tie in simulation charged for it; see `mean_maximum_rank_violation`."""


def pearson(real: Sequence[float], simulated: Sequence[float]) -> float:
    """Pearson's correlation; not a number where either side is constant."""
    a, b = np.asarray(real, np.float64), np.asarray(simulated, np.float64)
    if a.min() == a.max() or b.min() == b.max():
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def mean_maximum_rank_violation(real: Sequence[float], simulated: Sequence[float]) -> float:
    """Mean over policies of the largest real difference to a policy that the simulation puts on the wrong side.

    Equation 1 of the paper: policies i and j violate the order where (s_i < s_j) differs from (r_i < r_j), which costs
    |r_i - r_j|. So a tie in simulation of policies that differ in reality is charged to the worse one alone. The code
    published with the paper compares with > and charges the better one; the two differ only where simulated rates tie,
    and the other value is that of the negated rates.
    """
    r, s = np.asarray(real, np.float64), np.asarray(simulated, np.float64)
    is_violated = (s[:, None] < s[None, :]) != (r[:, None] < r[None, :])
    return float(np.where(is_violated, np.abs(r[:, None] - r[None, :]), 0.0).max(axis=1).mean())


def agreement(table: ScoreTable) -> Agreement:
    """Both measures of one task."""
    real, simulated = np.array(table.real), np.array(table.simulated)
    return Agreement(
        pearson=pearson(table.real, table.simulated),
        mmrv=mean_maximum_rank_violation(table.real, table.simulated),
        mmrv_of_better=mean_maximum_rank_violation((-real).tolist(), (-simulated).tolist()),
    )


def is_reproduced(stated: float, computed: float) -> bool:
    """Whether a published value is the computed one, up to what was rounded away in print."""
    return abs(stated - computed) <= TOLERANCE + 1e-9


def read_tables(path: str | Path) -> dict[str, ScoreTable]:
    """The tables of a file, by task.

    The file is {"tables": {task: {"real": {policy: share}, "simulated": {policy: share}, "pearson": optional,
    "mmrv": optional}}}.

    Raises:
        AgreementError: it is not such a file, or a task has other policies on the robot than in simulation.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise AgreementError(f"no file at {path}; give a JSON file with a table of success rates a task") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AgreementError(f"{path} is not JSON: {error}") from None
    tables = content.get("tables") if isinstance(content, dict) else None
    if not isinstance(tables, dict) or not tables:
        raise AgreementError(f'{path} has no tables; it must hold {{"tables": {{task: {{"real": ..., ...}}}}}}')
    return {task: _table(f"{path}, task {task}", entry) for task, entry in tables.items()}


def lines_of(task: str, table: ScoreTable, found: Agreement) -> list[str]:
    """What is said of one task: both measures, and beside each what the file states."""
    measures = [_measure("Pearson", found.pearson, table.stated.get("pearson"))]
    measures.append(_measure("MMRV", found.mmrv, table.stated.get("mmrv")))
    lines = [f"{task}: {len(table.policies)} policies, {', '.join(measures)}"]
    if found.mmrv_of_better != found.mmrv:
        lines.append(
            f"  note: simulated rates tie; the code published with SIMPLER charges a tie to the better policy and "
            f"gives MMRV {found.mmrv_of_better:.3f}"
        )
    return lines


def not_reproduced(table: ScoreTable, found: Agreement) -> list[str]:
    """Names of the measures that the file states otherwise."""
    return [name for name, value in table.stated.items() if not is_reproduced(value, getattr(found, name))]


def _measure(name: str, computed: float, stated: float | None) -> str:
    value = "undefined (one side is constant)" if math.isnan(computed) else f"{computed:.3f}"
    if stated is None:
        return f"{name} {value}"
    return f"{name} {value} (stated {stated:.3f}: {'agrees' if is_reproduced(stated, computed) else 'DOES NOT AGREE'})"


def _table(where: str, entry: Any) -> ScoreTable:
    real, simulated = (entry.get(side) if isinstance(entry, dict) else None for side in ("real", "simulated"))
    if not isinstance(real, dict) or not isinstance(simulated, dict):
        raise AgreementError(f"{where} needs success rates by policy under both real and simulated")
    if real.keys() != simulated.keys():
        raise AgreementError(
            f"{where}: only the robot has {sorted(real.keys() - simulated.keys())}, only the simulation has "
            f"{sorted(simulated.keys() - real.keys())}; both sides need the same policies"
        )
    if len(real) < 2:
        raise AgreementError(f"{where} has {len(real)} policies; an order needs at least two")
    for name, value in [*real.items(), *simulated.items()]:
        if not _is_number(value) or not 0 <= value <= 1:
            raise AgreementError(f"{where}, {name}: {value!r} is not a success rate; give a share from 0 to 1")
    stated = {name: entry[name] for name in MEASURES if entry.get(name) is not None}
    for name, value in stated.items():
        if not _is_number(value):
            raise AgreementError(f"{where} states {name} as {value!r}; give a number, or leave it out")
    return ScoreTable(list(real), list(real.values()), [simulated[name] for name in real], stated)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
