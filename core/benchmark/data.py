"""`scripts/benchmark.py data`: how fast transitions are read, in how much memory, how fast episodes are converted."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from core.benchmark.data_sets import CONTROL_HZ, LENGTH, PICTURES, VIEWS, make_store, pictures, views_of
from core.benchmark.loaders import GAP, BareDecoder, BareNumpy, Cached, Loader, OtherLoader, OurLoader, in_turn
from core.benchmark.plots import plot_memory
from core.benchmark.running import Numbers, processor, run_measurements
from core.frame_cache import FramesConfig, open_frames
from core.run import versions
from core.store import Store
from core.video import CODECS, KEYFRAME_EVERY, VideoWriter

LEROBOT, TENSORFLOW, VIDEO = "MVP_LAM_LEROBOT_PYTHON", "MVP_LAM_TENSORFLOW_PYTHON", "MVP_LAM_BENCHMARK_VIDEO"
TIERS: tuple[Literal["video", "jpeg", "png", "uint8"], ...] = ("video", "jpeg", "png", "uint8")
CONVERT = Path(__file__).parents[2] / "scripts/convert_episodes.py"
BARE, RLDS = "bare numpy, uint8", "TensorFlow, RLDS and a shuffle buffer"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is read."""

    sides: tuple[int, ...] = (128, 224)
    episodes: int = 60
    """For speed; ten times as many, at most, for memory."""
    transitions: int = 480
    rounds: int = 5
    memory_side: int = 64
    clips: int = 16
    clip_pictures: int = 600


QUICK = Sizes(sides=(32,), episodes=4, transitions=32, rounds=1, memory_side=16, clips=2, clip_pictures=120)


def benchmark(is_quick: bool, only: Collection[int], out: str | None) -> Iterator[str]:
    """Lines to print while it runs; `only` these measurements (none: all), `out` takes the numbers.

    Beside `out` comes a picture of memory against data size.
    """
    sizes = QUICK if is_quick else Sizes()
    machine: Numbers = {"processor": processor(), "numpy": versions()["numpy"], "is_quick": is_quick}
    machine |= {"pictures": os.environ.get(VIDEO, "drawn"), "episodes": sizes.episodes}
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as folder:
        work = Measurements(sizes, Path(folder), Path(out).with_suffix(".png") if out else None)
        yield from run_measurements({1: work.speed, 2: work.memory, 3: work.conversion}, machine, only, out)
    yield from (f"not measured: {name} is not set" for name in (LEROBOT, TENSORFLOW) if name not in os.environ)


