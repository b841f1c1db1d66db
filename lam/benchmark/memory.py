"""Memory that activations and gradients of a step take, each in a process of its own: a peak cannot be taken back."""

import torch

from core.benchmark.fresh_process import in_fresh_process
from core.benchmark.meters import peak_memory
from core.device import bf16_is_fast
from lam.benchmark.our_step import OurStep, batch_of
from lam.benchmark.sizes import Sizes

PAIRS = {"pairs sampled": 2, "all pairs": 0}
"""Own and cross pairs of a transition; 0: all."""
FEWER_BLOCKS = 4
"""Encoder and decoder blocks where the cost of views is measured: what counts is the ratio, and six views are slow."""


def memory_of_step(sizes: Sizes, device: torch.device, views: int, pairs: str, is_checkpointed: bool) -> int:
    """Bytes at the peak of forward and backward beyond weights and batch."""
    what = f"the memory of {views} views, {pairs},"
    return in_fresh_process(what, _measure, sizes, device, views, PAIRS[pairs], is_checkpointed)


def _measure(sizes: Sizes, device: torch.device, views: int, pairs: int, is_checkpointed: bool) -> int:
    model = sizes.new_model(encoder_blocks=FEWER_BLOCKS, decoder_blocks=FEWER_BLOCKS).to(device)
    model.checkpoint_gradients(is_checkpointed)
    step = OurStep(model, batch_of(sizes.features(views, 1, device), pairs), bf16_is_fast(device))
    before = peak_memory(device)
    step.gradients()
    return peak_memory(device) - before
