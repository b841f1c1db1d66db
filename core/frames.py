"""Features of every frame, computed once and read at random.

features/
  <view>.npy   float16 (rows, patches, dim): the frames of the view's episodes, one after another
  rows.npy     int64 (views, episodes, 2): first row and length of each episode in each view; length 0: not recorded
  done.npy     uint8, one a chunk: 1 when its rows are written, so that a killed build goes on where it stopped
  manifest.json
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from core.config import Config
from core.reduction import Reduction, ReductionError, projection_fingerprint, reduction
from core.rows import RowFile, Rows, RowsError
from core.run import Stage, is_done, read_manifest
from core.store import Store
from core.vision import EncoderConfig, Grid, VisualEncoder, encoder_fingerprint, load_encoder
from core.workers import worker_pool

CHUNK_FRAMES = 256
BATCH = {"cpu": 32, "cuda": 256}


class FeaturesError(ValueError):
    """Features that are missing, incomplete, or were made from something else."""


class FeaturesConfig(Config):
    """What is stored of each frame; with the fingerprints of store and encoder, the key of a cache."""

    views: tuple[str, ...]
    """Cameras whose frames are encoded."""
    pool: int = 1
    """Patches are averaged over squares of this many a side before they are stored."""
    components: int = 0
    """The patches of a frame together are projected on so many principal components; 0: they are stored as they are."""
    encoder: EncoderConfig
    """The tower, so that whoever uses the features can encode further frames alike."""


class Chunk(NamedTuple):
    """Neighbouring frames of one episode and view: what one worker does at a time."""

    number: int
    view: str
    episode: int
    start: int
    stop: int
    row: int
    """Row of the first of them in the view's file."""


