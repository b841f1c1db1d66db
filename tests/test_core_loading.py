"""Batches are the same whoever makes them; workers cost no message, no lock and no process that stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_episodes import INFO, make_episode

from core.live_features import AugmentationConfig, LiveFeatures
from core.loading import StepBatches, in_order
from core.store import Store, StoreError, finish_store, write_part
from core.vision import EncoderConfig

ROOT = Path(__file__).resolve().parents[1]
TINY = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, weights="random", dtype="float32")


class Numbers:
    """Samples that say which they are and what was drawn for them."""

    def __len__(self):
        return 50

    def batch(self, indices, generator):
        return {"index": torch.from_numpy(indices), "drawn": torch.from_numpy(generator.normal(size=len(indices)))}

    def describe(self, indices):
        return [str(index) for index in indices]


def loaded(workers, micros=range(12), rank=0, world_size=1, dataset=None):
    batches = StepBatches(dataset or Numbers(), seed=4, batch_size=6, rank=rank, world_size=world_size)
    return list(in_order(batches, micros, workers))


def same(left, right):
    return (
        left.seed == right.seed
        and np.array_equal(left.indices, right.indices)
        and all(torch.equal(left.batch[name], right.batch[name]) for name in left.batch)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_batch_and_no_order(workers):
    alone, shared = loaded(0), loaded(workers)
    assert len(alone) == len(shared) == 12
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_at_the_very_next_batch(workers):
    whole = loaded(0)
    assert all(same(a, b) for a, b in zip(whole[7:], loaded(workers, range(7, 12)), strict=True))
    assert loaded(workers, range(12, 12)) == []


def test_processes_see_different_samples_and_draws():
    first, second = (loaded(0, rank=rank, world_size=2) for rank in (0, 1))
    assert not set(first[0].indices) & set(second[0].indices)
    assert not torch.equal(first[0].batch["drawn"], second[0].batch["drawn"])


class Damaged(Numbers):
    """One sample that cannot be read."""

    def __init__(self, error):
        self.error = error

    def batch(self, indices, generator):
        if 7 in indices:
            raise self.error
        return super().batch(indices, generator)


@pytest.mark.parametrize("error", [StoreError("frame 3 of e7 is damaged"), FileNotFoundError(2, "gone", "a.mp4")])
def test_what_a_worker_cannot_read_is_told_as_without_workers(error):
    told = []
    for workers in (0, 2):
        batches = in_order(StepBatches(Damaged(error), seed=4, batch_size=6, rank=0, world_size=1), range(12), workers)
        seen = []
        with pytest.raises(type(error)) as caught:
            seen.extend(list(one.indices) for one in batches)
        told.append((str(caught.value), seen))
    assert told[0] == told[1]
    assert told[0][0] == str(error)
    assert "in batch\n" in "".join(caught.value.__notes__), "where it came from can still be shown"


class Seen:
    """Features of frames, encoded as they are asked for; each a little different."""

    def __init__(self, store, source):
        self.source = source
        self.places = [(record.index, frame) for record in store.episodes for frame in range(record.length)]

    def __len__(self):
        return len(self.places)

    def batch(self, indices, generator):
        episodes, frames = np.array([self.places[index] for index in indices]).T
        plain = self.source.features("side", episodes, frames)
        changed = self.source.augmented("side", episodes, frames, generator.integers(2**62, size=len(indices)))
        drawn = generator.normal(size=2)
        return {name: torch.from_numpy(v) for name, v in {"plain": plain, "changed": changed, "drawn": drawn}.items()}

    def describe(self, indices):
        return [str(self.places[index]) for index in indices]


class OfOneProcess:
    """An encoder that, as on a GPU, works in no process that was forked."""

    def __init__(self, encoder):
        self.encoder, self.process = encoder, os.getpid()
        self.device, self.num_patches = encoder.device, encoder.num_patches

    def __call__(self, images):
        assert os.getpid() == self.process, "Cannot re-initialize CUDA in forked subprocess"
        return self.encoder(images)


@pytest.fixture(scope="module")
def frames_of_episodes(tmp_path_factory):
    path = tmp_path_factory.mktemp("episodes") / "store"
    write_part(path, 0, [make_episode(number) for number in range(3)], info=INFO)
    finish_store(path, INFO, 1)
    store = Store.open(path)
    source = LiveFeatures(store, TINY, AugmentationConfig())
    source.encoder = OfOneProcess(source.encoder)
    return Seen(store, source)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_frames_and_leave_encoding_to_the_process_that_trains(frames_of_episodes, workers):
    alone, shared = (loaded(n, range(4), dataset=frames_of_episodes) for n in (0, workers))
    assert len(alone) == len(shared) == 4
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))
    assert alone[0].batch["changed"].abs().sum() > 0
    assert not torch.equal(alone[0].batch["plain"], alone[0].batch["changed"])
    assert same(loaded(workers, range(3, 4), dataset=frames_of_episodes)[0], alone[3])


WITH_WORKERS = """
import multiprocessing, sys
sys.path.insert(0, "tests")
from test_core_loading import Numbers
from core.loading import StepBatches, in_order
batches = in_order(StepBatches(Numbers(), seed=4, batch_size=6, rank=0, world_size=1), range(10**6), 2)
for _ in range(2):  # one of each worker: both have started
    next(batches)
if sys.argv[1:] == ["leave"]:
    raise SystemExit
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
for one in batches:
    pass
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_workers_end_with_a_process_that_is_killed_and_not_by_signals_to_all(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITH_WORKERS]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in pids:
                os.kill(pid, number)
        time.sleep(0.5)
        assert process.poll() is None
        assert all(is_running(pid) for pid in pids)
        process.kill()
    end = time.monotonic() + 30
    while any(is_running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in pids)


def test_a_process_that_leaves_its_workers_behind_can_end(tmp_path):
    """At the end of an interpreter, workers are told by SIGTERM and waited for."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITH_WORKERS, "leave"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
