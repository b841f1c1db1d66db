"""A pretraining step of the whole training loop, beside a bare one on the same batch."""

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from core.benchmark.meters import process_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import Clock, Timing, ratio, ratio_row, rows
from core.loading import Batch
from core.metrics import read_metrics
from core.training import fit, make_accelerator, open_stage, uses_bf16
from vla.backbones.timm_lm import TimmLmBackbone
from vla.benchmark.instructions import instructions
from vla.benchmark.sizes import Sizes
from vla.benchmark.steps import RECIPE, BareStep
from vla.pretrain import LatentObjective
from vla.prompt import prompt
from vla.training import Rates, rate_of

OURS, BARE = "ours, the training loop", "bare"


def step_against_bare(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """A step of pretraining, from prompts to metrics, against bare transformers that are given the batch."""
    model = sizes.new_model()
    made = _Made(sizes, model.backbone)
    batch = {name: value.to(device) for name, value in made.whole().items()}
    bare = BareStep(deepcopy(model.backbone).to(device), batch, uses_bf16(RECIPE))
    with tempfile.TemporaryDirectory(prefix="benchmark_vla_") as folder:
        turns = _Turns(bare, process_clock(device))
        changes = {"steps": sizes.rounds + 1, "batch_size": sizes.batch, "checkpoint_every": 10**9}
        config = RECIPE.model_copy(update=changes)
        accelerator = make_accelerator(config, Path(folder), skips_parameters=True)
        stage = open_stage(accelerator, Path(folder) / "run", "benchmark_vla", config, {})
        scale = rate_of(model.backbone, Rates())
        fit(LatentObjective(model), made, config, stage, accelerator, after_step=turns, learning_rate_scale=scale)
        losses = [line["loss"] for line in read_metrics(stage.path / "metrics.jsonl")]
    timings = turns.timings()
    numbers["losses"] = {OURS: losses, BARE: turns.losses}
    yield f"  {sizes.batch} samples, {'bf16' if uses_bf16(RECIPE) else 'float32'}, the tower frozen; AdamW"
    yield from rows(timings, numbers)
    yield ratio_row("ours / bare", ratio(timings[OURS], timings[BARE]), numbers)
    numbers["the fastest of ours / of bare"] = fastest = min(timings[OURS].calls) / min(timings[BARE].calls)
    yield f"  {'the fastest step of ours / of bare':56} {fastest:9.3f}"
    furthest = max(abs(own - other) for own, other in zip(losses, turns.losses, strict=True))
    yield f"  the losses of all steps are the same to within {furthest:.1g}"


class _Made:
    """A training set of one batch, whose prompts are made into tokens each time."""

    def __init__(self, sizes: Sizes, backbone: TimmLmBackbone) -> None:
        self.texts = instructions(sizes.batch)
        self.backbone, self.images = backbone, sizes.images(sizes.batch)
        self.codes = sizes.batch_of(backbone, self.texts)["codes"]

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> Batch:
        prompts = [prompt(self.texts[index]) for index in indices]
        return self.backbone.prepare(self.images[indices], prompts) | {"codes": self.codes[indices]}

    def whole(self) -> Batch:
        return self.batch(np.arange(len(self)), np.random.default_rng(0))

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        return [self.texts[index] for index in indices]


class _Turns:
    """Called by the training loop after each of its steps, it takes and times a bare one.

    A step of ours lasts from the end of one call to the beginning of the next; the first is to warm up.
    """

    def __init__(self, bare: BareStep, clock: Clock) -> None:
        self.bare, self.clock = bare, clock
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.losses: list[float] = []

    def __call__(self, step: int) -> dict[str, Any]:
        before = self.clock()
        self.losses.append(self.bare())
        after = self.clock()
        if step:
            self.ours.append(before - self.since)
            self.theirs.append(after - before)
        self.since = after
        return {}

    def timings(self) -> dict[str, Timing]:
        return {OURS: Timing.of(self.ours), BARE: Timing.of(self.theirs)}
