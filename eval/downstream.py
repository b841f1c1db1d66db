"""Does the latent action model matter for the policy? Evaluations of its arms, and paired differences between them.

Every policy of every arm and training seed is tried on the same initial states, so training seeds and initial states
are crossed, and arms are compared seed by seed, state by state.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from core.run import is_done, say
from core.significance import EpisodeSums, hierarchical_bootstrap, holm, paired_effect
from eval.proportions import Interval, mcnemar, paired_interval, wilson
from eval.protocol import UNKNOWN
from eval.results import (
    RESULTS_FILE,
    Result,
    ResultsError,
    by_arm,
    read_results,
    require_one_protocol,
    require_shared_protocol,
)

ARMS = ("self", "self_cross", "supervised", "shuffled", "none")
PRIMARY = (("self_cross", "self"),)
SECONDARY = (
    ("self_cross", "shuffled"),
    ("self_cross", "none"),
    ("supervised", "self_cross"),
    ("supervised", "shuffled"),
    ("shuffled", "none"),
)
"""Pairs of treatment and baseline; p values are adjusted over all budgets of the primary, and of the secondary ones."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one policy came to: a line of results.jsonl."""

    training_seed: int
    demonstrations: int
    """What the policy was fine-tuned on."""
    arm: str
    first_state: int
    """Seed of the first initial state; the others follow."""
    success_at_end: tuple[int, ...]
    """1 where the task was solved at the last step, one number an initial state; an error counts as a failure."""
    errors: int
    policy_fingerprint: str
    protocol_fingerprint: str = UNKNOWN
    """Identifies the conditions that all arms share; unknown in lines that are older than protocols."""

    @property
    def key(self) -> tuple[int, int, str]:
        """What makes a policy the same one."""
        return self.demonstrations, self.training_seed, self.arm


class Success(NamedTuple):
    """How often an arm's policies solved the task."""

    arm: str
    demonstrations: int
    success: float
    ci95: Interval
    """Over training seeds and initial states; with one seed Wilson's, over initial states."""
    seeds: int
    rollouts: int


class Contrast(NamedTuple):
    """One arm minus another on the training seeds and initial states that both have."""

    treatment: str
    baseline: str
    demonstrations: int
    difference: float
    ci95: Interval
    """Over training seeds and initial states; with one seed Tango's, over initial states."""
    seeds: int
    positive: int
    """Seeds whose difference is above zero."""
    test: str
    p: float
    p_holm: float
    """Adjusted over the family."""

    def is_beyond(self, sign: int) -> bool:
        """Whether the interval lies above (+1) or below (-1) zero."""
        return self.ci95.low > 0 if sign > 0 else self.ci95.high < 0


class Evaluations:
    """All policies that were tried, by arm, number of demonstrations and training seed.

    Raises:
        ResultsError: there are none, or they were tried on different initial states or under different conditions.
    """

    def __init__(self, records: Sequence[Evaluation]) -> None:
        if not records:
            raise ResultsError("there are no evaluations; make them with scripts/settle_downstream.sh")
        states = {(record.first_state, len(record.success_at_end)) for record in records}
        if len(states) > 1:
            raise ResultsError(
                f"policies were tried on different initial states (first, number): {sorted(states)}; give each its own "
                "--out and --results"
            )
        protocols = {record.protocol_fingerprint for record in records}
        if len(protocols) > 1:
            raise ResultsError(
                f"policies were tried under different protocols: {', '.join(sorted(protocols))} (their "
                "protocol_fingerprint); give each its own --out and --results, or evaluate all of them anew"
            )
        self.records = {record.key: record for record in sorted(records, key=lambda record: record.key)}
        self.states = states.pop()[1]
        self.budgets = sorted({record.demonstrations for record in records})
        self.training_seeds = sorted({record.training_seed for record in records})
        named = {record.arm for record in records}
        self.arms = [arm for arm in ARMS if arm in named]

    def seeds(self, arm: str, budget: int) -> list[int]:
        """Training seeds of an arm."""
        return sorted(s for d, s, a in self.records if (d, a) == (budget, arm))

    def successes(self, arm: str, budget: int, seeds: Sequence[int]) -> Float[np.ndarray, "seeds states"]:
        """1 where the task was solved."""
        rows = [self.records[budget, seed, arm].success_at_end for seed in seeds]
        return np.array(rows, dtype=np.float64)

    def missing(self) -> list[str]:
        """What keeps the design from being complete, one clause each."""
        found = [f"{arm} altogether" for arm in ARMS if arm not in self.arms]
        for budget in self.budgets:
            for arm in self.arms:
                lacking = sorted(set(self.training_seeds) - set(self.seeds(arm, budget)))
                if lacking:
                    found.append(f"{arm} with {budget} demonstrations, training seed {', '.join(map(str, lacking))}")
        return found


