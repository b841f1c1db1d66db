"""What a pretraining measures goes to metrics.jsonl and to the chosen tracker, and nowhere before it begins."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import timm_lm
from tiny_store import SIZE, labels_of, pushes_store

from core.throughput import TIMINGS
from core.training import TrainingConfig, make_accelerator
from vla.pretrain import PretrainVlaConfig, pretrain

TRAINING = {"steps": 4, "batch_size": 3, "log_every": 2, "validate_every": 4, "mixed_precision": "no"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    store = pushes_store(folder / "store")
    (folder / "labels").mkdir()
    labels_of(store).save(folder / "labels/labels.safetensors")
    torch.manual_seed(0)
    given = {"store": str(store.path), "labels": str(folder / "labels"), "backbone": timm_lm(folder / "language")}
    return PretrainVlaConfig(**given, image_size=SIZE, validation_samples=6, out="")


def run(config: PretrainVlaConfig, out: Path, tracker: str) -> list[dict]:
    pretrain(config.model_copy(update={"out": str(out), "training": TrainingConfig(**TRAINING, tracker=tracker)}))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_nothing_is_started_by_making_ready(tmp_path, tracker):
    accelerator = make_accelerator(TrainingConfig(**TRAINING, tracker=tracker), tmp_path / "run")
    assert accelerator.trackers == []
    assert list(tmp_path.iterdir()) == []
    assert "wandb" not in sys.modules or sys.modules["wandb"].run is None


def test_tensorboard_holds_every_number_of_every_line(config, tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = run(config, tmp_path / "run", "tensorboard")
    events = reading.EventAccumulator(str(tmp_path / "run/pretrain_vla"))
    events.Reload()
    for name in {name for line in lines for name in line} - {"step"}:
        told = {event.step: event.value for event in events.Scalars(name)}
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert told == pytest.approx(expected, rel=1e-6), name


@pytest.mark.slow
def test_wandb_keeps_a_run_offline_where_nobody_is_logged_in(config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run(config, tmp_path / "run", "wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    for name in ("loss", "validation_accuracy", "tokens_per_s", "data_wait_share", "memory_gb"):
        assert name.encode() in written, name


def test_a_line_says_how_fast_it_was_and_what_held_it_up(config, tmp_path):
    lines = [line for line in run(config, tmp_path / "run", "none") if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    on_gpu = torch.cuda.is_available()
    for line in lines:
        assert set(TIMINGS) - set(line) == (set() if on_gpu else {"mfu"})
        assert line["samples_per_s"] == pytest.approx(3 * line["steps_per_s"], rel=1e-2)
        # More than one token a sample: an image, an instruction and two codes.
        assert line["tokens_per_s"] > 4 * line["samples_per_s"]
        assert math.isfinite(line["tflops_per_s"])
        assert 0 <= line["data_wait_share"] < 1
        assert 0.05 < line["memory_gb"] < 50
