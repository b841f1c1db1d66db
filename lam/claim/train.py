"""Training and measuring one run after another in each of several processes; what is done is kept, line by line."""

import functools
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from core.json_lines import append_json_line
from core.run import is_done, say
from core.workers import worker_pool
from lam.audit.audit import sample_codes
from lam.audit.subjects import untrained
from lam.checkpoint import load_lam
from lam.claim.measures import Bench, measure
from lam.claim.settings import FLOOR, ClaimConfig, Run, origins, read_records, runs_of, train_config
from lam.sources import open_sources
from lam.train import train, transitions_for


class ClaimError(ValueError):
    """Results that cannot be put together."""


def train_all(config: ClaimConfig) -> list[dict[str, Any]]:
    """Records of all runs, in their order; those that `results.jsonl` lacks are trained first.

    Raises:
        ClaimError: results that are there were measured on other data.
    """
    check_runs(config)
    runs = runs_of(config)
    file = Path(config.out) / "results.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known, origin = read_records(file), origins(config)
    for run in runs:
        if run.key in known and known[run.key]["origin"] != origin[run.condition]:
            raise ClaimError(
                f"{file} holds results of other episodes, features or {config.base} under {run.condition}; give "
                "another --out, or move that file away"
            )
    missing = [run for run in runs if run.key not in known]
    if missing:
        say(f"settle_claim: {len(runs) - len(missing)} of {len(runs)} runs are there; {config.workers} processes")
    with tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run", desc="claim", smoothing=0.05) as bar:
        for record in _finished(config, missing):
            record["origin"] = origin[record["condition"]]
            append_json_line(file, record)
            known[record["key"]] = record
            bar.update()
    return [known[run.key] for run in runs]


def check_runs(config: ClaimConfig) -> None:
    """Read the configuration of every run, so that a wrong key is said now and not after hours.

    Raises:
        ConfigError: a key or value is wrong.
    """
    for run in {run.config_key: run for run in runs_of(config)}.values():
        train_config(config, run)


def _finished(config: ClaimConfig, runs: list[Run]) -> Iterator[dict[str, Any]]:
    if not runs:
        return
    with worker_pool(min(config.workers, len(runs))) as pool:
        for future in as_completed([pool.submit(one_run, config, run) for run in runs]):
            yield future.result()


def one_run(config: ClaimConfig, run: Run) -> dict[str, Any]:
    """Train a run, unless that was done, and measure it."""
    torch.set_num_threads(1)
    started = time.monotonic()
    training = train_config(config, run)
    bench = _bench(Path(config.data) / run.condition, config.test_views, training.gap_s, config.action_dims)
    if run.arm == FLOOR:
        mixture = transitions_for(training, open_sources(training), "train")
        model = untrained(training.model, mixture, training.training.seed)
    else:
        if not is_done(training.out):
            train(training)
        model, _ = load_lam(training.out)
    seconds = time.monotonic() - started
    codes = sample_codes(model, bench.sample)
    _keep_codes(Path(config.runs) / run.folder, codes)
    record = {"key": run.key, **run._asdict(), "seconds": round(seconds, 1)}
    record.pop("config")
    return record | rounded(measure(codes, model.config.num_codes, bench))


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Numbers to five digits behind the point: results are kept for good and should be small."""
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in record.items()}


def _keep_codes(folder: Path, codes: Int[np.ndarray, "n tokens"]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "codes.npy", codes.astype(np.int16))


@functools.lru_cache(maxsize=16)
def _bench(data: Path, views: tuple[str, ...], gap_s: float, action_dims: tuple[str, ...]) -> Bench:
    return Bench(data, views, gap_s, action_dims)
