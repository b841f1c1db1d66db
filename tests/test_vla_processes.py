"""Two CPU processes, data parallel or sharded, learn in pretraining what one learns from the same global batch."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import timm_lm
from tiny_store import SIZE, labels_of, pushes_store

from core.checkpoint import read_tensors
from core.throughput import TIMINGS

pytestmark = pytest.mark.timeout(1500)
ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = {"rel": 2e-4, "abs": 1e-5}
"""Orders of summation of float32 gradients, over six steps of Adam."""
OFFLOADED = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
}
LAUNCHES = {
    "alone": (1, {}, {"batch_size": 6}),
    "accumulated": (1, {}, {"batch_size": 3, "gradient_accumulation": 2}),
    "ddp": (2, {}, {"batch_size": 3}),
    **{
        f"zero{stage}": (
            2,
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)},
            {"batch_size": 3},
        )
        for stage in (1, 2, 3)
    },
}
LAUNCHES["offloaded"] = (2, OFFLOADED, {"batch_size": 3})
LAUNCHES["fsdp"] = (2, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"batch_size": 3})
SHARDED = [pytest.param(name, marks=pytest.mark.slow) for name in ("zero1", "zero2", "zero3", "offloaded", "fsdp")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pretraining under each launcher."""
    folder = tmp_path_factory.mktemp("runs")
    store = pushes_store(folder / "store")
    (folder / "labels").mkdir()
    labels_of(store).save(folder / "labels/labels.safetensors")
    torch.manual_seed(0)
    part = timm_lm(folder / "language")

    @cache
    def started(name: str) -> Path:
        processes, environment, sizes = LAUNCHES[name]
        training = {"steps": 6, "log_every": 1, "validate_every": 6, "mixed_precision": "no", "checkpoint_every": 2}
        # Gradients of the first two steps are longer, or Adam would hide a wrong scale.
        training |= {"clip_norm": 3.0}
        settings = {
            "store": str(store.path),
            "labels": str(folder / "labels"),
            "image_size": list(SIZE),
            "backbone": part.model_dump(),
            "training": training | {"warmup_steps": 1} | sizes,
            "out": str(folder / name),
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        script = [str(ROOT / "scripts/pretrain_vla.py"), "--config", str(folder / f"{name}.yaml")]
        done = subprocess.run(
            [*(launch if processes > 1 else [sys.executable]), *script],
            env=os.environ | {"OMP_NUM_THREADS": "1", "MVP_LAM_TRACEBACK": "1"} | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / name

    return started


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["accumulated", "ddp", *SHARDED])
def test_all_that_is_logged_is_that_of_one_process_with_the_same_global_batch(run, name):
    """Losses, accuracies, learning rate and validation; of the timings, how many samples a step is."""
    expected, found = lines(run("alone")), lines(run(name))
    assert [line["step"] for line in expected] == [*range(1, 7), 6]
    assert len({line["learning_rate"] for line in expected if "loss" in line}) == 6
    for one, other in zip(expected, found, strict=True):
        if "loss" in one:
            assert other["samples_per_s"] == pytest.approx(6 * other["steps_per_s"], rel=1e-2)
        one, other = ({key: value for key, value in line.items() if key not in TIMINGS} for line in (one, other))
        assert other == pytest.approx(one, **TOLERANCE)


@pytest.mark.parametrize("name", ["ddp", *SHARDED])
def test_what_is_left_is_one_file_of_whole_weights(run, name):
    expected, found = (read_tensors(run(which) / "model.safetensors") for which in ("alone", name))
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-3, rtol=1e-3)
    assert not list(run(name).glob("training_state*"))
