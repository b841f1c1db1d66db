"""The audit stage: how much each latent action model's codes tell about the action, on held-out episodes."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from core.config import Config
from core.device import default_device
from core.frames import FeatureCache
from core.run import Stage, read_manifest, say, write_json
from core.store import Store
from lam.audit.mutual_information import code_perplexity, linear_gaussian_bits
from lam.audit.probes import linear_probe, one_hot
from lam.checkpoint import load_lam
from lam.codebook_watch import start_codebook
from lam.dataset import DataOptions, TransitionDataset, transition_actions
from lam.label import codes_of, require_fit
from lam.mixture import Mixture
from lam.model import LatentActionModel


class AuditConfig(Config):
    """A run of scripts/audit_lam.py."""

    out: str
    """Directory of audit.json."""
    store: str
    """Directory of episodes with actions; an audit may read those that training may not."""
    features: str
    """Directory of the store's feature cache (scripts/cache_features.py)."""
    lams: dict[str, str]
    """Run directories of the latent action models to compare, by the name of their row."""
    views: tuple[str, ...] = ()
    """Cameras to encode from; empty: all of the store."""
    action_dims: tuple[str, ...] = ("x", "y", "z")
    """Dimensions of the action that have to be explained."""
    gap_s: float | None = None
    """Seconds between the two frames; needed where the models were trained on a range of gaps."""
    permutations: int = 50
    """Shuffles behind the null."""
    seed: int = 0
    """Folds, shuffles, resampled episodes and the weights of the untrained floor."""


