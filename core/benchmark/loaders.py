"""Ways to read random transitions of two cameras, each answering the processor seconds that some took."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from av import CodecContext, Packet

from core.benchmark.data_sets import LENGTH, VIEWS
from core.frame_cache import FrameSource
from core.store import Store
from core.video_index import index_video

GAP = 4
"""Frames between the two of a transition."""
BATCH = 32


class Cost(NamedTuple):
    """What reading cost."""

    cpu_s: float
    resident_mb: float


@runtime_checkable
class Loader(Protocol):
    """Reads transitions."""

    def __call__(self, count: int, seed: int) -> Cost:
        """Read `count` random ones."""


class OurLoader:
    """A frame source of this project: batches of transitions with their actions, as a training asks for them."""

    def __init__(self, store: Store, source: FrameSource, *, with_actions: bool = True) -> None:
        self._source, self._episodes, self._with_actions = source, len(store.episodes), with_actions
        self._numbers = lru_cache(maxsize=1024)(store.actions)

    def __call__(self, count: int, seed: int) -> Cost:
        """Read in batches."""
        generator = np.random.default_rng(seed)
        start = time.process_time()
        for _ in range(max(1, count // BATCH)):
            episodes, frames = drawn(generator, self._episodes)
            for view in VIEWS:
                for number in (frames, frames + GAP):
                    self._source.gather(view, episodes, number)
            for episode, frame in zip(episodes.tolist(), frames.tolist(), strict=True) if self._with_actions else ():
                self._numbers(episode)[frame : frame + GAP].sum(0)
        return Cost(time.process_time() - start, resident_mb())


class BareNumpy:
    """The pixels of all frames as one array, mapped, indexed and let go, and nothing else."""

    def __init__(self, files: dict[str, Path], episodes: int) -> None:
        self._files, self._episodes = files, episodes

    def __call__(self, count: int, seed: int) -> Cost:
        """Map anew, as a fresh process would, and read in batches."""
        generator = np.random.default_rng(seed)
        start = time.process_time()
        mapped = {view: np.load(file, mmap_mode="r") for view, file in self._files.items()}
        for _ in range(max(1, count // BATCH)):
            episodes, frames = drawn(generator, self._episodes)
            for pixels in mapped.values():
                for number in (frames, frames + GAP):
                    pixels[episodes * LENGTH + number]
        resident = resident_mb()
        del mapped, pixels
        return Cost(time.process_time() - start, resident)


class Cached:
    """A loader whose files the operating system has in memory when it begins, whatever ran before it."""

    def __init__(self, loader: Loader, files: Iterable[Path]) -> None:
        self._loader, self._files = loader, tuple(files)

    def __call__(self, count: int, seed: int) -> Cost:
        """Read the files from end to end, then let the loader begin."""
        for file in self._files:
            with file.open("rb", buffering=0) as opened:
                while opened.read(2**24):
                    pass
        return self._loader(count, seed)


class BareDecoder:
    """The decoder alone, fed from memory with what random frames need: no loader of these videos can be faster."""

    def __init__(self, store: Store) -> None:
        self._videos = [_Fed.of(file) for file in sorted((store.path / "videos").rglob("*.mp4"))]

    def __call__(self, count: int, seed: int) -> Cost:
        """Decode the two frames of two cameras of each transition."""
        generator = np.random.default_rng(seed)
        start = time.process_time()
        for _ in range(2 * len(VIEWS) * count):
            video = self._videos[generator.integers(len(self._videos))]
            video.decode(int(generator.integers(len(video.packets))))
        return Cost(time.process_time() - start, resident_mb())


class _Fed(NamedTuple):
    decoder: Any
    packets: list[bytes]
    keys: list[int]
    """Of each packet, the last keyframe up to it."""

    @classmethod
    def of(cls, file: Path) -> "_Fed":
        index, content = index_video(file), file.read_bytes()
        decoder = CodecContext.create(index.codec, "r")
        decoder.extradata, decoder.thread_count = index.extradata, 1
        packets = [content[row["offset"] :][: row["size"]] for row in index.packets]
        keys = np.maximum.accumulate(np.where(index.packets["is_key"], np.arange(len(packets)), 0))
        return cls(decoder, packets, keys.tolist())

    def decode(self, number: int) -> None:
        self.decoder.flush_buffers()
        for encoded in self.packets[self.keys[number] : number + 1]:
            self.decoder.decode(Packet(encoded))
        self.decoder.decode(None)


def drawn(generator: np.random.Generator, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes and first frames of a batch of transitions."""
    return generator.integers(episodes, size=BATCH), generator.integers(LENGTH - GAP, size=BATCH)


class OtherLoader:
    """A program in another Python, which is asked line by line."""

    def __init__(self, python: str, program: str, **question: Any) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        file = Path(__file__).with_name(f"{program}.py")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([python, str(file)], text=True, env=environment, **pipes)
        self._question = question

    def __call__(self, count: int, seed: int) -> Cost:
        """Ask, and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._question | {"count": count, "seed": seed}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended; run it by hand to see why")  # type: ignore[arg-type]
        return Cost(**json.loads(answer))

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()


def in_turn(loaders: dict[str, Loader], counts: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Transitions a processor second: each once to warm up, then all of them `rounds` times in turn."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(rounds + 1):
        for name, load in loaders.items():
            rate = counts[name] / load(counts[name], seed=turn).cpu_s
            if turn:
                rates[name].append(rate)
        sys.stderr.write(f"\rround {turn} of {rounds}")
    sys.stderr.write("\r")
    return rates


def resident_mb() -> float:
    """Memory of this process that is in use, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
