"""Which latent action models are trained on what to settle the claim: conditions, arms and seeds, spelt out as runs."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from core.config import Config, load_config
from core.json_lines import read_json_lines
from core.run import fingerprint_of, read_manifest
from lam.train import TrainLamConfig

FLOOR = "untrained"
"""The arm that is not trained: what the architecture alone tells."""


class ClaimConfig(Config):
    """A run of scripts/settle_claim.py."""

    out: str
    """Directory of results.jsonl, the page and its pictures."""
    data: str
    """Directory with a folder a condition, each with `episodes` and `features`."""
    runs: str
    """Directory of the trained models."""
    base: str = "configs/lam/claim.yaml"
    """Configuration that all arms start from."""
    conditions: tuple[str, ...]
    """Nuisances: folders of `data`."""
    arms: dict[str, dict[str, Any]]
    """Keys of the base configuration that each arm changes."""
    more_arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further arms, under `more_conditions` only."""
    more_conditions: tuple[str, ...] = ()
    """Nuisances of the further arms and of the sweep."""
    only_arms: tuple[str, ...] = ()
    """Arms to run of all those above; empty: all."""
    baseline: str = "self"
    """The arm that effects are differences from."""
    seeds: int = Field(default=10, ge=2)
    """Paired seeds of each arm and condition."""
    sweep: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings in which `self` and `self_cross` are compared again: keys that each changes in both."""
    sweep_seeds: int = Field(default=3, ge=0)
    """Paired seeds of each setting."""
    test_views: tuple[str, ...] = ("random_1", "random_2", "random_3", "random_4")
    """Cameras whose codes are measured, on held-out episodes."""
    action_dims: tuple[str, ...] = ("x", "y", "z")
    """Dimensions of the action that the codes have to explain."""
    workers: int = Field(default=2, ge=1)
    """Processes, one thread each."""
    only_check: bool = False
    """Read the settings of all runs and do nothing."""

    @model_validator(mode="after")
    def _arms_are_known(self) -> "ClaimConfig":
        known = {**self.arms, **self.more_arms}
        compared = {self.baseline, "self_cross"} if self.sweep else {self.baseline}
        if unknown := {*compared, *self.only_arms} - set(known):
            raise ValueError(f"{sorted(unknown)} are none of the arms {list(known)}")
        if self.only_arms and not compared <= set(self.only_arms):
            raise ValueError(f"only_arms needs {' and '.join(sorted(compared))}, which the others are compared with")
        return self


class Run(NamedTuple):
    """One model to train and measure."""

    condition: str
    setting: str
    """main, or a name of the sweep."""
    arm: str
    seed: int
    config: dict[str, Any]
    """Keys that differ from the base configuration."""

    @property
    def config_key(self) -> str:
        """What identifies its configuration but for condition and seed."""
        return fingerprint_of(self.config)

    @property
    def folder(self) -> str:
        """Folder below `runs`: another one where the arm's configuration is another."""
        return f"{self.condition}/{self.setting}/{self.arm}-{self.config_key}/{self.seed}"

    @property
    def key(self) -> str:
        """What identifies it, its configuration included."""
        return f"{self.condition}/{self.setting}/{self.arm}/{self.seed}:{self.config_key}"


def runs_of(config: ClaimConfig) -> list[Run]:
    """All runs, seed by seed, so that a part of the results is already a whole with fewer seeds."""
    main = [
        Run(condition, "main", arm, seed, changes)
        for conditions, arms in ((config.conditions, config.arms), (config.more_conditions, config.more_arms))
        for seed in range(config.seeds)
        for condition in conditions
        for arm, changes in arms.items()
        if not config.only_arms or arm in config.only_arms
    ]
    sweep = [
        Run(condition, setting, arm, seed, own | config.arms[arm])
        for seed in range(config.sweep_seeds)
        for setting, changes in config.sweep.items()
        for condition in config.more_conditions
        for arm in (config.baseline, "self_cross")
        if (own := _that_concern(arm, changes))
    ]
    return main + sweep


def _that_concern(arm: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The weight of the second reconstruction changes only an arm that has one; another is compared as it is."""
    return {key: value for key, value in changes.items() if arm == "self_cross" or key != "cross_weight"}


def train_config(config: ClaimConfig, run: Run) -> TrainLamConfig:
    """The full configuration of a run.

    Raises:
        ConfigError: a key or value is wrong.
    """
    data = Path(config.data) / run.condition
    overrides = {
        "out": str(Path(config.runs) / run.folder),
        "data.video.store": str(data / "episodes"),
        "data.video.features": str(data / "features"),
        "training.seed": run.seed,
    }
    return load_config(TrainLamConfig, config.base, {} | run.config | overrides)


def origins(config: ClaimConfig) -> dict[str, str]:
    """What identifies the base configuration and the features, and with them the episodes, of each condition's runs.

    Raises:
        StageError: a condition has no finished features.
    """
    base = load_config(TrainLamConfig, config.base, {"out": ""}).model_dump(mode="json", exclude_unset=True)
    conditions = dict.fromkeys((*config.conditions, *config.more_conditions))
    made = {c: read_manifest(Path(config.data) / c / "features") for c in conditions}
    return {c: fingerprint_of([base, manifest["fingerprint"], manifest["inputs"]]) for c, manifest in made.items()}


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Records of finished runs by key."""
    return {record["key"]: record for record in read_json_lines(path)} if path.exists() else {}
