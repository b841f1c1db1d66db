"""Training as a user starts it: killed at any step it ends with the same bits; it says what the codebook does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_lam_bad_input import write_store

from core.checkpoint import read_tensors
from core.store import Store

ROOT = Path(__file__).parents[1]
CONFIG = """\
encoder: {name: pixels_patch16, image_size: 32, dtype: float32}
revive_every: 10
model: {network: transformer, width: 32, heads: 2, encoder_blocks: 2, decoder_blocks: 1, code_dim: 8, num_codes: 64}
training: {steps: 70, batch_size: 4, warmup_steps: 5, learning_rate: 3.0e-3, mixed_precision: 'no', log_every: 1,
  checkpoint_every: 7, validate_every: 25, average_decay: 0.9, gradient_accumulation: 2}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_store(tmp_path_factory.mktemp("episodes") / "store")


def command(store: Store, folder: Path, name: str, *words: str) -> list[str]:
    (folder / "lam.yaml").write_text(CONFIG)
    start = [sys.executable, "scripts/train_lam.py", "--config", str(folder / "lam.yaml"), "--out", str(folder / name)]
    return [*start, "--data.noise.store", str(store.path), *words]


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(words: list[str], **environment: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finished(words: list[str], **environment: str) -> str:
    process = run(words, **environment)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return said


def steps_logged(directory: Path) -> int:
    file = directory / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@pytest.fixture(scope="module")
def straight(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finished(command(store, folder, "run"))
    return folder / "run"


@pytest.mark.timeout(600)
def test_a_run_killed_at_several_points_ends_with_the_same_bits_codebook_included(store, straight, tmp_path):
    words = command(store, tmp_path, "run")
    for kill_at in (4, 23, 61):
        process = run(words)
        while steps_logged(tmp_path / "run") < kill_at and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was killed before its end"
        assert not (tmp_path / "run" / "manifest.json").exists()
    assert "resuming" in finished(words)
    wanted, found = (read_tensors(path / "model.safetensors") for path in (straight, tmp_path / "run"))
    assert set(wanted) == set(found)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_two_processes_train_on_episodes_of_unequal_cameras(tmp_path):
    ragged = write_store(tmp_path / "store", lengths=(12, 12, 12), only_front=(0,))
    words = command(ragged, tmp_path, "run", "--fewest_views", "1", "--model.bottleneck", "vq_ema")
    finished([*TWO, *words[1:], "--training.steps", "30"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [sum(line["code_histogram"][0]) for line in lines if "code_histogram" in line]
    assert len(rows) == 3
    assert all(10 * 2 * 2 * 4 < seen < 10 * 2 * 2 * 4 * 2 for seen in rows), "one camera of some, two of others"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["2", "3"])
def test_sharded_training_gives_the_model_of_data_parallel_training_new_codes_included(store, tmp_path, stage):
    pytest.importorskip("deepspeed")
    sharded = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    for name, environment in (("whole", {}), ("sharded", sharded)):
        words = command(store, tmp_path, name, "--training.steps", "12", "--revive_every", "5")
        said = finished([*TWO, *words[1:]], **environment)
        assert "revived" in said
    wanted, found = (read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "sharded"))
    assert set(wanted) == set(found)
    del wanted["bottleneck.counts"]  # Sums in another order may choose another of two codes equally near.
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-3, rtol=1e-3)


def test_the_codebook_is_logged_and_dead_codes_are_replaced_until_the_last_fifth(straight):
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    checks = [line for line in lines if "code_histogram" in line and line["step"] % 10 == 0]
    assert [line["step"] for line in checks] == [10, 20, 30, 40, 50, 60, 70]
    transitions_seen = 10 * 2 * 4 * 2
    for line in checks:
        assert [sum(counts) for counts in line["code_histogram"]] == [transitions_seen] * 4
        assert 1 <= line["perplexity"] <= 64
    revived = [line["step"] for line in checks if line.get("revived", 0) > 0]
    assert revived
    assert max(revived) <= 50, "the last fifth is for settling"
    summary = json.loads((straight / "manifest.json").read_text())["summary"]
    assert {"validation_loss", "validation_cross", "perplexity", "usage", "code_histogram"} <= set(summary)
    assert not (straight / "training_state.safetensors").exists()


def test_gradient_checkpointing_trains_the_same_weights(store, straight, tmp_path):
    finished(command(store, tmp_path, "run", "--gradient_checkpointing", "true"))
    wanted, found = (read_tensors(path / "model.safetensors") for path in (straight, tmp_path / "run"))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-3)
