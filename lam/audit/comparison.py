"""Arms of training compared: runs that differ in one setting, paired by seed, on the same held-out episodes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from core.config import Config
from core.drawing import require_drawing, svg
from core.frames import FeatureCache
from core.run import StageError, fingerprint_of, read_manifest, say, versions, write_json, write_text
from core.significance import EpisodeSums, hierarchical_bootstrap, holm, paired_effect, smallest_p
from core.store import Store
from lam.audit.audit import AuditConfig, Sample, sample_codes, take_sample
from lam.audit.mutual_information import linear_gaussian_bits, log_ratio_bits
from lam.audit.probes import linear_probe, one_hot
from lam.checkpoint import load_lam
from lam.label import require_fit
from lam.train import TrainLamConfig

ALPHA = 0.05
QUANTITIES = {"bits": "bits about the action (more is better)", "nmse": "probe NMSE (less is better)"}
NOT_COMPARED = re.compile(
    r"out|gradient_checkpointing|data\.[^.]+\.(store|features|frames\..+)"
    r"|training\.(seed|loader_workers|tracker|log_every|validate_every|checkpoint_every)"
)
"""Settings that name the run or decide how, not what, it computes. What lies in the data's paths is compared."""
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10}


class CompareConfig(Config):
    """A run of scripts/compare_lams.py."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Run directories of scripts/train_lam.py, several seeds of several arms; may stand first, without --runs."""
    out: str
    """Directory of comparison.json and comparison.svg; what was measured is kept there for the next time."""
    store: str
    """Directory of episodes with actions, whose held-out ones are measured on."""
    features: str
    """Directory of the store's feature cache (scripts/cache_features.py)."""
    baseline: str = ""
    """Arm that the others are compared with; empty: that of the first run."""
    allow_differences: bool = False
    """Compare arms that differ in more than one setting: what made the difference is then unknown."""
    views: tuple[str, ...] = ()
    """Cameras to encode from; empty: all of the store."""
    action_dims: tuple[str, ...] = ("x", "y", "z")
    """Dimensions of the action that have to be explained."""
    gap_s: float | None = None
    """Seconds between the two frames; needed where the models were trained on a range of gaps, or different ones."""
    permutations: int = Field(default=20, ge=1)
    """Shuffles behind each run's null."""
    seed: int = 0
    """Folds, shuffles and resampling; not the seed of any run."""


class Arm(NamedTuple):
    """Runs that differ in nothing but their seed."""

    name: str
    """Its values of the settings in which the arms differ."""
    settings: dict[str, Any]
    """Every setting that is compared, by its dotted name."""
    inputs: dict[str, str]
    """Fingerprints of what it learned from."""
    runs: dict[int, str]
    """Run directories by seed."""


def compare(config: CompareConfig) -> dict[str, Any]:
    """Measure the runs that were not measured before, compare the arms; answers what is in comparison.json.

    Raises:
        ValueError: runs that cannot be paired, or that differ in more than was meant to be compared.
    """
    require_drawing()
    if (Path(config.out) / "stage.json").exists():
        raise ValueError(f"--out {config.out} is another run; choose another directory")
    arms = arms_of(config.runs, config.baseline)
    require_comparable(arms, config.allow_differences)
    measured = measure_all(arms, config)
    result = compared(arms, measured, config.seed)
    result |= {"config": config.model_dump(mode="json"), "versions": versions()}
    write_json(Path(config.out) / "comparison.json", result)
    write_text(Path(config.out) / "comparison.svg", picture(result))
    for line in table(result):
        say(line)
    say(f"compare_lams: {config.out}/comparison.json and comparison.svg")
    return result


