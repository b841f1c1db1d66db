"""The chain of stages as boxes with what each made and how long it took."""

from typing import Any, NamedTuple

from eval.page.run_files import RunFiles

BOX_WIDTH, BOX_HEIGHT, GAP = 138, 92, 26
FACTS = ("episodes", "frames", "transitions", "demonstrations", "perplexity", "validation_accuracy", "rows")
STAGES = (
    ("episodes", "Episodes", "video without actions", 0, 0),
    ("lam", "Latent actions", "model of frame pairs", 1, 0),
    ("labels", "Latent labels", "a code a transition", 2, 0),
    ("pretrain", "Pretraining", "predicts the codes", 3, 0),
    ("finetune", "Fine-tuning", "a few real actions", 4, 0),
    ("evaluate", "Closed loop", "held-out seeds", 5, 0),
    ("audit", "Audit", "codes against actions", 1, 1),
    ("demonstrations", "Demonstrations", "video with actions", 4, 1),
)
"""Directory, title, what it is, column, row."""


class Box(NamedTuple):
    """One stage in the picture."""

    title: str
    about: str
    fact: str
    """The best known number of what it made; empty where there is none."""
    time: str
    x: int
    y: int
    is_done: bool


def duration(seconds: float) -> str:
    """Seconds in words of useful precision."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def boxes(run: RunFiles) -> list[Box]:
    """The picture of a run."""
    return [_box(run, *stage) for stage in STAGES]


def _box(run: RunFiles, name: str, title: str, about: str, column: int, row: int) -> Box:
    manifests = run.below(name)
    seconds = sum(float(manifest["seconds"]) for manifest in manifests.values())
    fact = f"{len(manifests)} runs" if len(manifests) > 1 else _fact(run.summary(name))
    time = duration(seconds) if manifests else "not run"
    return Box(title, about, fact, time, column * (BOX_WIDTH + GAP), row * (BOX_HEIGHT + 34), bool(manifests))


def _fact(summary: dict[str, Any]) -> str:
    for fact in FACTS:
        if isinstance(summary.get(fact), int | float):
            return f"{_short(summary[fact])} {fact.removeprefix('validation_')}"
    return ""


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
