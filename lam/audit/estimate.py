"""Mutual information between anybody's latents and actions, from one file of arrays to one JSON-like report."""

import difflib
import time
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from core.config import Config
from core.run import say
from lam.audit.estimators.by_name import ESTIMATORS, PRIMARY, estimate
from lam.audit.estimators.interface import Estimate, Sample, dense, episodes_of, folds_of, inputs_of
from lam.audit.estimators.networks import predicted
from lam.audit.mutual_information import code_entropy_bits, code_perplexity, shuffled_by_episode
from lam.audit.probes import bootstrap_by_episode, linear_probe, ratio

ARRAYS = ("codes", "latents", "actions", "episodes", "views")
LEAST_SAMPLES = 100
FEW_SAMPLES = 500
EPISODES_PER_FOLD = 10
PROBE_SAMPLES = 50_000
LARGEST = 1e150
"""Of a value, whose square is taken."""


class EstimateConfig(Config):
    """A run of scripts/estimate_mi.py."""

    file: str
    """A .npz with `actions` float (n, a) and `codes` int (n, tokens) and/or `latents` float (n, d); `episodes` int (n,)
    and `views` (n,) where known."""
    estimators: tuple[str, ...] = ()
    """Estimators beside the primary one; empty: all that take what the file has."""
    exploratory: bool = False
    """Also those of published comparisons, which report bits where there are none."""
    permutations: int = Field(default=15, ge=0)
    """Shuffles behind the null."""
    null_samples: int = Field(default=1200, ge=LEAST_SAMPLES)
    """Samples of each shuffle; fewer than in the estimate make the null wider, never narrower."""
    folds: int = Field(default=5, ge=4)
    """Folds of the cross-fitting; at least 4."""
    seed: int = 0
    """Folds, shuffles, resampled episodes, networks."""


class Loaded(NamedTuple):
    """A file's arrays, checked."""

    sample: Sample
    warnings: list[str]


def estimate_file(config: EstimateConfig) -> dict[str, Any]:
    """Everything that there is to say about one file.

    Raises:
        ValueError: the file, an array or a setting cannot be used; one sentence says what would be right.
    """
    names = _chosen(config)
    sample, warnings = load_sample(config.file)
    for warning in warnings:
        say(f"note: {warning}")
    n, episodes = len(sample.actions), len(np.unique(episodes_of(sample)))
    folds_of(sample, config.folds, config.seed)
    started = time.monotonic()
    primary = _report(PRIMARY, sample, config)
    seconds = time.monotonic() - started
    say(f"{PRIMARY}: {primary['bits']:.3f} bits in {seconds:.0f} s; now {len(names) + 2} more and the null")
    null = permutation_null(sample, config)
    of = "latents" if sample.codes is None else "codes"
    report: dict[str, Any] = {"primary": {"estimator": PRIMARY, "of": of} | primary, "null": null}
    if sample.codes is not None and sample.latents is not None:
        report["latents"] = _report(PRIMARY, sample._replace(codes=None), config)
    if sample.codes is not None:
        report["entropy_bits"] = code_entropy_bits(sample.codes)
        sizes = [np.stack([dense(column)], axis=1) for column in sample.codes.T]
        report["perplexity"] = [float(code_perplexity(size, int(size.max()) + 1)[0]) for size in sizes]
    else:
        report["entropy_bits"] = None
    report["ceiling_bits"] = ceiling_bits(sample, config)
    report["probe_nmse"] = probe_nmse(sample, config)
    report |= _others(names, sample, config)
    report |= {"n": n, "episodes": episodes, "folds": config.folds}
    doubts = _doubts(sample, report, config)
    for doubt in doubts:
        say(f"note: {doubt}")
    report["warnings"] = warnings + doubts
    return _without_nan(report)


def load_sample(path: str | Path) -> Loaded:
    """The arrays of a file, checked.

    Raises:
        ValueError: what is wrong, the value, and what would be right.
    """
    arrays = _arrays(Path(path))
    unknown = sorted(set(arrays) - set(ARRAYS))
    warnings = [f"{_misspelt(name)} ignored; the arrays that are read are {', '.join(ARRAYS)}" for name in unknown]
    if "actions" not in arrays or not {"codes", "latents"} & set(arrays):
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; it needs `actions` (n, dims), and `codes` "
            "(n, tokens) or `latents` (n, features)"
        )
    actions = _matrix("actions", arrays["actions"], "dims")
    n = len(actions)
    if n < LEAST_SAMPLES:
        raise ValueError(
            f"{n} samples in {path}; at least {LEAST_SAMPLES} are needed, and {FEW_SAMPLES} to say anything"
        )
    wrong = [f"{name} {array.shape}" for name, array in arrays.items() if name in ARRAYS and array.shape[:1] != (n,)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} beside actions {actions.shape}; all need the same first length")
    if not np.any(np.ptp(actions, axis=0) > 0):
        raise ValueError(f"all {actions.shape[1]} dimensions of actions are constant; they carry no information")
    codes = _codes(arrays["codes"]) if "codes" in arrays else None
    latents = _matrix("latents", arrays["latents"], "features") if "latents" in arrays else None
    if latents is not None and not np.any(np.ptp(latents, axis=0) > 0):
        raise ValueError(f"all {latents.shape[1]} features of latents are constant; they carry no information")
    episodes = _labels("episodes", arrays["episodes"]) if "episodes" in arrays else None
    if episodes is None and "views" in arrays and len(np.unique(_labels("views", arrays["views"]))) > 1:
        episodes = _transitions(actions, len(np.unique(arrays["views"])))
        warnings.append("views without episodes: samples with equal actions are kept in one fold as one transition")
    if "episodes" not in arrays:
        warnings.append(
            "no episodes: every transition counts as independent; neighbouring frames are not, so give episodes"
        )
    return Loaded(Sample(actions, codes, latents, episodes), warnings)


