"""How the use of the codebook went during training, from the run's own files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from core.metrics import read_metrics


class History(NamedTuple):
    """The checks of the codebook in training."""

    steps: Int[np.ndarray, " checks"]
    counts: Int[np.ndarray, "checks tokens codes"]
    """How often each code was used since the check before."""
    revived: Float[np.ndarray, " checks"]
    """Codes that were replaced at the check; NaN where the run does not say."""

    @property
    def shares(self) -> Float[np.ndarray, "checks tokens codes"]:
        """Counts of a token as shares of it."""
        return self.counts / np.maximum(self.counts.sum(-1, keepdims=True), 1)

    @property
    def perplexity(self) -> Float[np.ndarray, "checks tokens"]:
        """How many codes a token uses in effect."""
        return perplexity(self.counts)


def read_history(run: str | Path) -> History | None:
    """The history of a run; None where it logged none. A last line that was cut off is left out."""
    checks = [line for line in read_metrics(Path(run) / "metrics.jsonl") if line.get("code_histogram")]
    if not checks:
        return None
    return History(
        np.array([line["step"] for line in checks]),
        np.array([line["code_histogram"] for line in checks]),
        np.array([line.get("revived", np.nan) for line in checks], dtype=float),
    )


def perplexity(counts: Int[np.ndarray, "*any codes"]) -> Float[np.ndarray, "*any"]:
    """Two to the entropy of how often each code is used: 1 is one code only, the number of codes all equally often."""
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return np.exp(-(shares * np.log(np.maximum(shares, 1e-12))).sum(-1))
