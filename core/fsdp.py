"""PyTorch's FSDP2 behind the training loop: how it is set up, saved states, and plain modules again.

All functions here are for all processes together.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from core.checkpoint import TrainingState
from core.sharded_state import ShardedState


class FsdpError(RuntimeError):
    """FSDP settings that this training cannot use."""


def is_fsdp(accelerator: Accelerator) -> bool:
    """Whether FSDP runs the training."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def wants_fsdp() -> bool:
    """Whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def make_fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """The launcher's resharding and offloading; `shard_blocks` decides what is gathered together.

    Raises:
        FsdpError: one process, FSDP 1, or a setting that would change names of weights.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise FsdpError("FSDP shards nothing in one process; start two or more, or leave it out")
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise FsdpError("FSDP 1 is asked for; set fsdp_version: 2 (FSDP_VERSION=2 under torchrun)")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise FsdpError("fsdp_activation_checkpointing renames weights; set gradient_checkpointing of the run instead")
    # Models are built whole on every process; where they differ, the main one's weights count.
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )


def shard_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Let accelerate go its way for GPUs: on a CPU it drops the plugin unsaid, though all that follows works there."""
    accelerator.state.fsdp_plugin = plugin
    # Of both states, as accelerate itself does: the one is read again from the other.
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


@torch.no_grad()  # type: ignore[untyped-decorator]
def shard_blocks(module: nn.Module, accelerator: Accelerator) -> None:
    """Before `prepare`: gather the blocks of each stack one at a time, all else together; the main process' weights."""
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(_kinds_of_blocks(module))
    for parameter in module.parameters():
        parameter.copy_(broadcast(parameter.to(accelerator.device)))


def _kinds_of_blocks(module: nn.Module) -> set[str]:
    """Classes that a list holds several of and that have parts of their own."""
    found: set[str] = set()
    for part in module.modules():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            kinds = Counter(type(child).__name__ for child in part if next(child.children(), None) is not None)
            found |= {name for name, number in kinds.items() if number > 1}
    return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def end_sharding(module: nn.Module, accelerator: Accelerator) -> None:
    """End FSDP's hold on a module: its parameters are whole and ordinary again, and so is its class."""
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.reshard()
    fresh = {id(p): nn.Parameter(all_of(p).clone(), requires_grad=p.requires_grad) for p in module.parameters()}
    accelerator.free_memory()
    for part in module.modules():
        part._parameters = {name: None if p is None else fresh[id(p)] for name, p in part._parameters.items()}
    for part in sharded:
        _strip(part)


def all_of(tensor: Tensor) -> Tensor:
    """The whole of a tensor, sharded or not."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def own_shard(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: all of it, where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _strip(part: FSDPModule) -> None:
    """What torch has no function for: take hooks and class off."""
    state: Any = part._get_fsdp_state()
    hooks = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    for group in state._fsdp_param_groups:
        hooks += group._module_to_pre_save_state_dict_hook_handle.values()
        hooks += group._module_to_pre_load_state_dict_hook_handle.values()
    for hook in hooks:
        hook.remove()
    part.__class__ = type(part).__mro__[part._orig_cls_mro_index]


class FsdpState(ShardedState):
    """Shards of weights and moments, those of each process in its file."""

    sharding = "FSDP"

    def __init__(self, state: TrainingState, module: nn.Module, accelerator: Accelerator, optimizer: Optimizer) -> None:
        super().__init__(state, module, accelerator)
        self.optimizer = optimizer

    def _weights(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _write(self, directory: Path) -> dict[str, Tensor]:
        tensors = {f"weight.{index}": own_shard(parameter) for index, parameter in enumerate(self._weights())}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}": own_shard(torch.as_tensor(value)) for name, value in moments.items()}
        return tensors

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _read(self, directory: Path, shards: dict[str, Tensor]) -> None:
        weights = self._weights()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in shards.items():
            name, _, index = key.rpartition(".")
            parameter = weights[int(index)]
            if name == "weight":
                own_shard(parameter).copy_(tensor)
            else:
                like = tensor.ndim > 0 and isinstance(parameter, DTensor)
                moments.setdefault(int(index), {})[name] = _like(parameter, tensor) if like else tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _like(parameter: DTensor, shard: Tensor) -> DTensor:
    """A tensor in the shards of `parameter`."""
    form = {"shape": parameter.shape, "stride": parameter.stride()}
    shard = shard.to(parameter.device)
    return DTensor.from_local(shard, parameter.device_mesh, parameter.placements, run_check=False, **form)
