"""DeepSpeed's ZeRO behind the training loop: how it is set up, whole parameters, saved states, and plain modules again.

All functions here are for all processes together. DeepSpeed itself is imported only where it runs.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from core.checkpoint import TrainingState
from core.fsdp import all_of, own_shard
from core.sharded_state import ShardedState

STAGES = (1, 2, 3)


class ZeroError(RuntimeError):
    """DeepSpeed settings that this training cannot use."""


def is_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the training."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def wants_zero() -> bool:
    """Whether the launcher asked for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def make_plugin(batch_size: int, gradient_accumulation: int, clip_norm: float, bf16: bool) -> DeepSpeedPlugin:
    """The launcher's ZeRO stage and offloading with the training's own values.

    Weights stay float32 and forward passes run under autocast, as without DeepSpeed, so that both give the same curve.

    Raises:
        ZeroError: a stage that shards nothing, or a DeepSpeed file that contradicts the training's settings.
    """
    plugin = DeepSpeedPlugin(
        gradient_accumulation_steps=gradient_accumulation, gradient_clipping=clip_norm, zero3_init_flag=False
    )
    settings = plugin.deepspeed_config
    stage = settings["zero_optimization"]["stage"]
    if stage not in STAGES:
        raise ZeroError(f"ZeRO stage {stage} shards nothing; use 1, 2 or 3, or start without DeepSpeed")
    if settings["gradient_accumulation_steps"] == 1:
        # What accelerate writes into a DeepSpeed file that says nothing.
        settings["gradient_accumulation_steps"] = "auto"
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": gradient_accumulation,
        "gradient_clipping": clip_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }
    wrong = {k: settings[k] for k, value in ours.items() if settings.get(k, "auto") not in ("auto", value)}
    if wrong:
        raise ZeroError(f"the DeepSpeed file sets {wrong}, the training {ours}; leave these out of the file")
    settings.pop("train_batch_size", None)
    # Without modules that it may reduce in bf16: gradients and gathered weights stay float32.
    autocast = {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    settings |= ours | {"torch_autocast": autocast}
    return plugin


def build_models_whole() -> None:
    """Keep transformers from building models in shards under ZeRO-3: their weights are loaded after they are built."""
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def own_weights(optimizer: Any) -> list[Tensor]:
    """The weights that this process' optimiser updates: all of them, or its shards (under ZeRO one of each group)."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [own_shard(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _gathered(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
    """A context in which the parameters can be read whole, also where ZeRO-3 keeps them in shards."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(sharded)


@torch.no_grad()  # type: ignore[untyped-decorator]
def whole(parameter: nn.Parameter) -> Tensor:
    """A copy of all of a parameter, as the optimiser holds it."""
    if isinstance(parameter, DTensor):
        return all_of(parameter).clone()
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        full = safe_get_full_fp32_param(parameter)
        if full is not None:
            return full.detach().clone()
    with _gathered([parameter]):
        return parameter.detach().clone()


@torch.no_grad()  # type: ignore[untyped-decorator]
def set_parameter(parameter: nn.Parameter, where: Bool[Tensor, "..."], values: Float[Tensor, "..."]) -> None:
    """`parameter[where] = values` for good: on every process alike, and in what the optimiser goes on from.

    `where` marks entries or rows, and where processes differ the main one's values count.
    """
    full = whole(parameter)
    full[where] = values.to(full)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(full, 0)
    if isinstance(parameter, DTensor):
        shards = distribute_tensor(full, parameter.device_mesh, parameter.placements)
        parameter.to_local().copy_(shards.to_local())
        return
    if hasattr(parameter, "ds_id"):
        _set_sharded(parameter, full)
        return
    if hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, full)
    parameter.data.copy_(full)


def _set_sharded(parameter: nn.Parameter, full: Tensor) -> None:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

    shard = safe_get_local_fp32_param(parameter)
    if shard is not None:
        # Not safe_set_full_fp32_param: it fails where the number of entries is no multiple of the processes.
        padded = F.pad(full.flatten(), (0, shard.numel() * dist.get_world_size() - full.numel()))
        safe_set_local_fp32_param(parameter, padded.narrow(0, shard.numel() * dist.get_rank(), shard.numel()))
    with GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(full)


def make_plain(module: nn.Module, accelerator: Accelerator) -> None:
    """End DeepSpeed's hold on a module: its parameters are whole and ordinary again, with the optimiser's weights."""
    fresh = {id(p): nn.Parameter(whole(p), requires_grad=p.requires_grad) for p in module.parameters()}
    accelerator.free_memory()
    for part in module.modules():
        part._parameters = {name: None if p is None else fresh[id(p)] for name, p in part._parameters.items()}
        vars(part).pop("_original_parameters", None)


class ZeroState(ShardedState):
    """The training state under ZeRO: weights and moments in DeepSpeed's format."""

    def __init__(self, state: TrainingState, engine: Any, accelerator: Accelerator) -> None:
        super().__init__(state, engine.module, accelerator)
        self.engine, self.sharding = engine, f"ZeRO-{int(engine.zero_optimization_stage())}"

    def _write(self, directory: Path) -> dict[str, Tensor]:
        self.engine.save_checkpoint(str(directory), tag="engine", save_latest=False)
        return {}

    def _read(self, directory: Path, shards: dict[str, Tensor]) -> None:
        self.engine.load_checkpoint(str(directory), tag="engine")
