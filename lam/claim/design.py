"""Designs of latent action models side by side: each against one baseline, under the nuisances of the claim."""

from pathlib import Path

from core.drawing import require_drawing
from core.run import say, write_json, write_text
from lam.claim.conclusion import is_beyond
from lam.claim.effects import Contrast, Results, contrasts
from lam.claim.page import arms_table, effects_table, flat, frozen_feature_bits
from lam.claim.plots import arms_picture, label
from lam.claim.settings import ClaimConfig
from lam.claim.train import train_all


def compare_designs(config: ClaimConfig) -> None:
    """Train and measure what is missing, then write effects.json, arms.png and README.md to `out`."""
    require_drawing()
    results = Results(train_all(config))
    out = Path(config.out)
    found = contrasts(results, [(arm, config.baseline) for arm in results.arms if arm != config.baseline])
    features = frozen_feature_bits(config, results)
    arms_picture(out / "arms.png", results, features)
    write_json(out / "effects.json", {"contrasts": [flat(one) for one in found], "frozen_feature_bits": features})
    write_text(out / "README.md", page(results, found, features, config.baseline))
    say(f"settle_design: {out / 'README.md'}")


def page(results: Results, found: list[Contrast], features: dict[str, float], baseline: str) -> str:
    """README.md."""
    seeds = max(len(results.seeds(name, baseline)) for name in results.conditions)
    lines = [
        "# Which design of a latent action model is most about the action?",
        "",
        "Made by `scripts/settle_design.py --config configs/lam/settle_design.yaml` on the data of "
        "`scripts/settle_claim.sh`; the raw results stand in `results.jsonl` beside this page. "
        f"{seeds} paired seeds, codes of the same size for every design. The designs were chosen under N1 with seeds "
        "that are not used here (docs/experiments.md).",
        "",
        *(f"- {sentence}" for sentence in sentences(results, found, features, baseline)),
        "",
        "![Designs](arms.png)",
        "",
        *arms_table(results, features),
        "",
        f"## Every design against {label(baseline)}",
        "",
        *effects_table(found),
        "",
    ]
    return "\n".join(lines)


def sentences(results: Results, found: list[Contrast], features: dict[str, float], baseline: str) -> list[str]:
    """One for each design: where it is beyond the baseline, and how its codes stand to the frozen features."""
    said = []
    for arm in results.arms:
        own = [c for c in found if (c.treatment, c.baseline, c.measure) == (arm, baseline, "action_bits")]
        if not own:
            continue
        more, fewer = ([c.condition for c in own if is_beyond(c.effect, sign)] for sign in (1, -1))
        beaten = [name for name in features if results.values(name, arm, "action_bits").mean() > features[name]]
        said.append(
            f"**{label(arm)}**: more bits about the action than {label(baseline)} under {', '.join(more) or 'none'}, "
            f"fewer under {', '.join(fewer) or 'none'} (95 % intervals that exclude zero); "
            f"more than the frozen features of both frames without any bottleneck under {', '.join(beaten) or 'none'}."
        )
    return said
