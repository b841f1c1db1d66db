"""What follows from the intervals of the claim, in sentences."""

from collections.abc import Sequence

import numpy as np

from core.significance import PairedEffect
from lam.claim.effects import Contrast, Results

SECOND_VIEWS = {
    "augmented": "an augmented copy of the *same* camera as the second view",
    "desynchronised": "a second view half a transition late",
    "self_2x": "self-reconstruction for twice the steps",
    "one_camera": "training on one camera only",
}
"""Arms without a second camera at the same moment, and what they are."""


class Effects:
    """Effects of arms, by what they are about."""

    def __init__(self, results: Results, found: Sequence[Contrast]) -> None:
        self.conditions = results.conditions
        self._effects = {(c.measure, c.treatment, c.baseline, c.condition): c.effect for c in found}

    def get(self, measure: str, treatment: str, baseline: str, condition: str) -> PairedEffect | None:
        """One of them, where it was measured."""
        return self._effects.get((measure, treatment, baseline, condition))

    def has(self, treatment: str, baseline: str) -> bool:
        """Whether two arms were compared anywhere."""
        return any(key[1:3] == (treatment, baseline) for key in self._effects)

    def where(self, measure: str, treatment: str, baseline: str, sign: int) -> list[str]:
        """Conditions in which the interval lies on that side of zero."""
        return [c for c in self.conditions if is_beyond(self.get(measure, treatment, baseline, c), sign)]

    def listed(self, names: Sequence[str]) -> str:
        """Conditions in words."""
        return f"all {len(names)}" if list(names) == self.conditions else ", ".join(names) or "none"

    def shares(self, treatment: str) -> str:
        """The gain of an arm over self as a share of that of self + cross, where that has one."""
        words = []
        for condition in self.where("action_bits", "self_cross", "self", 1):
            effect = self.get("action_bits", treatment, "self", condition)
            whole = self.get("action_bits", "self_cross", "self", condition)
            if effect is not None and whole is not None:
                words.append(f"{condition} {effect.mean / whole.mean:.0%}")
        return ", ".join(words)


def conclusion(
    results: Results, main: Sequence[Contrast], rest: Sequence[Contrast], decisive: dict[str, PairedEffect]
) -> str:
    """The paragraph: what was claimed, what controls say of it, what else the codes tell."""
    effects = Effects(results, [*main, *rest])
    parts = _of_the_gain(effects) + _of_controls(effects) + _of_the_camera(effects, results)
    if (effect := decisive.get("action_bits over self")) is not None:
        parts.append(_of_interaction(effect))
    return " ".join(parts + _of_nuisances(results) + _of_the_ceiling(results))


def _of_the_gain(effects: Effects) -> list[str]:
    more, less = (effects.where("action_bits", "self_cross", "self", sign) for sign in (1, -1))
    parts = [
        f"{len(effects.conditions)} nuisances. Against self-reconstruction alone, cross-viewpoint reconstruction gives "
        f"more bits about the action under {effects.listed(more)} and fewer under {effects.listed(less)} (95 % "
        "intervals that exclude zero, not adjusted for the number of nuisances; adjusted p below)."
    ]
    if effects.has("self_cross", "mismatched"):
        specific = [c for c in effects.where("action_bits", "self_cross", "mismatched", 1) if c in more]
        failed = [c for c in effects.conditions if c not in specific]
        parts.append(
            "It also beats its negative control, reconstruction across *mismatched* transitions, as the claim needs, "
            f"under {effects.listed(specific)}; **the claim holds there and fails under {effects.listed(failed)}**."
        )
    return parts


def _of_controls(effects: Effects) -> list[str]:
    parts = []
    if shares := effects.shares("mismatched"):
        above = effects.where("action_bits", "mismatched", "self", 1)
        parts.append(
            f"The control reaches this much of the gain by itself: {shares}; its interval lies above zero under "
            f"{effects.listed(above)}."
        )
    others = [f"{what} {shares}" for arm, what in SECOND_VIEWS.items() if (shares := effects.shares(arm))]
    if others:
        parts.append(f"Arms that never see two cameras at one moment reach, of the gain: {'; '.join(others)}.")
    return parts


def _of_the_camera(effects: Effects, results: Results) -> list[str]:
    fewer = effects.where("view_bits", "self_cross", "self", -1)
    part = f"Single tokens tell less about the camera than those of self under {effects.listed(fewer)}"
    if effects.has("self_cross", "mismatched"):
        specific = [c for c in effects.where("view_bits", "self_cross", "mismatched", -1) if c in fewer]
        part += f", in a way that the control does not share under {effects.listed(specific)}"
    joint = [
        float(np.mean(values))
        for condition in effects.conditions
        if len(values := results.values(condition, "self_cross", "joint_view_bits"))
    ]
    if joint and np.isfinite(joint).all():
        part += (
            f"; all tokens together still give nearly every camera a code of its own ({min(joint):.2f} to "
            f"{max(joint):.2f} bits about which of the cameras it is, log2 of their number at most)"
        )
    return [f"{part}."]


def _of_nuisances(results: Results) -> list[str]:
    """What self + cross tells more of than self, beside the action."""
    words = []
    for measure, name in (("distractor_bits", "the distractor"), ("brightness_bits", "the brightness")):
        for condition in results.conditions:
            rows = [results.values(condition, arm, measure) for arm in ("self", "self_cross", "mismatched")]
            if all(len(row) and np.isfinite(row).all() for row in rows):
                own, cross, control = (row.mean() for row in rows)
                words.append(f"{name} ({condition}: {own:.3f} to {cross:.3f} bits, control {control:.3f})")
    if not words:
        return []
    return [
        "What all cameras see without its being an action, they tell more of too, from self to self + cross: "
        f"{', '.join(words)}."
    ]


def _of_interaction(effect: PairedEffect) -> str:
    verdict = (
        "as an action-centric effect predicts"
        if is_beyond(effect, 1)
        else "the opposite of what an action-centric effect predicts"
        if is_beyond(effect, -1)
        else "that it helps more against camera motion than against a shared distractor is not borne out"
    )
    return (
        "The decisive interaction, its gain when cameras move independently minus its gain when all cameras see a "
        f"distractor, is {signed(effect)} bits: {verdict}."
    )


def _of_the_ceiling(results: Results) -> list[str]:
    ways = []
    for name in results.conditions:
        values = [results.values(name, arm, "action_bits") for arm in ("self", "self_cross", "supervised")]
        if not all(len(value) for value in values):
            continue
        start, reached, ceiling = (float(value.mean()) for value in values)
        if ceiling > start:
            ways.append(f"{name} {(reached - start) / (ceiling - start):.0%}")
    if not ways:
        return []
    return [
        "Codes of the same size that were asked for the action show that the bottleneck is not what limits: from self "
        f"to them, cross-viewpoint reconstruction goes {', '.join(ways)} of the way."
    ]


def is_beyond(effect: PairedEffect | None, sign: int) -> bool:
    """Whether the interval lies on that side of zero."""
    if effect is None:
        return False
    return effect.ci95[0] > 0 if sign > 0 else effect.ci95[1] < 0


def signed(effect: PairedEffect) -> str:
    """`+0.205 (+0.165 to +0.243)`."""
    return f"{effect.mean:+.3f} ({effect.ci95[0]:+.3f} to {effect.ci95[1]:+.3f})"
