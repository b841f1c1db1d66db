"""What is measured of each model: its codes of held-out transitions, each seen by the same cameras."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.frames import FeatureCache
from core.store import Store
from lam.audit.audit import AuditConfig, Sample, take_sample
from lam.audit.estimators.barber_agakov import barber_agakov_linear
from lam.audit.estimators.conditional import conditional
from lam.audit.estimators.interface import Sample as Pairs
from lam.audit.mutual_information import (
    code_entropy_bits,
    code_perplexity,
    linear_gaussian_bits,
    log_ratio_bits,
)
from lam.audit.probes import linear_probe, one_hot
from lam.audit.sections.nuisances import nuisances_of
from lam.audit.views import joint_view_bits, view_agreement, view_entropy_bits

DIGITS = 4
NUISANCES = ("distractor", "brightness", "camera_motion")


class Bench:
    """Held-out transitions of a condition, and everything that is known about them."""

    def __init__(
        self, data: Path, views: tuple[str, ...], gap_s: float, action_dims: tuple[str, ...] = ("x", "y", "z")
    ) -> None:
        self.store = Store.open(data / "episodes")
        self.cache = FeatureCache.open(data / "features", store_fingerprint=self.store.fingerprint)
        config = AuditConfig(out="", store="", features="", lams={}, views=views, action_dims=action_dims)
        self.sample: Sample = take_sample(self.store, self.cache, config, gap_s, 1)
        self.views = len(views)

    @cached_property
    def _known(self) -> dict[str, Float[np.ndarray, "n numbers"]]:
        return nuisances_of(self.sample)[0]

    @property
    def hand(self) -> Float[np.ndarray, "n numbers"]:
        """Pose and fingers of the hand at the first frame."""
        return self._known["hand_pose"]

    @property
    def nuisances(self) -> dict[str, Float[np.ndarray, "n numbers"]]:
        """How much each nuisance changes over a transition, where it changes at all."""
        return {name: self._known[name] for name in NUISANCES if name in self._known}


def measure(codes: Int[np.ndarray, "n tokens"], num_codes: int, bench: Bench) -> dict[str, Any]:
    """Every number of a record."""
    latents, episodes = one_hot(codes, num_codes), bench.sample.episodes
    ratios = log_ratio_bits(latents, bench.sample.actions, episodes)
    by_transition = codes.reshape(-1, bench.views, codes.shape[1])
    view_bits = view_entropy_bits(by_transition)
    agreement, kappa = view_agreement(by_transition)
    token_entropy = float(sum(code_entropy_bits(codes[:, [token]]) for token in range(codes.shape[1])))
    about_hand = Pairs(actions=bench.hand, codes=codes, episodes=episodes)
    record = {
        "action_bits": float(ratios.mean()),
        "action_nmse": linear_probe(latents, bench.sample.actions, episodes).nmse,
        "view_bits": float(view_bits.mean()),
        "joint_view_bits": joint_view_bits(by_transition),
        "view_share": float(view_bits.mean()) / max(token_entropy, 1e-9),
        "agreement": agreement,
        "kappa": kappa,
        "token_entropy_bits": token_entropy,
        "perplexity": float(np.mean(code_perplexity(codes, num_codes))),
        "hand_bits": conditional(about_hand, bench.sample.actions, barber_agakov_linear).bits,
    }
    for name, values in bench.nuisances.items():
        record[f"{name}_bits"] = linear_gaussian_bits(latents, values, episodes, permutations=0).bits
    per_episode = {"action_bits": _episode_means(ratios, episodes)}
    per_episode["view_bits"] = _episode_means(np.repeat(view_bits, bench.views), episodes)
    return record | {"per_episode": per_episode}


def _episode_means(values: Float[np.ndarray, " n"], episodes: Int[np.ndarray, " n"]) -> list[float]:
    _, index = np.unique(episodes, return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    return [round(float(mean), DIGITS) for mean in means]


def feature_bits(bench: Bench) -> float:
    """Bits about the action in the change of the frozen features, beside the first frame's: no bottleneck."""
    features = bench.sample.features(np.arange(len(bench.sample.indices))).astype(np.float64)[:, :, 0]
    inputs = np.concatenate([features[:, 1] - features[:, 0], features[:, 0]], axis=1)
    return linear_gaussian_bits(inputs, bench.sample.actions, bench.sample.episodes, permutations=0).bits
