"""Paired differences between arms, with intervals over seeds and episodes, and what may be concluded from them."""

from typing import Any, NamedTuple

import numpy as np

from core.significance import EpisodeSums, PairedEffect, difference_of_differences, holm, paired_effect

MEASURES = {"action_bits": "bits about the action", "view_bits": "bits about the camera, tokens added up"}


class Contrast(NamedTuple):
    """One arm minus another under a condition."""

    condition: str
    measure: str
    treatment: str
    baseline: str
    effect: PairedEffect
    p_holm: float
    """Of the permutation test, adjusted over the conditions of the same contrast and measure."""


class Results:
    """Records by what they are about."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = {(r["condition"], r["setting"], r["arm"], r["seed"]): r for r in records}
        self.conditions = list(dict.fromkeys(r["condition"] for r in records if r["setting"] == "main"))
        self.arms = list(dict.fromkeys(r["arm"] for r in records if r["setting"] == "main"))
        self.settings = list(dict.fromkeys(r["setting"] for r in records if r["setting"] != "main"))

    def seeds(self, condition: str, arm: str, setting: str = "main") -> list[int]:
        """Seeds of an arm."""
        return sorted(s for c, t, a, s in self._records if (c, t, a) == (condition, setting, arm))

    def of(self, condition: str, arm: str, setting: str = "main") -> list[dict[str, Any]]:
        """Records of an arm, by seed."""
        seeds = self.seeds(condition, arm, setting)
        return [self._records[condition, setting, arm, seed] for seed in seeds]

    def values(self, condition: str, arm: str, name: str, setting: str = "main") -> np.ndarray:
        """A number of each of an arm's records; NaN where it is missing."""
        return np.array([record.get(name, np.nan) for record in self.of(condition, arm, setting)], dtype=np.float64)

    def pair(
        self, condition: str, treatment: str, baseline: str, measure: str, setting: str = "main"
    ) -> tuple[EpisodeSums, EpisodeSums] | None:
        """Both arms' sums on the seeds that both have; None with fewer than two.

        A setting that does not concern the baseline has none of its own: it is that of the main runs.
        """
        seeds = self.common_seeds(condition, treatment, baseline, setting)
        return self.sums_of(condition, treatment, baseline, measure, setting, seeds) if len(seeds) > 1 else None

    def common_seeds(self, condition: str, treatment: str, baseline: str, setting: str = "main") -> list[int]:
        """Seeds that both arms have."""
        other = self._setting_of(condition, baseline, setting)
        return sorted(set(self.seeds(condition, treatment, setting)) & set(self.seeds(condition, baseline, other)))

    def _setting_of(self, condition: str, baseline: str, setting: str) -> str:
        return setting if self.seeds(condition, baseline, setting) else "main"

    def sums_of(
        self, condition: str, treatment: str, baseline: str, measure: str, setting: str, seeds: list[int]
    ) -> tuple[EpisodeSums, EpisodeSums]:
        """Both arms' sums on these seeds."""
        other = self._setting_of(condition, baseline, setting)
        rows = [
            [self._records[condition, of, arm, seed]["per_episode"][measure] for seed in seeds]
            for arm, of in ((treatment, setting), (baseline, other))
        ]
        sums = [np.array(row, dtype=np.float64) for row in rows]
        counts = np.ones(sums[0].shape[1])
        return EpisodeSums(sums[0], counts), EpisodeSums(sums[1], counts)


def contrasts(results: Results, pairs: list[tuple[str, str]]) -> list[Contrast]:
    """Every pair of arms under every condition, both measures."""
    found = []
    for treatment, baseline in pairs:
        for measure in MEASURES:
            family = []
            for condition in results.conditions:
                both = results.pair(condition, treatment, baseline, measure)
                if both is not None:
                    family.append((condition, paired_effect(*both)))
            adjusted = holm([effect.p_permutation for _, effect in family])
            found += [
                Contrast(condition, measure, treatment, baseline, effect, p)
                for (condition, effect), p in zip(family, adjusted, strict=True)
            ]
    return found


def interaction(
    results: Results, first: str, second: str, treatment: str, baseline: str, measure: str
) -> PairedEffect | None:
    """(treatment minus baseline) under the first condition minus the same under the second."""
    both = [results.common_seeds(condition, treatment, baseline) for condition in (first, second)]
    seeds = sorted(set(both[0]) & set(both[1]))
    if len(seeds) < 2:
        return None
    one, other = (
        results.sums_of(condition, treatment, baseline, measure, "main", seeds) for condition in (first, second)
    )
    return difference_of_differences(one, other, same_episodes=True)
