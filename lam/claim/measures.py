"""What is measured of each model: its codes of held-out transitions, each seen by the same cameras."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.frames import FeatureCache
from core.store import Store
from lam.audit.audit import AuditConfig, Sample, take_sample
from lam.audit.mutual_information import (
    code_entropy_bits,
    code_perplexity,
    linear_gaussian_bits,
    log_ratio_bits,
)
from lam.audit.probes import linear_probe, one_hot, rank_gaussianise
from lam.audit.views import view_agreement, view_entropy_bits

DIGITS = 4


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
        self.gap = self.sample.dataset.gaps[0]
        self.episodes, self.frames = self.sample.dataset.locate(self.sample.indices)

    def columns(self, name: str) -> Float[np.ndarray, "n 2 numbers"]:
        """A column of the store at both frames of each row."""
        return self._read(lambda episode: self.store.columns(episode)[name])

    def _read(self, of_episode: Any) -> np.ndarray:
        values = {int(episode): np.asarray(of_episode(int(episode))) for episode in np.unique(self.episodes)}
        first = [values[int(e)][f] for e, f in zip(self.episodes, self.frames, strict=True)]
        later = [values[int(e)][f + self.gap] for e, f in zip(self.episodes, self.frames, strict=True)]
        return np.stack([np.stack(first), np.stack(later)], axis=1).astype(np.float64).reshape(len(first), 2, -1)

    @cached_property
    def hand(self) -> Float[np.ndarray, "n 3"]:
        """Where the hand is at the first frame."""
        return self._read(self.store.proprioception)[:, 0, :3]

    @cached_property
    def nuisances(self) -> dict[str, Float[np.ndarray, "n numbers"]]:
        """How much each nuisance changes over a transition, where it changes at all."""
        found = {
            name.removesuffix("_position"): np.diff(self.columns(name), axis=1)[:, 0]
            for name in ("distractor_position", "brightness")
            if name in self.store.info.columns
        }
        found["camera_motion"] = self._camera_motion()
        changing = {name: values[:, np.ptp(values, axis=0) > 1e-6] for name, values in found.items()}
        return {name: values for name, values in changing.items() if values.size}

    def _camera_motion(self) -> Float[np.ndarray, "n 3"]:
        """Movement of each row's own camera in its own axes, metres."""
        out = np.empty((len(self.episodes), 3))
        for row, (episode, frame, view) in enumerate(zip(self.episodes, self.frames, self.sample.views, strict=True)):
            poses = self._extrinsics(int(episode), int(view))[[frame, frame + self.gap]].astype(np.float64)
            eyes = [-pose[:, :3].T @ pose[:, 3] for pose in poses]
            out[row] = poses[0][:, :3] @ (eyes[1] - eyes[0])
        return out

    def _extrinsics(self, episode: int, view: int) -> np.ndarray:
        key = (episode, view)
        if key not in self._poses:
            self._poses[key] = self.store.extrinsics(episode, self.sample.dataset.views[view])
        return self._poses[key]

    @cached_property
    def _poses(self) -> dict[tuple[int, int], np.ndarray]:
        return {}


def bits_given(latents: np.ndarray, values: np.ndarray, given: np.ndarray, episodes: np.ndarray) -> float:
    """I(latents; values | given) by the chain rule, each part a linear Gaussian bound."""
    given = rank_gaussianise(given)
    both = np.concatenate([latents, given], axis=1)
    with_latents, without = (
        linear_gaussian_bits(inputs, values, episodes, permutations=0).bits for inputs in (both, given)
    )
    return with_latents - without


def measure(codes: Int[np.ndarray, "n tokens"], num_codes: int, bench: Bench) -> dict[str, Any]:
    """Every number of a record."""
    latents, episodes = one_hot(codes, num_codes), bench.sample.episodes
    ratios = log_ratio_bits(latents, bench.sample.actions, episodes)
    by_transition = codes.reshape(-1, bench.views, codes.shape[1])
    view_bits = view_entropy_bits(by_transition)
    agreement, kappa = view_agreement(by_transition)
    token_entropy = float(sum(code_entropy_bits(codes[:, [token]]) for token in range(codes.shape[1])))
    record = {
        "action_bits": float(ratios.mean()),
        "action_nmse": linear_probe(latents, bench.sample.actions, episodes).nmse,
        "view_bits": float(view_bits.mean()),
        "view_share": float(view_bits.mean()) / max(token_entropy, 1e-9),
        "agreement": agreement,
        "kappa": kappa,
        "token_entropy_bits": token_entropy,
        "perplexity": float(np.mean(code_perplexity(codes, num_codes))),
        "hand_bits": bits_given(latents, bench.hand, bench.sample.actions, episodes),
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
