"""Samples with labels from the label store, against samples that are labelled as they are loaded."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8

from core.benchmark.data_sets import CONTROL_HZ, LENGTH, VIEWS, make_store, pictures
from core.benchmark.meters import process_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import Timing, in_turn, ratio, ratio_row, rows, together
from core.device import bf16_is_fast
from core.frame_cache import FramesConfig
from core.labels import LabelsInfo, LatentLabels
from core.loading import Batch
from core.store import Store
from vla.benchmark.sizes import SETTING, Sizes
from vla.benchmark.steps import OurStep
from vla.dataset import LatentDataset, Source
from vla.images import Frames

Labeller = Callable[[UInt8[np.ndarray, "n 2 height width 3"]], Int[np.ndarray, "n tokens"]]
"""A latent action model with its visual tower: code indices of pairs of frames."""
LabellerOf = Callable[[bool, bool], Labeller]
"""Makes one: whether it is a tiny one, and whether it computes in float32 even where bf16 is fast."""
GAP = 4
"""Frames between the two of a transition."""
STORED, STEP = "labels from the store", "a training step"
BATCHED, SINGLE = "model in the loader, in batches", "model in the loader, one by one"
PUBLISHED = "model in the loader, one by one, float32 (published)"


def labels_in_the_loader(
    sizes: Sizes, device: torch.device, label: Labeller, exact: Labeller, numbers: Numbers
) -> Iterator[str]:
    """Labels from the store against the latent action model in the loader: a batch, and a batch and its step."""
    model = sizes.new_model().to(device)
    with tempfile.TemporaryDirectory(prefix="benchmark_vla_") as folder:
        store = make_store(Path(folder) / "store", pictures(None, sizes.frame_side), sizes.episodes, "h264")
        source = Source(store, Frames(store, FramesConfig(), store.info.views[VIEWS[0]]), model.backbone.prepare)
        dataset = LatentDataset(source, random_labels(store), "train")
        indices = np.random.default_rng(0).choice(len(dataset), sizes.batch, replace=False)
        made = dataset.batch(indices, np.random.default_rng(0))
        step = OurStep(model, {name: value.to(device) for name, value in made.items()}, bf16_is_fast(device))
        calls: dict[str, Callable[[], object]] = {
            STORED: lambda: dataset.batch(indices, np.random.default_rng(0)),
            BATCHED: lambda: labelled_now(dataset, indices, label, sizes.batch),
            SINGLE: lambda: labelled_now(dataset, indices, label, 1),
            PUBLISHED: lambda: labelled_now(dataset, indices, exact, 1),
            STEP: step,
        }
        timings = in_turn(calls, process_clock(device), sizes.rounds - 1)
    yield f"  {sizes.batch} samples"
    yield from rows(timings, numbers)
    yield from _ratios(timings, numbers)


def _ratios(timings: dict[str, Timing], numbers: Numbers) -> Iterator[str]:
    stored = together(timings[STORED], timings[STEP])
    for name in (PUBLISHED, SINGLE, BATCHED):
        yield ratio_row(f"loading, {name} / stored", ratio(timings[name], timings[STORED]), numbers)
        whole = together(timings[name], timings[STEP])
        yield ratio_row(f"with the step, {name} / stored", ratio(whole, stored), numbers)


def labelled_now(dataset: LatentDataset, indices: Int[np.ndarray, " batch"], label: Labeller, at_once: int) -> Batch:
    """The same batch with labels of a model that runs now, on so many transitions at once."""
    batch = dataset.batch(indices, np.random.default_rng(0))
    codes = []
    for start in range(0, len(indices), at_once):
        some = indices[start : start + at_once]
        view, episodes, frames = dataset.names[0], dataset.episodes[some], dataset.frames[some]
        pair = [dataset.source.images(view, episodes, number) for number in (frames, frames + GAP)]
        codes.append(label(np.stack(pair, axis=1)))
    return batch | {"codes": torch.from_numpy(np.concatenate(codes)).long()}


def random_labels(store: Store) -> LatentLabels:
    """Labels of all transitions of the first camera."""
    starts = LENGTH - GAP
    episodes = np.repeat(np.arange(len(store.episodes)), starts)
    info = LabelsInfo(
        lam_fingerprint="random",
        store_fingerprint=store.fingerprint,
        views=VIEWS[:1],
        is_vote=False,
        gap_s=GAP / CONTROL_HZ,
        num_codes=SETTING.num_codes,
        num_tokens=SETTING.num_tokens,
    )
    return LatentLabels(
        info=info,
        episodes=episodes,
        frames=np.tile(np.arange(starts), len(store.episodes)),
        views=np.zeros_like(episodes),
        codes=np.random.default_rng(0).integers(SETTING.num_codes, size=(len(episodes), SETTING.num_tokens)),
    )