class Sample(NamedTuple):
    """The transitions that every row is measured on: each held-out transition once a view."""

    dataset: TransitionDataset
    indices: Int[np.ndarray, " n"]
    views: Int[np.ndarray, " n"]
    episodes: Int[np.ndarray, " n"]
    actions: Float[np.ndarray, "n dims"]

    def features(self, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 2 patches dim"]:
        """Features of both frames of some of the transitions."""
        return self.dataset.seen_by(self.indices[rows], self.views[rows])


def audit(config: AuditConfig) -> None:
    """Run the stage: one row a model, the untrained floor and the frozen features beside them, to audit.json."""
    store = Store.open(config.store)
    cache = FeatureCache.open(config.features, store_fingerprint=store.fingerprint)
    fingerprints = {name: read_manifest(path)["fingerprint"] for name, path in config.lams.items()}
    stage = Stage.open(config.out, "audit_lam", config, {"store": store.fingerprint} | fingerprints)
    if stage.is_done:
        return
    models = {name: load_lam(path) for name, path in config.lams.items()}
    forms = {(facts.one_gap_s(config.gap_s), facts.pool) for _, facts in models.values()}
    if len(forms) != 1:
        raise ValueError(f"these models differ in (gap_s, pool): {sorted(forms)}; audit them one form at a time")
    sample = take_sample(store, cache, config, *forms.pop())
    rows = []
    for name, (model, _) in models.items():
        require_fit(model, sample.dataset)
        rows.append(row(name, sample_codes(model, sample), model.config.num_codes, sample, config))
    rows.append(floor_row(next(iter(models.values()))[0], sample, config))
    rows.append(features_row(sample, config))
    seconds = sample.dataset.gaps[0] / store.info.control_hz
    description = f"sum of {', '.join(config.action_dims)} commanded over {seconds} s"
    write_json(stage.path / "audit.json", {"action": description, "rows": rows})
    stage.finish({f"{r['arm']}_bits": r["bits"] for r in rows if r["bits"] is not None})


def take_sample(store: Store, cache: FeatureCache, config: AuditConfig, gap_s: float, pool: int) -> Sample:
    """Held-out transitions as every chosen camera saw them."""
    views = config.views or tuple(store.info.views)
    options = DataOptions(pool=pool)
    dataset = TransitionDataset(store, cache, gap_s=gap_s, split="held_out", views=views, options=options)
    pairs = [(index, view) for index in range(len(dataset)) for view in dataset.available(index)]
    indices, seen_by = (np.array(column) for column in zip(*pairs, strict=True))
    assert store.info.action_space is not None
    if unknown := set(config.action_dims) - set(store.info.action_space.names):
        raise ValueError(f"action_dims {sorted(unknown)} are unknown; this store has {store.info.action_space.names}")
    columns = [store.info.action_space.names.index(name) for name in config.action_dims]
    episodes, frames = dataset.locate(np.arange(len(dataset)))
    actions = transition_actions(store, episodes, frames, dataset.gaps[0])[:, columns]
    return Sample(dataset, indices, seen_by, episodes[indices], actions[indices])


def sample_codes(model: LatentActionModel, sample: Sample) -> Int[np.ndarray, "n tokens"]:
    """Code indices of every transition of the sample."""
    model = model.to(default_device())
    rows = np.arange(len(sample.indices))
    chunks = np.array_split(rows, max(1, len(rows) // 64))
    return np.concatenate([codes_of(model, sample.features(chunk)) for chunk in chunks])


def row(
    arm: str, codes: Int[np.ndarray, "n tokens"], num_codes: int, sample: Sample, config: AuditConfig
) -> dict[str, Any]:
    """Probe error, bits, null and codebook health of one model, with intervals over episodes."""
    latents = one_hot(codes, num_codes)
    bits = linear_gaussian_bits(
        latents, sample.actions, sample.episodes, permutations=config.permutations, seed=config.seed
    )
    values = _probe(arm, latents, sample, config) | {
        "bits": bits.bits,
        "bits_ci95": list(bits.ci95),
        "null_bits": bits.null_mean,
        "null_p95": bits.null_p95,
        "entropy_bits": bits.entropy_bits,
        "perplexity": float(np.mean(code_perplexity(codes, num_codes))),
    }
    say(f"audit {arm}: NMSE {values['probe_nmse']:.3f}, {bits.bits:.2f} bits (null {bits.null_mean:.2f})")
    return values


def floor_row(like: LatentActionModel, sample: Sample, config: AuditConfig) -> dict[str, Any]:
    """The same encoder untrained, its codes placed on its own encodings: what the architecture alone tells."""
    torch.manual_seed(config.seed)
    model = LatentActionModel(like.config, like.feature_dim, like.patches).eval()
    start_codebook(model, Mixture([sample.dataset], [1.0]), config.seed)
    return row("untrained", sample_codes(model, sample), like.config.num_codes, sample, config)


def features_row(sample: Sample, config: AuditConfig) -> dict[str, Any]:
    """A probe on the change of the frozen features themselves (64 random projections): no bottleneck, no training."""
    rng = np.random.default_rng(config.seed)
    projection: np.ndarray | None = None
    parts = []
    for chunk in np.array_split(np.arange(len(sample.indices)), max(1, len(sample.indices) // 64)):
        features = sample.features(chunk)
        change = (features[:, 1].astype(np.float32) - features[:, 0]).reshape(len(chunk), -1)
        if projection is None:
            projection = rng.normal(size=(change.shape[1], 64)).astype(np.float32) / np.sqrt(change.shape[1])
        parts.append(change @ projection)
    empty = dict.fromkeys(("bits", "bits_ci95", "null_bits", "null_p95", "entropy_bits", "perplexity"))
    return _probe("frozen_features", np.concatenate(parts).astype(np.float64), sample, config) | empty


def _probe(arm: str, latents: Float[np.ndarray, "n features"], sample: Sample, config: AuditConfig) -> dict[str, Any]:
    probe = linear_probe(latents, sample.actions, sample.episodes, seed=config.seed)
    return {
        "arm": arm,
        "probe_nmse": probe.nmse,
        "probe_nmse_ci95": list(probe.ci95),
        "probe_nmse_by_dim": dict(zip(config.action_dims, map(float, probe.nmse_by_dim), strict=True)),
        "n": probe.n,
        "episodes": len(np.unique(sample.episodes)),
    }
