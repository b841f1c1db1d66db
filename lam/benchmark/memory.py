"""Memory that activations and gradients of a step take, each in a process of its own: a peak cannot be taken back.

The processes are forked from a small one, since one that is started afresh inherits the peak of whoever started it.
"""

import multiprocessing
import resource
from multiprocessing.connection import Connection

import torch

from core.device import bf16_is_fast
from lam.benchmark.our_step import OurStep, batch_of
from lam.benchmark.sizes import Sizes

PAIRS = {"pairs sampled": 2, "all pairs": 0}
"""Own and cross pairs of a transition; 0: all."""
FEWER_BLOCKS = 4
"""Encoder and decoder blocks where the cost of views is measured: what counts is the ratio, and six views are slow."""


def memory_of_step(sizes: Sizes, device: torch.device, views: int, pairs: str, is_checkpointed: bool) -> int:
    """Bytes at the peak of forward and backward beyond weights and batch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, sizes, device, views, PAIRS[pairs], is_checkpointed))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"measuring the memory of {views} views, {pairs}, ended without an answer") from None
    finally:
        process.join()


def _measure(
    answer: Connection, sizes: Sizes, device: torch.device, views: int, pairs: int, is_checkpointed: bool
) -> None:
    model = sizes.new_model(encoder_blocks=FEWER_BLOCKS, decoder_blocks=FEWER_BLOCKS).to(device)
    model.checkpoint_gradients(is_checkpointed)
    step = OurStep(model, batch_of(sizes.features(views, 1, device), pairs), bf16_is_fast(device))
    before = _peak(device)
    step.gradients()
    answer.send(_peak(device) - before)


def _peak(device: torch.device) -> int:
    """The most bytes ever taken by this process, on the GPU where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
