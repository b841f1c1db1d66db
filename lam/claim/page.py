"""The page of the claim: what was found, in a picture, a table and a paragraph that follows from the intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from core.config import ConfigError
from core.drawing import require_drawing
from core.run import say, write_json, write_text
from core.significance import PairedEffect, paired_effect, smallest_p
from lam.claim.conclusion import conclusion, signed
from lam.claim.effects import Contrast, Results, contrasts, interaction
from lam.claim.measures import Bench, feature_bits
from lam.claim.plots import NAMES, arms_picture, effects_picture, label, sweep_picture
from lam.claim.settings import ClaimConfig, runs_of, train_config
from lam.claim.train import check_runs, train_all

PAIRS = [("self_cross", "self"), ("self_cross", "mismatched"), ("mismatched", "self")]
DECISIVE = ("N2", "N3")
"""Independent camera motion against a distractor that all cameras see."""


def settle(config: ClaimConfig) -> None:
    """Train and measure what is missing, then write effects.json, the pictures and README.md to `out`."""
    require_drawing()
    if config.only_arms and "self_cross" not in config.only_arms:
        raise ConfigError(f"only_arms is {list(config.only_arms)}; the claim is about self_cross, so it must be there")
    if config.only_check:
        check_runs(config)
        return
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
        "`docs/claim.md`, the raw results in `results.jsonl` beside this page, every number below with "
        "its tests in `effects.json`. "
        f"{seeds} paired seeds, {episodes} held-out episodes, each transition seen by 4 cameras, in places that no "
        f"training episode has (N0: two of them train, all stand where they stood). "
        f"With {seeds} pairs the smallest p is {smallest_p(seeds):.2g}"
        + (": no difference can be called significant." if smallest_p(seeds) > 0.05 else "."),
        "",
        conclusion(results, main, rest, decisive),
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
            f"| {NAMES.get(c.condition, c.condition)} | {what} | {measure} | {signed(c.effect)} | "
            f"{c.effect.positive}/{c.effect.seeds} | {c.effect.p_permutation:.3f} | {c.p_holm:.3f} |"
        )
    return rows


COLUMNS = {
    "action_bits": "action bits",
    "action_nmse": "action NMSE",
    "view_bits": "view bits, tokens added up",
    "joint_view_bits": "of all tokens",
    "kappa": "kappa",
    "token_entropy_bits": "entropy",
    "hand_bits": "hand pose given action, bits",
    "distractor_bits": "distractor, bits",
    "brightness_bits": "brightness, bits",
    "camera_motion_bits": "camera motion, bits",
}
"""What a record holds, and what it is called."""


def arms_table(results: Results, features: dict[str, float]) -> list[str]:
    """Markdown rows of means over seeds."""
    rows = [
        "| nuisance | arm | " + " | ".join(COLUMNS.values()) + " | seeds |",
        "|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for condition in results.conditions:
        for arm in results.arms:
            if not results.seeds(condition, arm):
                continue
            means = [float(np.mean(results.values(condition, arm, name))) for name in COLUMNS]
            digits = [3 if name == "action_bits" else 2 for name in COLUMNS]
            cells = ["" if np.isnan(mean) else f"{mean:.{n}f}" for mean, n in zip(means, digits, strict=True)]
            rows.append(f"| {condition} | {label(arm)} | {' | '.join(cells)} | {len(results.seeds(condition, arm))} |")
        if condition in features:
            empty = " |" * len(COLUMNS)
            rows.append(
                f"| {condition} | frozen features of both frames, no bottleneck | {features[condition]:.3f} |{empty}"
            )
    return rows


def frozen_feature_bits(config: ClaimConfig, results: Results) -> dict[str, float]:
    """What the frozen features of both frames tell of the action under each condition, by a ridge regression."""
    gap_s = train_config(config, runs_of(config)[0]).gap_s
    return {
        name: round(feature_bits(Bench(Path(config.data) / name, config.test_views, gap_s, config.action_dims)), 4)
        for name in results.conditions
    }