def arms_of(runs: Sequence[str], baseline: str = "") -> list[Arm]:
    """The arms that the runs belong to, the baseline first, then in the order of their first runs.

    Raises:
        ValueError: an arm has two runs of one seed, or there is none called `baseline`.
        StageError: a directory holds no finished run of scripts/train_lam.py.
    """
    arms: dict[str, Arm] = {}
    for path in runs:
        manifest = _manifest_of(path)
        if manifest["name"] != "train_lam":
            raise StageError(f"{path} is a run of {manifest['name']}, not of train_lam")
        settings = compared_settings(manifest["config"])
        arm = arms.setdefault(fingerprint_of([settings, manifest["inputs"]]), Arm("", settings, manifest["inputs"], {}))
        seed = manifest["config"]["training"]["seed"]
        if seed in arm.runs:
            raise ValueError(
                f"{arm.runs[seed]} and {path} are the same configuration with the same seed {seed}; give one"
            )
        arm.runs[seed] = path
    keys = _differing([arm.settings for arm in arms.values()])
    named = [arm._replace(name=", ".join(_text(arm.settings.get(key)) for key in keys)) for arm in arms.values()]
    names = [arm.name for arm in named]
    if baseline and baseline not in names:
        raise ValueError(f"there is no arm {baseline!r} to be the baseline; the arms are {', '.join(map(repr, names))}")
    return sorted(named, key=lambda arm: bool(baseline) and arm.name != baseline)


def _manifest_of(path: str) -> dict[str, Any]:
    inside = sorted(str(run.parent) for run in Path(path).glob("*/manifest.json"))
    if inside and not (Path(path) / "manifest.json").exists():
        raise StageError(f"{path} is no run but holds {len(inside)}, the first of them {inside[0]}; give {path}/*")
    return read_manifest(path)