def permutation_null(sample: Sample, config: EstimateConfig, name: str = PRIMARY) -> dict[str, Any]:
    """The same estimate, fitted anew, on actions shuffled by runs of episodes."""
    part = _thinned(sample, config.null_samples, config.seed)
    rng, bits, started = np.random.default_rng(config.seed), [], time.monotonic()
    for number in range(config.permutations):
        order = shuffled_by_episode(episodes_of(part), rng)
        bits.append(estimate(name, part.with_actions(part.actions[order]), config.folds, config.seed).bits)
        spent = time.monotonic() - started
        if spent > 5 and (number + 1) % 5 == 0:
            left = spent / (number + 1) * (config.permutations - number - 1)
            say(f"null {number + 1}/{config.permutations}, ETA {left:.0f} s")
    found = np.array(bits) if bits else np.array([np.nan])
    facts = {"mean": found.mean(), "sd": found.std(), "p95": np.percentile(found, 95)}
    return {key: float(value) for key, value in facts.items()} | {
        "permutations": config.permutations,
        "n": len(part.actions),
    }


def ceiling_bits(sample: Sample, config: EstimateConfig) -> float:
    """What the primary reports for latents of the same form that are made from the actions themselves.

    For codes, as many tokens of as many codes: each the rank of one action dimension, or the next digit of it. For
    continuous latents, the actions.
    """
    part = _thinned(sample, ESTIMATORS[PRIMARY].max_samples, config.seed)
    if part.codes is None:
        return estimate(PRIMARY, part._replace(latents=part.actions), config.folds, config.seed).bits
    varying = part.actions[:, np.ptp(part.actions, axis=0) > 0]
    quantiles = np.argsort(np.argsort(varying, axis=0, kind="stable"), axis=0, kind="stable") / len(varying)
    codes = np.zeros_like(part.codes)
    for token, column in enumerate(part.codes.T):
        size, dim = len(np.unique(column)), token % varying.shape[1]
        digits = quantiles[:, dim] * size
        codes[:, token] = np.minimum(digits.astype(np.int64), size - 1)
        quantiles[:, dim] = digits - codes[:, token]
    return estimate(PRIMARY, part._replace(codes=codes, latents=None), config.folds, config.seed).bits


def probe_nmse(sample: Sample, config: EstimateConfig) -> dict[str, Any]:
    """Error of decoders from latents to actions in their own units, cross-fitted; 1 is chance."""
    part = _thinned(sample, PROBE_SAMPLES, config.seed)
    # Errors are shares, so units do not matter; the squares of huge numbers would.
    inputs = inputs_of(part)
    actions = part.actions / np.maximum(np.abs(part.actions).max(axis=0), np.finfo(np.float64).tiny)
    linear = linear_probe(inputs, actions, episodes_of(part), config.folds, seed=config.seed)
    fold_of = folds_of(part, config.folds, config.seed)
    varies = np.ptp(actions, axis=0) > 0
    errors, deviations = np.zeros((2, int(varies.sum())))
    for fold in range(config.folds):
        test, validation = fold_of == fold, fold_of == (fold + 1) % config.folds
        rows = np.flatnonzero(~test & ~validation), np.flatnonzero(validation)
        means = predicted(inputs, actions[:, varies], *rows, config.seed + fold)
        errors += np.sum((actions[test][:, varies] - means[test]) ** 2, axis=0)
        deviations += np.sum((actions[test][:, varies] - actions[~test][:, varies].mean(axis=0)) ** 2, axis=0)
    return {
        "linear": linear.nmse,
        "linear_ci95": list(linear.ci95),
        "mlp": float(np.mean(errors / deviations)),
    }


def _chosen(config: EstimateConfig) -> list[str]:
    """The estimators to run beside the primary one."""
    if unknown := set(config.estimators) - set(ESTIMATORS):
        raise ValueError(f"estimators {sorted(unknown)} are unknown; there are {', '.join(ESTIMATORS)}")
    names = config.estimators or [name for name, entry in ESTIMATORS.items() if not entry.exploratory]
    exploratory = [name for name, entry in ESTIMATORS.items() if entry.exploratory and config.exploratory]
    return [name for name in dict.fromkeys([*names, *exploratory]) if name != PRIMARY]