class Measurements:
    """The measurements; each is a method that yields the lines of its table and keeps its numbers."""

    def __init__(self, sizes: Sizes, folder: Path, picture: Path | None) -> None:
        self.sizes, self.folder, self.picture = sizes, folder, picture

    def speed(self, numbers: Numbers) -> Iterator[str]:
        """Random transitions (two frames of two cameras) a processor second; middle, lowest, highest of the rounds."""
        for side in self.sizes.sides:
            source = pictures(os.environ.get(VIDEO), side)
            loaders = self._loaders(side, source)
            others = [loader for loader in loaders.values() if isinstance(loader, OtherLoader)]
            try:
                counts = {name: self._once if "uint8" in name else self.sizes.transitions for name in loaders}
                rates = in_turn(loaders, counts, self.sizes.rounds)
            finally:
                for other in others:
                    other.close()
            yield f"  {side} x {side} pixels"
            yield from _table(rates)
            numbers[str(side)] = rates
            yield from _ratios(rates)

    @property
    def _once(self) -> int:
        """Transitions that take as many frames as there are; read again and again, a mapped file costs less."""
        return self.sizes.episodes * LENGTH // 2

    def _loaders(self, side: int, source: np.ndarray) -> dict[str, Loader]:
        stores = {codec: self._store(side, codec, source) for codec in ("h264", "av1", "png")}
        loaders: dict[str, Loader] = {
            f"decoder alone, {codec}": BareDecoder(stores[codec]) for codec in ("h264", "av1")
        }
        for codec, store in stores.items():
            loaders[f"ours, {codec}"] = OurLoader(store, store)
            if LEROBOT in os.environ:
                question = {"store": str(store.path), "gap_s": GAP / CONTROL_HZ}
                loaders[f"lerobot, {codec}"] = OtherLoader(os.environ[LEROBOT], "other_lerobot", **question)
        for tier in TIERS[1:]:
            directory = self.folder / f"frames_{side}_{tier}"
            frames = open_frames(stores["h264"], FramesConfig(tier=tier, directory=str(directory)))
            loaders[f"ours, cache {tier}"] = OurLoader(stores["h264"], frames, with_actions=tier != "uint8")
        made = self.folder / f"frames_{side}_uint8"
        pixels = {view: next(made.glob(f"*/{view}.npy")) for view in VIEWS}
        loaders["ours, cache uint8"] = Cached(loaders["ours, cache uint8"], pixels.values())
        loaders[BARE] = Cached(BareNumpy(pixels, self.sizes.episodes), pixels.values())
        if TENSORFLOW in os.environ:
            loaders[RLDS] = self._tensorflow(side, source, self.sizes.episodes)
        return loaders

    def _tensorflow(self, side: int, source: np.ndarray, episodes: int, buffer: int = 1000) -> OtherLoader:
        frames = self.folder / f"frames_{side}_{episodes}.npz"
        arrays = {v: np.stack([views_of(source, e)[v] for e in range(episodes)]) for v in VIEWS}
        np.savez(frames, **arrays)  # type: ignore[arg-type]
        question = {"records": str(frames.with_suffix(".tfrecord")), "frames": str(frames), "gap": GAP}
        return OtherLoader(os.environ[TENSORFLOW], "other_tensorflow", **question, buffer=buffer)

    def _store(self, side: int, codec: str, source: np.ndarray, episodes: int = 0) -> Store:
        episodes = episodes or self.sizes.episodes
        return make_store(self.folder / f"store_{side}_{codec}_{episodes}", source, episodes, codec)  # type: ignore[arg-type]

    def memory(self, numbers: Numbers) -> Iterator[str]:
        """Resident memory (MB, mapped files included) while transitions are read, as the data set grows tenfold."""
        side, counts = self.sizes.memory_side, [self.sizes.episodes * factor for factor in (1, 3, 10)]
        source = pictures(os.environ.get(VIDEO), side)
        yield f"  {'episodes':38s}" + "".join(f"{count:>10d}" for count in counts) + "     growth"
        by_frames: dict[str, dict[int, float]] = {}
        for name, cost in self._memory_of(side, source).items():
            found = [cost(count) for count in counts]
            numbers[name] = dict(zip(counts, found, strict=True))
            by_frames[name] = {count * LENGTH * len(VIEWS): mb for count, mb in numbers[name].items()}
            growth = 100 * (found[-1] / found[0] - 1)
            yield f"  {name:38s}" + "".join(f"{mb:10.0f}" for mb in found) + f"{growth:10.1f} %"
        if self.picture:
            plot_memory(by_frames, 3 * side * side, self.picture)

    def _memory_of(self, side: int, source: np.ndarray) -> dict[str, Callable[[int], float]]:
        """Ways to read, each giving its memory for a number of episodes."""

        def ours(tier: str) -> Callable[[int], float]:
            return lambda episodes: _resident_of_ours(self._store(side, "h264", source, episodes), tier, self.folder)

        def of_other(make: Callable[[int], OtherLoader]) -> Callable[[int], float]:
            def resident(episodes: int) -> float:
                loader = make(episodes)
                try:
                    return loader(self.sizes.transitions, seed=0).resident_mb
                finally:
                    loader.close()

            return resident

        ways = {f"ours, {tier}": ours(tier) for tier in TIERS}
        if LEROBOT in os.environ:
            question = {"gap_s": GAP / CONTROL_HZ}
            ways["lerobot, h264"] = of_other(
                lambda n: OtherLoader(
                    os.environ[LEROBOT],
                    "other_lerobot",
                    store=str(self._store(side, "h264", source, n).path),
                    **question,
                )
            )
        if TENSORFLOW in os.environ:
            ways["TensorFlow, buffer of all transitions"] = of_other(
                lambda n: self._tensorflow(side, source, n, buffer=n * (LENGTH - GAP))
            )
        return ways

    def conversion(self, numbers: Numbers) -> Iterator[str]:
        """Clips to a store, frames a second of wall time, beside ffmpeg that decodes and encodes the same clips."""
        side = self.sizes.sides[-1]
        clips = self._clips(side)
        frames = self.sizes.clip_pictures * self.sizes.clips
        rates: dict[str, list[float]] = {}
        for turn in range(min(3, self.sizes.rounds) + 1):
            for name, run in {"ours": self._convert, "ffmpeg alone": _ffmpeg}.items():
                out = self.folder / f"converted_{name.split()[0]}_{turn}"
                start = time.perf_counter()
                done = run(clips, out)
                if done and turn:
                    rates.setdefault(name, []).append(frames / (time.perf_counter() - start))
        yield from _table(rates)
        numbers["frames a second"] = rates
        if len(rates) == 2:
            yield f"  ours / ffmpeg alone: {median(rates['ours']) / median(rates['ffmpeg alone']):.2f}"

    def _clips(self, side: int) -> Path:
        source, folder = pictures(os.environ.get(VIDEO), side), self.folder / "clips"
        for number in range(self.sizes.clips):
            clip = folder / f"clip_{number}" / "front.mp4"
            clip.parent.mkdir(parents=True)
            with VideoWriter(clip, (side, side), CONTROL_HZ) as writer:
                for _ in range(self.sizes.clip_pictures // PICTURES):
                    writer.append(source)
                writer.finish()
        return folder

    def _convert(self, clips: Path, out: Path) -> bool:
        command = [sys.executable, CONVERT, clips, out, "--workers", str(os.cpu_count())]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(list(map(str, command)), env=environment, capture_output=True, check=True)
        return True


def _resident_of_ours(store: Store, tier: str, folder: Path) -> float:
    """In a process of its own, so that nothing that came before counts."""
    program = (
        "import sys, json; from core.store import Store; from core.frame_cache import FramesConfig, open_frames;"
        "from core.benchmark.loaders import OurLoader; store = Store.open(sys.argv[1]);"
        "source = open_frames(store, FramesConfig(**json.loads(sys.argv[2])));"
        "print(OurLoader(store, source)(int(sys.argv[3]), 0).resident_mb)"
    )
    settings: dict[str, Any] = {"tier": tier} | (
        {} if tier == "video" else {"directory": str(folder / f"{store.path.name}_{tier}")}
    )
    if tier != "video":
        open_frames(store, FramesConfig(**settings))  # made here, so that only reading is measured
    arguments = [str(store.path), json.dumps(settings), "20000" if tier == "uint8" else "1000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return float(run.stdout)


def _ffmpeg(clips: Path, out: Path) -> bool:
    """Each clip decoded and encoded as a store does it, as many at a time as there are cores; False without ffmpeg."""
    if shutil.which("ffmpeg") is None:
        return False
    out.mkdir()
    codec = CODECS["h264"]
    options = ["-c:v", codec.encoder, "-g", str(KEYFRAME_EVERY), "-threads", "1"]
    options += [word for name, value in codec.options.items() for word in (f"-{name}", value)]
    waiting = sorted(clips.glob("*/*.mp4"))
    while waiting:
        now, waiting = waiting[: os.cpu_count()], waiting[os.cpu_count() :]
        commands = [
            ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(clip), *options, str(out / f"{clip.parent.name}.mp4")]
            for clip in now
        ]
        for process in [subprocess.Popen(command) for command in commands]:
            process.wait()
    return True


def _table(rates: dict[str, list[float]]) -> Iterator[str]:
    for name, values in rates.items():
        yield f"  {name:38s}{median(values):10.0f}  ({min(values):.0f} to {max(values):.0f})"


def _ratios(rates: dict[str, list[float]]) -> Iterator[str]:
    pairs = [(f"ours, {codec}", f"lerobot, {codec}") for codec in ("h264", "av1", "png")]
    pairs += [("ours, cache jpeg", RLDS), ("ours, cache uint8", BARE)]
    for ours, other in pairs:
        if other in rates:
            yield f"  {ours} / {other}: {median(rates[ours]) / median(rates[other]):.2f}"
