"""Settings of an audit."""

from typing import Literal

from pydantic import AliasChoices, Field

from core.config import Config


class AuditConfig(Config):
    """A run of scripts/audit_lam.py."""

    out: str
    """Directory of page.html and audit.json."""
    data: str = Field(validation_alias=AliasChoices("data", "store"))
    """Directory of episodes; an audit may read actions that training may not. --store is the same."""
    features: str = ""
    """Directory of the store's feature cache (scripts/cache_features.py); empty: the models' own encoder runs now."""
    lam: str = ""
    """Run directory of one latent action model."""
    lams: dict[str, str] = Field(default_factory=dict)
    """Run directories of several latent action models, by the name of their row."""
    views: tuple[str, ...] = ()
    """Cameras to encode from; empty: all of the store."""
    action_dims: tuple[str, ...] = ()
    """Dimensions of the action that have to be explained; empty: x, y, z where the store names them so, else all."""
    action: Literal["gap", "step", "chunk"] = "gap"
    """What is to be explained: increments added up over the gap (last target otherwise), its first step, all steps."""
    gap_s: float | None = None
    """Seconds between the two frames; needed where the models were trained on a range of gaps."""
    transitions: int = Field(default=1500, ge=1)
    """Held-out transitions to measure on, at most; each as all of its cameras saw it."""
    training_transitions: int = Field(default=3000, ge=0)
    """Transitions of training episodes, at most, one camera each, for the ceiling and for probes with few labels."""
    labels: tuple[int, ...] = (50, 200, 1000)
    """Numbers of labelled transitions that a probe is fitted on."""
    label_draws: int = Field(default=10, ge=1)
    """Draws of so many labels."""
    permutations: int = Field(default=20, ge=1)
    """Shuffles behind the null of the linear Gaussian bound and of everything else that is cheap."""
    primary_permutations: int = Field(default=3, ge=1)
    """Shuffles behind the null of the primary estimator, each of which costs as much as the estimate."""
    shifted_frames: int = Field(default=100, ge=1)
    """Frames that are shifted by pixels."""
    seed: int = 0
    """Folds, shuffles, resampled episodes and the weights of the untrained floor."""