def _others(names: list[str], sample: Sample, config: EstimateConfig) -> dict[str, Any]:
    """Reports of other estimators, and why some have none."""
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in names:
        started = time.monotonic()
        try:
            found[name] = _report(name, sample, config)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        if ESTIMATORS[name].exploratory:
            few = config.model_copy(update={"permutations": min(config.permutations, 3)})
            found[name] |= {"exploratory": True, "null": permutation_null(sample, few, name)}
        say(f"{name}: {found[name]['bits']:.3f} bits in {time.monotonic() - started:.0f} s")
    return {"estimators": found, "left_out": left_out}


def _report(name: str, sample: Sample, config: EstimateConfig) -> dict[str, Any]:
    """An estimate with its interval over episodes."""
    part = _thinned(sample, ESTIMATORS[name].max_samples, config.seed)
    found = estimate(name, part, config.folds, config.seed)
    return {"bits": found.bits, "ci95": interval(found, part, config.seed), "n": found.n}


def interval(found: Estimate, sample: Sample, seed: int = 0) -> list[float] | None:
    """95 % interval of an estimate, episodes resampled with the fits kept; None where an estimate has no parts."""
    if found.contributions is None:
        return None
    columns = np.stack([found.contributions, np.ones(found.n)], axis=1)
    return list(bootstrap_by_episode(columns, dense(episodes_of(sample)), ratio, seed=seed))


def _thinned(sample: Sample, most: int, seed: int) -> Sample:
    """At most so many samples, chosen at random."""
    n = len(sample.actions)
    return sample if n <= most else sample.take(np.sort(np.random.default_rng(seed).choice(n, most, replace=False)))


def _doubts(sample: Sample, report: dict[str, Any], config: EstimateConfig) -> list[str]:
    """Reasons to believe the estimate less."""
    doubts = []
    n, bits, (low, high) = len(sample.actions), report["primary"]["bits"], report["primary"]["ci95"]
    if n < FEW_SAMPLES:
        doubts.append(f"{n} samples are few; {FEW_SAMPLES} or more tell small information from none")
    if high - low > max(bits, 0.1):
        doubts.append(f"the interval {low:.2f} to {high:.2f} is wider than the estimate; more episodes are needed")
    if report["episodes"] < EPISODES_PER_FOLD * config.folds:
        doubts.append(
            f"{report['episodes']} episodes in {config.folds} folds; the interval wants {EPISODES_PER_FOLD} in each"
        )
    if report["primary"]["n"] < n:
        doubts.append(f"the primary estimate is from {report['primary']['n']} of {n} samples, chosen at random")
    if sample.codes is not None:
        counts = np.unique(dense(sample.codes), return_counts=True)[1]
        alone = np.sum(counts == 1) / n
        if len(counts) == 1:
            doubts.append("the codes never change; they carry no information")
        if alone > 0.2:
            doubts.append(
                f"{alone:.0%} of the samples have a joint code of their own: the entropy is too low, and meaning "
                "that only many tokens have together cannot be seen"
            )
    return doubts


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give a .npz of arrays")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError(f"{path} holds a single array; save with np.savez(file, codes=..., actions=...)")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
        if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{path} holds {foreign[0]!r}, which is no array; save with np.savez")
        return arrays
    except (zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npz ({error}); save with np.savez") from None
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} is no .npz of plain numbers (pickled objects are not read); save with np.savez"
        ) from None


def _misspelt(name: str) -> str:
    near = difflib.get_close_matches(name, ARRAYS, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def _matrix(name: str, array: np.ndarray, columns: str) -> Float[np.ndarray, "samples columns"]:
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} has shape {array.shape}; (n, {columns}) is needed")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} has type {array.dtype}; real numbers are needed")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{name} is NaN or infinite in {len(bad)} of {len(array)} samples, first in {bad[0]}; remove them"
        )
    if np.abs(array.astype(np.float64)).max() > LARGEST:
        raise ValueError(
            f"{name} reaches {np.abs(array).max():.3g}; its square has to be a number, so give other units"
        )
    return array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64)


def _codes(array: np.ndarray) -> Int[np.ndarray, "samples tokens"]:
    if array.dtype.kind not in "iub":
        raise ValueError(
            f"codes have type {array.dtype}; code indices are integers (continuous ones belong in `latents`)"
        )
    if array.ndim != 2 or not array.shape[1]:
        hint = ", for one token codes[:, None]" if array.ndim == 1 else ""
        raise ValueError(f"codes have shape {array.shape}; (n, tokens) is needed{hint}")
    return array.astype(np.int64)


def _transitions(actions: np.ndarray, views: int) -> Int[np.ndarray, " samples"]:
    """A transition is known by its action, for all cameras saw the same."""
    found = dense(actions)
    if 2 * views * (found.max() + 1) < len(actions):
        raise ValueError(
            f"views without episodes: samples of one transition are known by their action, but {len(actions)} samples "
            f"from {views} views have only {found.max() + 1} different actions; give episodes"
        )
    return found


def _labels(name: str, array: np.ndarray) -> Int[np.ndarray, " samples"]:
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        raise ValueError(
            f"{name} has shape {array.shape} and type {array.dtype}; one integer or name a sample is needed"
        )
    return dense(array)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what is unknown is null."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
