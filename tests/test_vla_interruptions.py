"""Pretraining and fine-tuning that are killed at random and started again end where undisturbed ones do."""

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_models import timm_lm
from tiny_store import BOTH, SIZE, labels_of, pushes_store

from core.checkpoint import read_header, read_tensors
from core.run import read_manifest
from vla.finetune import FinetuneVlaConfig, finetune
from vla.pretrain import PretrainVlaConfig, pretrain

STEPS, EVERY = 16, 2
TRAINING = {"steps": STEPS, "batch_size": 3, "log_every": 1, "validate_every": 5, "checkpoint_every": EVERY}
TRAINING |= {"mixed_precision": "no", "average_decay": 0.9, "gradient_accumulation": 2, "warmup_steps": 2}
LORA = {"rank": 2, "dropout": 0.1}
CLOSE = {"rel": 1e-5, "abs": 1e-7}
"""Of what several processes learn, killed and not: only the order of sums could differ."""


def sharded(stage: int) -> dict[str, str]:
    """The launcher's words for DeepSpeed."""
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}


LAUNCHERS = {"one": (1, {}), "ddp": (2, {}), **{f"zero{stage}": (2, sharded(stage)) for stage in (1, 2, 3)}}
LAUNCHERS["fsdp"] = (2, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})


def work(kind: str, settings: dict, environment: dict[str, str]) -> None:
    """What a process of a run does."""
    os.environ.update(environment)
    if kind == "pretrain":
        pretrain(PretrainVlaConfig(**settings))
    else:
        finetune(FinetuneVlaConfig(**settings))


class Run:
    """A run of one or several processes, which can be started again and again."""

    def __init__(self, kind: str, settings: dict, out: Path, launcher: str) -> None:
        self.kind, self.settings, self.out = kind, settings | {"out": str(out)}, out
        self.processes, self.environment = LAUNCHERS[launcher]
        # Forked from a server that has everything imported.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch._dynamo", "vla.pretrain", "vla.finetune"])

    def start(self) -> list:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        made = []
        for rank in range(self.processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.processes)}
            environment = self.environment | (where | place if self.processes > 1 else {})
            made.append(self.context.Process(target=work, args=(self.kind, self.settings, environment)))
            made[-1].start()
        return made

    def finish(self) -> Path:
        """Let it come to its end."""
        started = self.start()
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0] * self.processes
        return self.out

    def kill(self, after: int, later_s: float) -> bool:
        """Start it, kill all its processes a moment after it has logged a step, and answer whether that was in time."""
        started = self.start()
        while all(process.is_alive() for process in started) and (self.steps() or [0])[-1] < after:
            time.sleep(0.001)
        time.sleep(later_s)
        for process in started:
            process.kill()
        for process in started:
            process.join()
        # One that lost its partner a moment before may end by an error of its own.
        return any(process.exitcode == -signal.SIGKILL for process in started)

    def lines(self) -> list[dict]:
        file = self.out / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def steps(self) -> list[int]:
        return [line["step"] for line in self.lines() if "loss" in line]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Settings of each kind of run; fine-tuning goes on from a pretrained model."""
    folder = tmp_path_factory.mktemp("given")
    store = pushes_store(folder / "store")
    (folder / "labels").mkdir()
    labels_of(store).save(folder / "labels/labels.safetensors")
    torch.manual_seed(0)
    part = timm_lm(folder / "language").model_dump()
    common = {"training": TRAINING, "validation_samples": 6}
    first = common | {"store": str(store.path), "labels": str(folder / "labels"), "backbone": part}
    first |= {"image_size": list(SIZE), "views": list(BOTH)}

    @cache
    def pretrained() -> str:
        return str(Run("pretrain", first, folder / "pretrained", "one").finish())

    def settings(name: str) -> tuple[str, dict]:
        if name == "pretrain":
            return "pretrain", first
        if name == "pretrain with lora":
            return "pretrain", first | {"lora": LORA}
        data = {"path": str(store.path), "labels": str(folder / "labels")}
        second = common | {"policy": {"path": pretrained()}, "data": data, "horizon": 4}
        head, _, with_lora = name.partition(" with ")
        return "finetune", second | {"head": {"name": head}} | ({"lora": LORA} if with_lora else {})

    return settings


@pytest.fixture(scope="module")
def straight(given, tmp_path_factory):
    """The same run, undisturbed."""

    @cache
    def finished(name: str, launcher: str) -> Path:
        return Run(*given(name), tmp_path_factory.mktemp("straight") / "run", launcher).finish()

    return finished


def kill_and_go_on(run: Run, kills: int, seed: int = 0) -> None:
    """Kill at steps that lie further and further on, then let it finish; each time it goes on from the last state."""
    draws = random.Random(seed)
    places = [*sorted(draws.sample(range(1, STEPS - 5), kills - 1)), STEPS - 5]
    killed = [run.kill(after, draws.uniform(0.0, 0.04)) for after in places]
    assert any(killed)
    run.finish()
    assert run.steps() == list(range(1, STEPS + 1))
    assert not list(run.out.glob("*training_state*"))
    assert [path.name for path in run.out.glob(".*")] == []


def slow(*names: str) -> list:
    return [pytest.param(*name.split("-"), marks=pytest.mark.slow, id=name) for name in names]


@pytest.mark.parametrize(
    "name", ["pretrain", "flow with lora", *slow("pretrain with lora", "l1_chunk", "bins", "flow")]
)
def test_a_killed_run_ends_bit_identical_to_an_undisturbed_one(given, straight, tmp_path, name):
    run = Run(*given(name), tmp_path / "run", "one")
    kill_and_go_on(run, 2)
    same(run.out, straight(name, "one"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "flow"])
def test_a_run_killed_eight_times_ends_bit_identical_to_an_undisturbed_one(given, straight, tmp_path, name):
    run = Run(*given(name), tmp_path / "run", "one")
    kill_and_go_on(run, 8, seed=1)
    same(run.out, straight(name, "one"))


def same(found: Path, expected: Path) -> None:
    """Weights, header and all that the manifest tells but for times."""
    one, other = (read_tensors(out / "model.safetensors") for out in (expected, found))
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert read_header(found / "model.safetensors") == read_header(expected / "model.safetensors")
    assert read_manifest(found)["summary"] == read_manifest(expected)["summary"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("pretrain", "ddp"),
        ("pretrain", "fsdp"),
        *slow("flow with lora-ddp", "flow-fsdp", "flow with lora-fsdp"),
        *slow(*(f"{kind}-zero{stage}" for stage in (1, 2, 3) for kind in ("pretrain", "flow"))),
    ],
)
def test_two_killed_processes_end_with_the_weights_of_undisturbed_ones_in_one_file(
    given, straight, tmp_path, name, launcher
):
    run = Run(*given(name), tmp_path / "run", launcher)
    kill_and_go_on(run, 1)
    expected, found = (read_tensors(out / "model.safetensors") for out in (straight(name, launcher), run.out))
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=CLOSE["rel"], atol=CLOSE["abs"])
    summaries = (read_manifest(out)["summary"]["loss"] for out in (straight(name, launcher), run.out))
    assert next(summaries) == pytest.approx(next(summaries), **CLOSE)
    weights = [path.name for path in run.out.iterdir() if path.suffix in (".safetensors", ".pt", ".bin")]
    assert weights == ["model.safetensors"]
