"""The page of the claim: what was found, in a picture, a table and a paragraph that follows from the intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from core.drawing import require_drawing
from core.run import say, write_json, write_text
from core.significance import PairedEffect, paired_effect, smallest_p
from lam.claim.effects import Contrast, Results, contrasts, interaction
from lam.claim.measures import Bench, feature_bits
from lam.claim.plots import NAMES, arms_picture, effects_picture, label, sweep_picture
from lam.claim.settings import ClaimConfig, runs_of, train_config
from lam.claim.train import train_all

PAIRS = [("self_cross", "self"), ("self_cross", "mismatched"), ("mismatched", "self")]
DECISIVE = ("N2", "N3")
"""Independent camera motion against a distractor that all cameras see."""


def settle(config: ClaimConfig) -> None:
    """Train and measure what is missing, then write effects.json, the pictures and README.md to `out`."""
    require_drawing()
    results = Results(train_all(config))
    out = Path(config.out)
    others = [arm for arm in results.arms if arm not in ("self", "self_cross", "mismatched")]
    main = contrasts(results, PAIRS)
    rest = contrasts(results, [(arm, "self") for arm in others])
    decisive = decisive_interactions(results)
    features = frozen_feature_bits(config, results)
    sweep = sweep_effects(results, config)
    effects_picture(out / "effects.png", main)
    arms_picture(out / "arms.png", results, features)
    if sweep:
        sweep_picture(out / "sweep.png", sweep)
    write_json(
        out / "effects.json",
        {
            "contrasts": [flat(c) for c in main + rest],
            "interactions": {name: effect._asdict() for name, effect in decisive.items()},
            "frozen_feature_bits": features,
            "sweep": {name: {c: e._asdict() for c, e in by.items()} for name, by in sweep.items()},
        },
    )
    text = page(results, main, rest, decisive, features, bool(sweep))
    write_text(out / "README.md", text)
    say(f"settle_claim: {out / 'README.md'}")


def decisive_interactions(results: Results) -> dict[str, PairedEffect]:
    """The effect under independent camera motion minus that under a shared distractor, by measure and baseline."""
    found = {}
    for measure in ("action_bits", "view_bits"):
        for baseline in ("self", "mismatched"):
            effect = interaction(results, *DECISIVE, "self_cross", baseline, measure)
            if effect is not None:
                found[f"{measure} over {baseline}"] = effect
    return found


def sweep_effects(results: Results, config: ClaimConfig) -> dict[str, dict[str, PairedEffect]]:
    """Self + cross minus self in each setting and condition."""
    found: dict[str, dict[str, PairedEffect]] = {}
    for setting in ("main", *results.settings) if results.settings else ():
        for condition in config.more_conditions:
            both = results.pair(condition, "self_cross", config.baseline, "action_bits", setting)
            if both is not None:
                found.setdefault(setting, {})[condition] = paired_effect(*both)
    return found


def flat(contrast: Contrast) -> dict[str, Any]:
    """One JSON object a contrast."""
    return contrast._asdict() | {"effect": contrast.effect._asdict()}


def page(
    results: Results,
    main: list[Contrast],
    rest: list[Contrast],
    decisive: dict[str, PairedEffect],
    features: dict[str, float],
    has_sweep: bool,
) -> str:
    """README.md."""
    seeds = max(len(results.seeds(c, "self_cross")) for c in results.conditions)
    episodes = main[0].effect.episodes
    lines = [
        "# Does cross-viewpoint reconstruction make latent actions more about the action?",
        "",
        "Made by `bash scripts/settle_claim.sh`; what was fixed before the run stands in "
        "[docs/claim.md](../../claim.md), the raw results in `results.jsonl` beside this page, every number below with "
        "its tests in `effects.json`. "
        f"{seeds} paired seeds, {episodes} held-out episodes, each transition seen by 4 cameras, in places that no "
        f"training episode has (N0: two of them train, all stand where they stood). "
        f"With {seeds} pairs the smallest p is {smallest_p(seeds):.2g}.",
        "",
        conclusion(results, main, decisive),
        "",
        "![Effects](effects.png)",
        "",
        *effects_table(main),
        "",
        "## Every arm",
        "",
        "![Arms](arms.png)",
        "",
        *arms_table(results, features),
        "",
        *(["## Every other arm against self", "", *effects_table(rest), ""] if rest else []),
        *(["## Is the sign stable?", "", "![Sweep](sweep.png)", ""] if has_sweep else []),
    ]
    return "\n".join(lines)


def conclusion(results: Results, main: list[Contrast], decisive: dict[str, PairedEffect]) -> str:
    """What follows from the intervals."""
    effects = {(c.measure, c.treatment, c.baseline, c.condition): c.effect for c in main}

    def where(measure: str, treatment: str, baseline: str, sign: int) -> list[str]:
        key = (measure, treatment, baseline)
        return [name for name in results.conditions if is_beyond(effects.get((*key, name)), sign)]

    def listed(names: list[str]) -> str:
        return "all of them" if names == results.conditions else ", ".join(names) or "none"

    more, less = (where("action_bits", "self_cross", "self", sign) for sign in (1, -1))
    specific = [name for name in where("action_bits", "self_cross", "mismatched", 1) if name in more]
    fewer = [set(where("view_bits", "self_cross", baseline, -1)) for baseline in ("self", "mismatched")]
    parts = [
        f"{len(results.conditions)} nuisances. Against self-reconstruction alone, cross-viewpoint reconstruction gives "
        f"more bits about the action under {listed(more)} and fewer under {listed(less)} (95 % intervals that exclude "
        "zero).",
        f"It beats its negative control, reconstruction across *mismatched* transitions, under {listed(specific)} of "
        "those: only there is the gain due to looking at the same motion.",
    ]
    if control := where("action_bits", "mismatched", "self", 1):
        shares = [
            f"{name} {_of(effects, 'mismatched', name) / _of(effects, 'self_cross', name):.0%}"
            for name in control
            if name in more
        ]
        parts.append(
            f"The control does not stay at zero everywhere: it gains by itself under {listed(control)}"
            + (f", that much of the gain: {', '.join(shares)}." if shares else ".")
        )
    parts.append(
        f"Codes tell fewer bits about the camera than those of self under {listed(sorted(fewer[0]))}, and in a way "
        f"that the control does not share under {listed(sorted(fewer[0] & fewer[1]))}."
    )
    if (effect := decisive.get("action_bits over self")) is not None:
        parts.append(_of_interaction(effect))
    if ways := _ways_to_the_ceiling(results):
        parts.append(
            "Codes of the same size that were asked for the action show that the bottleneck is not what limits: from "
            f"self to them, cross-viewpoint reconstruction goes {', '.join(ways)} of the way."
        )
    return " ".join(parts)


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
        f"distractor, is {_signed(effect)} bits: {verdict}."
    )


def _ways_to_the_ceiling(results: Results) -> list[str]:
    found = []
    for name in results.conditions:
        values = [results.values(name, arm, "action_bits") for arm in ("self", "self_cross", "supervised")]
        if not all(len(value) for value in values):
            continue
        start, reached, ceiling = (float(value.mean()) for value in values)
        if ceiling > start:
            found.append(f"{name} {(reached - start) / (ceiling - start):.0%}")
    return found


def effects_table(found: list[Contrast]) -> list[str]:
    """Markdown rows of contrasts."""
    rows = [
        "| nuisance | what | measure | difference (95 %) | seeds above 0 | p | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in found:
        what = f"{label(c.treatment)} minus {label(c.baseline)}"
        measure = c.measure.removesuffix("_bits")
        rows.append(
            f"| {NAMES.get(c.condition, c.condition)} | {what} | {measure} | {_signed(c.effect)} | "
            f"{c.effect.positive}/{c.effect.seeds} | {c.effect.p_permutation:.3f} | {c.p_holm:.3f} |"
        )
    return rows


def is_beyond(effect: PairedEffect | None, sign: int) -> bool:
    """Whether the interval lies on that side of zero."""
    if effect is None:
        return False
    return effect.ci95[0] > 0 if sign > 0 else effect.ci95[1] < 0


def arms_table(results: Results, features: dict[str, float]) -> list[str]:
    """Markdown rows of means over seeds: action bits / NMSE / view bits / kappa / code entropy."""
    names = ("action_bits", "action_nmse", "view_bits", "kappa", "token_entropy_bits", "hand_bits")
    heads = ("action bits", "action NMSE", "view bits", "kappa", "entropy", "hand pose given action, bits")
    rows = ["| nuisance | arm | " + " | ".join(heads) + " | seeds |", "|---|---|" + "---|" * (len(heads) + 1)]
    for condition in results.conditions:
        for arm in results.arms:
            if not results.seeds(condition, arm):
                continue
            means = [np.mean(results.values(condition, arm, name)) for name in names]
            cells = " | ".join(
                f"{mean:.2f}" if name != "action_bits" else f"{mean:.3f}"
                for name, mean in zip(names, means, strict=True)
            )
            rows.append(f"| {condition} | {label(arm)} | {cells} | {len(results.seeds(condition, arm))} |")
        if condition in features:
            rows.append(
                f"| {condition} | frozen feature difference, no bottleneck | {features[condition]:.3f} | | | | | | |"
            )
    return rows


def frozen_feature_bits(config: ClaimConfig, results: Results) -> dict[str, float]:
    """What the frozen features' change tells of the action under each condition, by a ridge regression."""
    gap_s = train_config(config, runs_of(config)[0]).gap_s
    return {
        name: round(feature_bits(Bench(Path(config.data) / name, config.test_views, gap_s, config.action_dims)), 4)
        for name in results.conditions
    }


def _of(effects: dict[tuple[str, str, str, str], PairedEffect], treatment: str, condition: str) -> float:
    return effects["action_bits", treatment, "self", condition].mean


def _signed(effect: PairedEffect) -> str:
    return f"{effect.mean:+.3f} ({effect.ci95[0]:+.3f} to {effect.ci95[1]:+.3f})"