def compared_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training that decide what it learns, by dotted name.

    A run from before a setting existed counts as having its default.
    """
    defaults = TrainLamConfig.model_validate({"out": "", "data": {name: {"store": ""} for name in config["data"]}})
    every = _flat(defaults.model_dump(mode="json")) | _flat(config)
    return {key: value for key, value in every.items() if not NOT_COMPARED.fullmatch(key)}


def require_comparable(arms: Sequence[Arm], allow_differences: bool = False) -> None:
    """Every arm may differ from the first one in one setting, and all must have the same seeds.

    Raises:
        ValueError: they do not, there is only one arm, or they learned from different data.
    """
    first, others = arms[0], arms[1:]
    if not others:
        raise ValueError(
            f"{', '.join(first.runs.values())}: only one arm, nothing but the seed differs; give runs of another"
        )
    for arm in others:
        if lines := _lines(first.inputs, arm.inputs):
            raise ValueError(
                f"{_first_run(first)} and {_first_run(arm)} learned from different data: {'; '.join(lines)}"
            )
        lines = _lines(first.settings, arm.settings)
        if len(lines) > 1 and not allow_differences:
            raise ValueError(
                f"{_first_run(first)} and {_first_run(arm)} differ in {len(lines)} settings, any of which could "
                f"be the cause of a difference: {'; '.join(lines)}; "
                "train them alike but for one, or give --allow_differences true"
            )
    every = sorted({seed for arm in arms for seed in arm.runs})
    lacking = [(arm.name, sorted(set(every) - set(arm.runs))) for arm in arms if set(arm.runs) != set(every)]
    if lacking:
        said = "; ".join(f"arm {name!r} has no run of seed {', '.join(map(str, seeds))}" for name, seeds in lacking)
        raise ValueError(f"{said}; runs are paired by seed: train these, or leave out their partners")
    if len(every) < 2:
        raise ValueError(
            f"1 seed an arm says nothing about seeds; train each with 2 or more, {_seeds_needed(1)} for p < .05"
        )


def measure_all(arms: Sequence[Arm], config: CompareConfig) -> dict[str, dict[str, Any]]:
    """What each run measures, by its directory; from `out` where it was measured before."""
    store = Store.open(config.store)
    cache = FeatureCache.open(config.features, store_fingerprint=store.fingerprint)
    if store.info.action_space is None:
        raise ValueError(f"{config.store} has no actions; measure on episodes with actions")
    facts = [load_lam(_first_run(arm))[1] for arm in arms]
    if wrong := {one.encoder_fingerprint for one in facts} - {cache.encoder_fingerprint}:
        raise ValueError(f"{config.features} come from encoder {cache.encoder_fingerprint}, the runs saw {wrong.pop()}")
    forms = {(one.one_gap_s(config.gap_s), one.pool) for one in facts}
    if len(forms) != 1:
        raise ValueError(f"the arms differ in (gap_s, pool): {sorted(forms)}; give --gap_s, and arms of the same pool")
    # What does not change a measurement is left out of what it is known by.
    common = config.model_dump(mode="json", include={"views", "action_dims", "permutations", "seed"})
    common |= {"store": store.fingerprint, "features": cache.fingerprint, "form": sorted(forms)}
    measured: dict[str, dict[str, Any]] = {}
    sample: Sample | None = None
    for path in [path for arm in arms for _, path in sorted(arm.runs.items())]:
        file = Path(config.out) / "measured" / f"{fingerprint_of([read_manifest(path)['fingerprint'], common])}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            sample = sample or take_sample(store, cache, _audit_config(config), *next(iter(forms)))
            write_json(file, measure(path, sample, config) | {"run": path})
            say(f"compare_lams: measured {path}")
        measured[path] = json.loads(file.read_text())
    return measured


def measure(path: str, sample: Sample, config: CompareConfig) -> dict[str, Any]:
    """Sums by episode of one run's bits and normalised squared errors, with samples, null and entropy beside them.

    Squared errors are in units of the mean squared deviation of each dimension, so that their mean is the probe's NMSE;
    resampling episodes takes these units as known.
    """
    model, _ = load_lam(path)
    require_fit(model, sample.dataset)
    latents = one_hot(sample_codes(model, sample), model.config.num_codes)
    given = (latents, sample.actions, sample.episodes)
    bits = linear_gaussian_bits(*given, permutations=config.permutations, seed=config.seed)
    probe = linear_probe(*given, seed=config.seed)
    varies = np.isfinite(probe.nmse_by_dim)
    squared = ((sample.actions - probe.predictions) ** 2)[:, varies]
    errors = (squared / squared.mean(axis=0) * probe.nmse_by_dim[varies]).mean(axis=1)
    names, index, counts = np.unique(sample.episodes, return_inverse=True, return_counts=True)
    return {
        "episodes": names.tolist(),
        "counts": counts.tolist(),
        "bits": np.bincount(index, weights=log_ratio_bits(*given, seed=config.seed)).tolist(),
        "nmse": np.bincount(index, weights=errors).tolist(),
        "null_bits": bits.null_mean,
        "entropy_bits": bits.entropy_bits,
    }


def compared(arms: Sequence[Arm], measured: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Levels of all arms and paired differences of each from the first, p adjusted over these differences."""
    seeds = sorted(arms[0].runs)
    runs = [[measured[arm.runs[one]] for one in seeds] for arm in arms]
    counts = np.asarray(runs[0][0]["counts"])
    levels = [{"arm": a.name, "runs": {str(one): a.runs[one] for one in seeds}} for a in arms]
    differences: list[dict[str, Any]] = [
        {"arm": arm.name, "baseline": arms[0].name, "settings": _lines(arms[0].settings, arm.settings)}
        for arm in arms[1:]
    ]
    for quantity in QUANTITIES:
        sums = [EpisodeSums(np.array([run[quantity] for run in row]), counts) for row in runs]
        for level, one in zip(levels, sums, strict=True):
            interval = list(hierarchical_bootstrap([one], seed=seed))
            level[quantity] = {"mean": float(one.by_seed.mean()), "ci95": interval, "by_seed": one.by_seed.tolist()}
        effects = [paired_effect(one, sums[0], seed=seed) for one in sums[1:]]
        adjusted = {p: holm([getattr(effect, p) for effect in effects]) for p in ("p_wilcoxon", "p_permutation")}
        for number, (row, effect) in enumerate(zip(differences, effects, strict=True)):
            holms = {f"{p}_holm": values[number] for p, values in adjusted.items()}
            by_seed = (sums[number + 1].by_seed - sums[0].by_seed).tolist()
            row[quantity] = effect._asdict() | holms | {"by_seed": by_seed}
    for level, row in zip(levels, runs, strict=True):
        level["bits"] |= {name: float(np.mean([run[name] for run in row])) for name in ("null_bits", "entropy_bits")}
    return {
        "differ_in": _differing([arm.settings for arm in arms]),
        "seeds": seeds,
        "episodes": len(counts),
        "samples": int(counts.sum()),
        "smallest_p_holm": min(1.0, len(differences) * smallest_p(len(seeds))),
        "seeds_needed": _seeds_needed(len(differences)),
        "arms": levels,
        "differences": differences,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines for a terminal: levels, differences, and a warning where no test could have found anything."""
    width = max(len(arm["arm"]) for arm in result["arms"])
    seeds, needed = len(result["seeds"]), result["seeds_needed"]
    lines = [
        f"arms differ in {', '.join(result['differ_in'])}; {seeds} paired seeds, {result['episodes']} held-out "
        f"episodes, {result['samples']} samples; 95 % intervals over seeds and episodes"
    ]
    for arm in result["arms"]:
        bits, nmse = arm["bits"], arm["nmse"]
        lines.append(
            f"  {arm['arm']:{width}}  {bits['mean']:.3f} bits {_span(bits, '.3f')} (null {bits['null_bits']:.3f}, "
            f"entropy {bits['entropy_bits']:.1f})  NMSE {nmse['mean']:.3f} {_span(nmse, '.3f')}"
        )
    lines.append(f"difference from {result['arms'][0]['arm']}:")
    for row in result["differences"]:
        for quantity in QUANTITIES:
            one = row[quantity]
            lines.append(
                f"  {row['arm']:{width}}  {quantity} {one['mean']:+.3f} {_span(one, '+.3f')}, SD {one['sd']:.3f}, "
                f"{one['positive']}/{seeds} seeds above 0, "
                f"permutation p {one['p_permutation']:.3g} (Holm {one['p_permutation_holm']:.3g}), "
                f"Wilcoxon p {one['p_wilcoxon']:.3g} (Holm {one['p_wilcoxon_holm']:.3g})"
            )
    if seeds < needed:
        lines.append(
            f"warning: {seeds} seeds and {len(result['differences'])} comparison(s) cannot give a p under "
            f"{result['smallest_p_holm']:.3g}, whatever the effect: p < .05 takes {needed} seeds; the intervals rest "
            "on differences between seeds being about normal"
        )
    return lines


def picture(result: dict[str, Any]) -> str:
    """An SVG file: a row a quantity; left every seed as a line through the arms, right the differences."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names, baseline = [arm["arm"] for arm in result["arms"]], result["arms"][0]["arm"]
    with rc_context(STYLE):
        figure = Figure(figsize=(max(7.0, 2.2 * len(names) + 2), 6.0), layout="constrained", facecolor="white")
        figure.suptitle(f"{len(result['seeds'])} paired seeds, {result['episodes']} held-out episodes")
        panels = figure.subplots(2, 2, width_ratios=(len(names), len(names) - 0.5))
        for (left, right), (quantity, label) in zip(panels, QUANTITIES.items(), strict=True):
            left.plot(names, [arm[quantity]["by_seed"] for arm in result["arms"]], "o-", color="0.55", lw=1, ms=4)
            left.plot(names, [arm[quantity]["mean"] for arm in result["arms"]], "_", color="black", ms=22, mew=2)
            left.set(ylabel=label, title="each line one seed, each bar a mean")
            right.axhline(0, color="0.3", lw=1, ls=(0, (4, 3)))
            for number, row in enumerate(result["differences"]):
                one = row[quantity]
                right.vlines(number, *one["ci95"], color="#1f6fb4", lw=2)
                right.plot(number, one["mean"], "s", color="#1f6fb4", ms=7)
                right.plot(np.full(len(one["by_seed"]), number + 0.12), one["by_seed"], "o", color="0.55", ms=4)
            right.set(
                ylabel=f"minus {baseline}", title="paired difference, 95 % interval", xlim=(-0.6, len(names) - 1.4)
            )
            right.set_xticks(range(len(names) - 1), [f"{row['arm']}" for row in result["differences"]])
            left.margins(x=0.25)
    return svg(figure, "comparison", {})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def _lines(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [f"{key} ({_text(first.get(key))}, {_text(other.get(key))})" for key in _differing([first, other])]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _first_run(arm: Arm) -> str:
    return next(iter(arm.runs.values()))


def _seeds_needed(comparisons: int) -> int:
    """Fewest seeds with which every comparison could reach p < .05 after adjustment."""
    return next(seeds for seeds in range(2, 100) if comparisons * smallest_p(seeds) < ALPHA)


def _span(one: dict[str, Any], form: str) -> str:
    return f"[{one['ci95'][0]:{form}}, {one['ci95'][1]:{form}}]"


def _audit_config(config: CompareConfig) -> AuditConfig:
    fields = ("out", "store", "features", "views", "action_dims", "gap_s", "permutations", "seed")
    return AuditConfig(lams={}, **{name: getattr(config, name) for name in fields})