class FeatureCache:
    """Read access to the features of a store's frames."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        summary = manifest["summary"]
        self.directory = directory
        self.fingerprint: str = manifest["fingerprint"]
        self.store_fingerprint: str = manifest["inputs"]["store"]
        self.encoder_fingerprint: str = summary.get("projection", manifest["inputs"]["encoder"])
        self.views = tuple(manifest["config"]["views"])
        self.encoder_config = EncoderConfig(**manifest["config"]["encoder"])
        self.pool: int = manifest["config"]["pool"]
        self.components: int = manifest["config"]["components"]
        self.grid = Grid(summary["grid_rows"], summary["grid_cols"])
        self.num_patches = self.grid.rows * self.grid.cols
        self.dim: int = summary["dim"]
        self._rows = Rows.load(directory, self.views)
        self._features = {view: _file(directory / f"{view}.npy") for view in self.views}

    @classmethod
    def build(
        cls,
        store: Store,
        encoder_config: EncoderConfig,
        directory: str | Path,
        workers: int = 1,
        views: Sequence[str] | None = None,
        pool: int = 1,
        components: int = 0,
    ) -> "FeatureCache":
        """Encode all frames of `views` (default: every camera) in `directory`, unless that is done already.

        One worker encodes in this process; several are processes with one thread each.

        Raises:
            FeaturesError: a view is unknown, the grid cannot be pooled so, there are too few frames for so many
                components, or the disk is too small.
        """
        wanted = tuple(store.info.views if views is None else views)
        config = FeaturesConfig(views=wanted, pool=pool, components=components, encoder=encoder_config)
        if unknown := set(config.views) - set(store.info.views):
            raise FeaturesError(f"views {sorted(unknown)} are not in the store, which has {list(store.info.views)}")
        inputs = {"store": store.fingerprint, "encoder": encoder_fingerprint(encoder_config)}
        stage = Stage.open(directory, "features", config, inputs)
        if not stage.is_done:
            stage.finish(_encode_store(store, encoder_config, config, stage, workers))
        return cls.open(directory, store_fingerprint=store.fingerprint)

    @classmethod
    def open(
        cls, directory: str | Path, *, store_fingerprint: str | None = None, encoder_fingerprint: str | None = None
    ) -> "FeatureCache":
        """The finished cache in `directory`.

        Raises:
            FeaturesError: it is missing or incomplete, or belongs to another store or encoder than the one named.
        """
        if not is_done(directory):
            raise FeaturesError(f"no finished features in {directory}; run scripts/cache_features.py (it resumes)")
        manifest = read_manifest(directory)
        for name, wanted in (("store", store_fingerprint), ("encoder", encoder_fingerprint)):
            if wanted is not None and manifest["inputs"].get(name) != wanted:
                raise FeaturesError(
                    f"features in {directory} were made with {name} {manifest['inputs'].get(name)}, not {wanted}; "
                    "build them again in another directory with scripts/cache_features.py"
                )
        return cls(Path(directory), manifest)

    def rows(self, view: str, episode: int) -> tuple[int, int]:
        """First row and number of rows of an episode in the view's file; (0, 0) where the view was not recorded."""
        return self._rows.of_episode(view, episode)

    def features(
        self, view: str, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n patches dim"]:
        """Features, float16, of the frames `(episodes[i], frames[i])`.

        Raises:
            FeaturesError: there are no features of the view.
            RowsError: an episode lacks the view or the frame.
        """
        self.require_view(view)
        return self._features[view].rows(self._rows.numbers(view, episodes, frames))

    def require_view(self, view: str) -> None:
        """Check that there are features of a camera.

        Raises:
            FeaturesError: there are none.
        """
        if view not in self.views:
            raise FeaturesError(
                f"{self.directory} holds features of the views {list(self.views)}, not of {view!r}; choose one of "
                "them, or run scripts/cache_features.py with that view and another --out"
            )


def _file(path: Path) -> RowFile:
    try:
        return RowFile(path)
    except RowsError as error:
        raise FeaturesError(f"{error}; move its directory away and run scripts/cache_features.py again") from None


def _encode_store(
    store: Store, encoder_config: EncoderConfig, config: FeaturesConfig, stage: Stage, workers: int
) -> dict[str, Any]:
    encoder = load_encoder(encoder_config)
    rows = Rows.of(store, config.views).table
    form = _reduction(stage.path, store, encoder, config)
    _create_files(stage.path, rows, config.views, form)
    chunks = [chunk for view, of_view in zip(config.views, rows, strict=True) for chunk in _chunks(view, of_view)]
    chunks = [chunk._replace(number=number) for number, chunk in enumerate(chunks)]
    done = _done_flags(stage.path, len(chunks))
    remaining = [chunk for chunk in chunks if not done[chunk.number]]
    work = (
        _in_this_process(remaining, stage.path, store, encoder, form)
        if workers == 1
        else _in_processes(remaining, stage.path, store, config, workers)
    )
    total = int(rows[..., 1].sum())
    before = total - sum(chunk.stop - chunk.start for chunk in remaining)
    with tqdm(total=total, initial=before, unit="frame", desc="features", mininterval=1.0) as bar:
        for chunk in work:
            done[chunk.number] = 1
            bar.update(chunk.stop - chunk.start)
            stage.keep_time()
    facts = {
        "frames": total,
        "encoder": encoder_config.name,
        "weights": encoder.source,
        "grid_rows": form.grid.rows,
        "grid_cols": form.grid.cols,
        "dim": form.dim,
    }
    return facts | ({"projection": projection_fingerprint(stage.path)} if config.components else {})


def _reduction(directory: Path, store: Store, encoder: VisualEncoder, config: FeaturesConfig) -> Reduction:
    try:
        return reduction(directory, store, config.views, encoder, config.pool, config.components)
    except ReductionError as error:
        raise FeaturesError(str(error)) from None


def _chunks(view: str, rows: Int[np.ndarray, "episodes 2"]) -> Iterator[Chunk]:
    for episode, (first, length) in enumerate(rows.tolist()):
        for start in range(0, length, CHUNK_FRAMES):
            yield Chunk(0, view, episode, start, min(start + CHUNK_FRAMES, length), first + start)


def _create_files(
    directory: Path, rows: Int[np.ndarray, "views episodes 2"], views: Sequence[str], form: Reduction
) -> None:
    """Claim the space of all files at once: writing to a memory map on a full disk would kill the process."""
    if (directory / "rows.npy").exists():
        return
    lengths = rows[..., 1].sum(axis=1).tolist()
    shape = (form.grid.rows * form.grid.cols, form.dim)
    needed, free = sum(lengths) * shape[0] * shape[1] * 2, shutil.disk_usage(directory).free
    if needed > 0.98 * free:
        raise FeaturesError(
            f"features need {needed / 1e9:.2f} GB and the disk of {directory} has {free / 1e9:.2f} GB free; free some, "
            "choose another directory, fewer views, or a larger pool"
        )
    for view, length in zip(views, lengths, strict=True):
        file = np.lib.format.open_memmap(directory / f"{view}.npy", "w+", np.float16, (length, *shape))
        with open(directory / f"{view}.npy", "r+b") as claimed:
            os.posix_fallocate(claimed.fileno(), 0, file.offset + file.nbytes)
    Rows(tuple(views), rows).save(directory)


def _done_flags(directory: Path, chunks: int) -> np.memmap:
    file = directory / "done.npy"
    if file.exists():
        return np.lib.format.open_memmap(file, "r+")
    np.save(directory / ".done.npy", np.zeros(chunks, np.uint8))
    (directory / ".done.npy").replace(file)
    return np.lib.format.open_memmap(file, "r+")


def _in_this_process(
    chunks: list[Chunk], directory: Path, store: Store, encoder: VisualEncoder, form: Reduction
) -> Iterator[Chunk]:
    for chunk in chunks:
        _encode_chunk(chunk, directory, store, encoder, form)
        yield chunk


def _in_processes(
    chunks: list[Chunk], directory: Path, store: Store, config: FeaturesConfig, workers: int
) -> Iterator[Chunk]:
    start = (directory, str(store.path), config)
    with worker_pool(workers, _start_worker, start) as processes:
        for future in as_completed([processes.submit(_work, chunk) for chunk in chunks]):
            yield future.result()


_worker: tuple[Path, Store, VisualEncoder, Reduction]


def _start_worker(directory: Path, store_path: str, config: FeaturesConfig) -> None:
    global _worker
    torch.set_num_threads(1)
    store, encoder = Store.open(store_path), load_encoder(config.encoder)
    _worker = (directory, store, encoder, _reduction(directory, store, encoder, config))


def _work(chunk: Chunk) -> Chunk:
    _encode_chunk(chunk, *_worker)
    return chunk


def _encode_chunk(chunk: Chunk, directory: Path, store: Store, encoder: VisualEncoder, form: Reduction) -> None:
    device = encoder.device
    images = torch.from_numpy(store.frames(chunk.episode, chunk.view, range(chunk.start, chunk.stop)))
    batches = [form(encoder(batch.to(device))) for batch in images.split(BATCH[device.type])]
    features = torch.cat(batches).half().cpu()
    if not (finite := features.isfinite().flatten(1).all(1)).all():
        frame = chunk.start + int((~finite).nonzero()[0, 0])
        raise FeaturesError(
            f"the features of frame {frame} of view {chunk.view} of {store.episodes[chunk.episode].episode_id} are not "
            "finite in float16; look at that frame, or at the encoder's weights"
        )
    file = np.lib.format.open_memmap(directory / f"{chunk.view}.npy", "r+")
    file[chunk.row : chunk.row + len(images)] = features.numpy()
    file.flush()
