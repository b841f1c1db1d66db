"""How much of what the machine can compute a pretraining step uses."""

from collections.abc import Iterator
from functools import partial

import torch

from core.benchmark.arithmetic import operations, peak_rate
from core.benchmark.meters import process_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import in_turn, ratio_row, rows, share_of
from vla.benchmark.instructions import instructions
from vla.benchmark.sizes import SETTING, Sizes
from vla.benchmark.steps import OurStep

GIGA = 1e9


def share_of_peak(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """Operations a second of a pretraining step as a share of the machine's best, in both precisions."""
    model = sizes.new_model().to(device)
    batch = {k: v.to(device) for k, v in sizes.batch_of(model.backbone, instructions(sizes.batch)).items()}
    positions = batch["ids"].shape[1] + model.backbone.image_tokens + SETTING.num_tokens
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
    steps = {name: OurStep(model, batch, name == "bf16") for name in kinds}
    count = operations(steps["float32"].gradients)
    steps["float32"].optimizer.zero_grad()
    logged = model.work(batch).flops
    peaks: dict[str, list[float]] = {name: [] for name in kinds}
    sides = (sizes.batch * positions, sizes.width, sizes.feed_forward)
    calls, clock = {}, process_clock(device)
    best = partial(peak_rate, clock, device)
    for name, dtype in kinds.items():
        calls[f"a step, {name}"] = steps[name]
        calls[f"peak, {name}"] = lambda name=name, dtype=dtype: peaks[name].append(best(dtype, *sides))
    timings = in_turn(calls, clock, sizes.rounds - 1)
    yield f"  {sizes.batch} samples of {positions} positions; {count / GIGA:.1f} G operations a step"
    yield from rows({name: timing for name, timing in timings.items() if name.startswith("a step")}, numbers)
    numbers |= {"operations": count, "operations that training logs": logged}
    for name in kinds:
        numbers[f"peak operations a second, {name}"] = max(peaks[name])
        yield f"  best rate, {name}: {max(peaks[name]) / GIGA:.0f} G operations a second"
        yield ratio_row(
            f"share of the best rate, {name}", share_of(count / max(peaks[name]), timings[f"a step, {name}"]), numbers
        )
    yield f"  training logs {logged / count:.2f} times as many operations"
