"""What padding costs, and what sorting samples by length or packing them would save."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch.nn import functional

from core.benchmark.meters import process_clock
from core.benchmark.running import Numbers
from core.benchmark.timing import in_turn, ratio, ratio_row, rows
from core.device import bf16_is_fast
from core.loading import Batch
from vla.backbones.timm_lm import TimmLmBackbone
from vla.benchmark.instructions import instructions
from vla.benchmark.sizes import SETTING, Sizes
from vla.benchmark.steps import OurStep
from vla.prompt import prompt

FIXED, OURS, SORTED = "all as long as the longest of all", "as long as the batch's longest (ours)", "sorted by length"
NONE = "no padding at all (packed)"
DRAWN, BATCH_SIZES, IMAGE_TOKENS = 4096, (8, 32, 128), (64, 256)


def padding(sizes: Sizes, device: torch.device, numbers: Numbers) -> Iterator[str]:
    """Prompts padded to the longest of their batch, against a fixed length and against batches of equal lengths."""
    model = sizes.new_model().to(device)
    backbone = model.backbone
    lengths = np.array([len(backbone.tokenizer(prompt(text))["input_ids"]) for text in instructions(DRAWN)])
    low, middle, high = np.quantile(lengths, [0.05, 0.5, 0.95])
    yield f"  {DRAWN} prompts of {lengths.min()} to {lengths.max()} tokens, 90 % of {low:.0f} to {high:.0f}"
    numbers["tokens of a prompt"] = {"median": float(middle), "longest": int(lengths.max())}
    yield from _positions(lengths, sizes.window, numbers)
    plain = instructions(DRAWN)[: sizes.padded * sizes.batch]
    alike = [plain[place] for place in by_length(lengths[: len(plain)], sizes.batch, sizes.padded)]
    step = OurStep(model, sizes.batch_of(backbone, plain[: sizes.batch]), bf16_is_fast(device))
    batches = {OURS: _batches(sizes, backbone, plain), SORTED: _batches(sizes, backbone, alike)}
    batches[FIXED] = [widened(batch, int(lengths.max()), backbone.tokenizer.pad_token_id) for batch in batches[OURS]]
    placed = {name: [{k: v.to(device) for k, v in one.items()} for one in made] for name, made in batches.items()}
    calls: dict[str, Callable[[], object]] = {n: partial(gradients, step, made) for n, made in placed.items()}
    timings = in_turn(calls, process_clock(device), sizes.rounds - 1)
    yield f"  forward and backward of {sizes.padded} batches of {sizes.batch}, {backbone.image_tokens} image tokens"
    yield from rows(timings, numbers)
    others = backbone.image_tokens + SETTING.num_tokens
    counts = {n: sum(one["ids"].numel() + others * len(one["ids"]) for one in made) for n, made in batches.items()}
    numbers["positions"] = counts
    yield from (f"  {name:56} {count:9d} positions" for name, count in counts.items())
    yield ratio_row("fixed length / ours", ratio(timings[FIXED], timings[OURS]), numbers)
    yield ratio_row("ours / sorted by length", ratio(timings[OURS], timings[SORTED]), numbers)


def _positions(lengths: Int[np.ndarray, " samples"], window: int, numbers: Numbers) -> Iterator[str]:
    numbers["positions, of those without padding"] = {}
    for image_tokens in IMAGE_TOKENS:
        for size in BATCH_SIZES:
            found = positions(lengths, size, window, image_tokens + SETTING.num_tokens)
            shares = {name: count / found[NONE] for name, count in found.items()}
            numbers["positions, of those without padding"][f"{image_tokens} image tokens, batch {size}"] = shares
            yield f"  {image_tokens} image tokens, batches of {size}: positions, of those without padding"
            yield from (f"    {name:54} {share:9.3f}" for name, share in shares.items() if name != NONE)


def positions(lengths: Int[np.ndarray, " samples"], size: int, window: int, others: int) -> dict[str, int]:
    """Positions that are computed of samples of these lengths and `others` besides, one way of padding and another."""
    lengths = lengths[: len(lengths) // size * size]

    def padded(order: Int[np.ndarray, " samples"]) -> int:
        return int((lengths[order].reshape(-1, size).max(1) * size).sum())

    words = {
        FIXED: int(lengths.max()) * len(lengths),
        OURS: padded(np.arange(len(lengths))),
        SORTED: padded(by_length(lengths, size, window)),
        NONE: int(lengths.sum()),
    }
    return {name: count + others * len(lengths) for name, count in words.items()}


def by_length(lengths: Int[np.ndarray, " samples"], size: int, window: int) -> Int[np.ndarray, " samples"]:
    """The samples in an order that makes batches of about equal lengths, sorted within so many batches."""
    starts = range(0, len(lengths), size * window)
    return np.concatenate([s + np.argsort(lengths[s : s + size * window], kind="stable") for s in starts])


def widened(batch: Batch, length: int, pad: int) -> Batch:
    """The same batch with prompts of that many tokens."""
    missing = (length - batch["ids"].shape[1], 0)
    return batch | {
        "ids": functional.pad(batch["ids"], missing, value=pad),
        "mask": functional.pad(batch["mask"], missing, value=False),
    }


def gradients(step: OurStep, batches: Sequence[Batch]) -> list[float]:
    """Forward and backward of batches one after the other; their losses."""
    losses = []
    for batch in batches:
        step.batch = batch
        losses.append(step.gradients().item())
        step.optimizer.zero_grad()
    return losses


def _batches(sizes: Sizes, backbone: TimmLmBackbone, texts: list[str]) -> list[Batch]:
    return [sizes.batch_of(backbone, texts[at : at + sizes.batch]) for at in range(0, len(texts), sizes.batch)]
