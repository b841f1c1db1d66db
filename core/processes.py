"""Decisions that all processes of a training take alike, whatever each of them sees."""

import torch
import torch.distributed as dist


def is_so_everywhere(is_so: bool, device: torch.device) -> bool:
    """Whether it is so on every process; each has to ask.

    A model in shards (ZeRO-3, FSDP) gathers its weights as it runs, so all processes have to run it equally often.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return is_so
    flag = torch.tensor(float(is_so), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())