def gather(runs: Path) -> list[Evaluation]:
    """Finished evaluations below `runs`, in folders `seed_N/evaluate_DEMONSTRATIONS`.

    Raises:
        ProtocolError: episodes of one of them were run under different conditions.
    """
    found = []
    for path in runs.glob("seed_*/evaluate_*"):
        seed, budget = path.parent.name.removeprefix("seed_"), path.name.removeprefix("evaluate_")
        if seed.isdecimal() and budget.isdecimal() and is_done(path):
            results = read_results(path / RESULTS_FILE)
            require_one_protocol(results)
            require_shared_protocol(results)
            groups = by_arm(results)
            found += [_evaluation(int(seed), int(budget), arm, group) for arm, group in groups.items()]
    return found


def _evaluation(training_seed: int, demonstrations: int, arm: str, results: Sequence[Result]) -> Evaluation:
    ordered = sorted(results, key=lambda result: result.seed)
    return Evaluation(
        training_seed=training_seed,
        demonstrations=demonstrations,
        arm=arm,
        first_state=ordered[0].seed,
        success_at_end=tuple(int(result.success_at_end) for result in ordered),
        errors=sum(result.error is not None for result in ordered),
        policy_fingerprint=_known(result.policy_fingerprint for result in ordered),
        protocol_fingerprint=_known(result.protocol_fingerprint for result in ordered),
    )


def _known(fingerprints: Iterable[str]) -> str:
    """That of the episodes, of which those that failed early may know none."""
    return next((fingerprint for fingerprint in fingerprints if fingerprint != UNKNOWN), UNKNOWN)


def read_evaluations(path: Path) -> list[Evaluation]:
    """The lines of a results.jsonl; none where there is no such file, a half-written last line is left out.

    Raises:
        ResultsError: another line is not an evaluation.
    """
    *lines, rest = path.read_text().split("\n") if path.is_file() else [""]
    if rest:
        say(f"{path}: dropped a half-written last line")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            found.append(Evaluation(**values | {"success_at_end": tuple(values["success_at_end"])}))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ResultsError(f"{path}, line {number} is not an evaluation ({error}); remove that line") from None
    return found


def lines_of(records: Sequence[Evaluation]) -> str:
    """The text of results.jsonl; of several evaluations of one policy the last counts."""
    latest = {record.key: record for record in records}
    return "".join(json.dumps(asdict(latest[key])) + "\n" for key in sorted(latest))


def successes(evaluations: Evaluations) -> list[Success]:
    """Every arm with every number of demonstrations, where it was tried."""
    found = []
    for budget in evaluations.budgets:
        for arm in evaluations.arms:
            seeds = evaluations.seeds(arm, budget)
            if seeds:
                values = evaluations.successes(arm, budget, seeds)
                found.append(Success(arm, budget, float(values.mean()), _interval(values), len(seeds), values.size))
    return found


def _interval(values: Float[np.ndarray, "seeds states"]) -> Interval:
    seeds, states = values.shape
    # Where all rollouts end alike, resampling knows no spread; states are what is surely independent.
    if min(seeds, states) < 2 or np.ptp(values) == 0:
        return wilson(round(float(values.mean(axis=0).sum())), states)
    low, high = hierarchical_bootstrap([EpisodeSums(values, np.ones(states))])
    return Interval(max(low, 0.0), min(high, 1.0))


def contrasts(evaluations: Evaluations, pairs: Sequence[tuple[str, str]]) -> list[Contrast]:
    """A family of differences: each pair of arms with each number of demonstrations, where both were tried."""
    found = [
        contrast
        for treatment, baseline in pairs
        for budget in evaluations.budgets
        if (contrast := _contrast(evaluations, treatment, baseline, budget)) is not None
    ]
    adjusted = holm([contrast.p for contrast in found])
    return [contrast._replace(p_holm=p) for contrast, p in zip(found, adjusted, strict=True)]


def _contrast(evaluations: Evaluations, treatment: str, baseline: str, budget: int) -> Contrast | None:
    seeds = sorted(set(evaluations.seeds(treatment, budget)) & set(evaluations.seeds(baseline, budget)))
    if not seeds:
        return None
    ours, theirs = (evaluations.successes(arm, budget, seeds) for arm in (treatment, baseline))
    states = evaluations.states
    by_seed = (ours - theirs).mean(axis=1)
    alone = int((ours[0] > theirs[0]).sum()), int((theirs[0] > ours[0]).sum())
    interval = paired_interval(*alone, states)
    if len(seeds) > 1:
        counts = np.ones(states)
        effect = paired_effect(EpisodeSums(ours, counts), EpisodeSums(theirs, counts))
        test, p = "sign flips over training seeds", effect.p_permutation
        if np.ptp(ours - theirs) > 0:  # otherwise resampling knows no spread
            interval = Interval(*effect.ci95)
    else:
        p = mcnemar(*alone)
        test = "McNemar over initial states of one training seed"
    positive = int((by_seed > 0).sum())
    return Contrast(
        treatment, baseline, budget, float(by_seed.mean()), interval, len(seeds), positive, test, p, p_holm=p
    )
