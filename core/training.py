"""The one training loop: any model whose forward answers its losses, on one process or many, resumable to the bit."""

import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import InitProcessGroupKwargs
from pydantic import Field, field_validator
from torch import Tensor, nn
from tqdm import tqdm

from core.checkpoint import TrainingState
from core.config import Config
from core.device import bf16_is_fast, choose_attention_kernel, default_device
from core.fsdp import FsdpState, all_of, end_sharding, is_fsdp, make_fsdp_plugin, shard_blocks, shard_on_cpu, wants_fsdp
from core.loading import Dataset, StepBatches, in_order
from core.metrics import MetricsLog, start_tracker
from core.run import Stage
from core.sharded_state import ShardedState
from core.stopping import StopSignal
from core.throughput import Measured, Throughput
from core.zero import ZeroState, build_models_whole, is_zero, make_plain, make_plugin, own_weights, wants_zero


class TrainingConfig(Config):
    """How long, how fast and how precisely to train."""

    steps: int = Field(default=1000, ge=1)
    """Optimiser steps in all."""
    batch_size: int = Field(default=32, ge=1)
    """Samples a process and a micro-step."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-steps an optimiser step."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adam: weight decay is part of the gradient (L2) and covers every parameter, as in the published trainings."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    final_fraction: float = 0.02
    """Learning rate at the last step, as a fraction of the peak (cosine)."""
    weight_decay: float = 0.01
    """Weight decay; adamw: decoupled, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    average_decay: float = 0.0
    """Decay of the moving average of the weights that is kept as the result; 0: none."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """auto: bf16 where it is faster than float32."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between saved training states."""
    keep_last: int = Field(default=1, ge=1)
    """Training states that are kept, the newest ones."""
    keep_every: int = Field(default=0, ge=0)
    """Steps between training states that are kept for good, also when the run is done; 0: none."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between validations."""
    log_every: int = Field(default=20, ge=1)
    """Steps between lines of metrics.jsonl."""
    loader_workers: int = Field(default=0, ge=0)
    """Processes that make batches ahead of time, for data that is decoded as it is read; no batch depends on them."""
    seed: int = 0
    """Decides initial weights, data order and every random draw."""
    tracker: Literal["none", "wandb", "tensorboard"] = "none"
    """Where metrics go besides metrics.jsonl; wandb stays offline where nobody is logged in."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value


class TrainingError(RuntimeError):
    """Training that cannot go on."""


def make_accelerator(config: TrainingConfig, directory: Path, skips_parameters: bool = False) -> Accelerator:
    """An accelerator for the launcher that started this process; on a machine without GPU, for the CPU.

    `skips_parameters`: the loss may leave some parameters out, which costs several processes a search for them.

    Raises:
        TrainingError: several processes were launched that do not see each other, or shards without a launcher, or the
            tracker is not installed.
        ZeroError: the launcher's DeepSpeed settings contradict the training's.
        FsdpError: the launcher's FSDP settings do.
    """
    device = default_device()
    choose_attention_kernel(device)
    on_cpu, zero, fsdp = device.type == "cpu", wants_zero(), wants_fsdp()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    _require_what_is_asked_for(config, zero, fsdp)
    handlers: list[Any] = [InitProcessGroupKwargs(backend="gloo")] if on_cpu and "LOCAL_RANK" in os.environ else []
    options: dict[str, Any] = {"mixed_precision": "bf16" if uses_bf16(config) else "no"}
    if zero:
        sizes = (config.batch_size, config.gradient_accumulation, config.clip_norm)
        options = {"mixed_precision": "no", "deepspeed_plugin": make_plugin(*sizes, bf16=uses_bf16(config))}
    elif fsdp:
        options = {"mixed_precision": "no", "fsdp_plugin": make_fsdp_plugin()}
    else:
        # Each process keeps its own buffers (counts of what it saw); the training state has them all.
        handlers.append(DistributedDataParallelKwargs(find_unused_parameters=skips_parameters, broadcast_buffers=False))
        # The new torch's other name for it is unknown to the oldest torch that will do.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    accelerator = Accelerator(
        cpu=on_cpu and not zero,
        gradient_accumulation_steps=config.gradient_accumulation,
        kwargs_handlers=handlers,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(directory),
        **options,
    )
    if fsdp and on_cpu:
        shard_on_cpu(accelerator, options["fsdp_plugin"])
    if accelerator.num_processes != launched or (zero, fsdp) != (is_zero(accelerator), is_fsdp(accelerator)):
        raise TrainingError(
            f"{launched} processes were launched but each trains alone; on a CPU start them with torchrun "
            "--nproc_per_node N instead of accelerate launch --num_processes N"
        )
    if zero:
        build_models_whole()
    return accelerator


def _require_what_is_asked_for(config: TrainingConfig, zero: bool, fsdp: bool) -> None:
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise TrainingError(
            f"training.tracker is {config.tracker}, which is not installed; pip install it, or use none"
        )
    if (zero or fsdp) and "LOCAL_RANK" not in os.environ:
        asked = "ACCELERATE_USE_DEEPSPEED" if zero else "ACCELERATE_USE_FSDP"
        raise TrainingError(f"{asked} is set, but no launcher; start with torchrun or accelerate launch")


def uses_bf16(config: TrainingConfig) -> bool:
    """Whether forward passes run under bf16 autocast on this machine."""
    return config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and bf16_is_fast(default_device()))


def open_stage(
    processes: Accelerator | PartialState, path: str | Path, name: str, config: Config, inputs: dict[str, str]
) -> Stage:
    """`Stage.open` for several processes: the main one opens it, then the others look."""
    stage = Stage.open(path, name, config, inputs) if processes.is_main_process else None
    processes.wait_for_everyone()
    stage = stage or Stage.open(path, name, config, inputs, is_main=False)
    processes.wait_for_everyone()
    return stage


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of a step: linear warm-up, then constant or a half cosine."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warmup
    progress = min(1.0, step / max(1, config.steps))
    cosine = 0.5 * (1 + np.cos(np.pi * progress))
    return float(config.learning_rate * warmup * (config.final_fraction + (1 - config.final_fraction) * cosine))


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainingConfig,
    stage: Stage,
    accelerator: Accelerator,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    after_step: Callable[[int], dict[str, Any]] | None = None,
    learning_rate_scale: Callable[[str], float] = lambda name: 1.0,
) -> dict[str, float]:
    """Train `model`, whose `forward(batch)` answers a dict of scalars with "loss" among them, in place.

    Leaves the whole (averaged) weights in `model`, on every process and also under DeepSpeed and FSDP, and answers the
    last logged and validation metrics; the last validation is that of these weights. `after_step` runs once an
    optimiser step, on every process; what it answers is logged, lists too. `learning_rate_scale` answers a factor for
    a parameter's name, 0 freezes it.

    Raises:
        TrainingError: a loss or gradient is not finite; the message names the step, the terms and the samples.
        CheckpointError: the directory's training state is of another model or number of processes.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    loop = _Loop(model, dataset, config, stage, accelerator, learning_rate_scale)
    with StopSignal(accelerator) as stop:
        for step in loop.steps():
            loop.step(step, after_step)
            finished = step + 1 == config.steps
            if validate and not finished and (step + 1) % config.validate_every == 0:
                loop.validate(step + 1, validate)
            stopping = stop.requested()
            if finished or stopping or (step + 1) % config.checkpoint_every == 0:
                loop.save(step + 1)
            if stopping and not finished:
                raise KeyboardInterrupt
        loop.finish()
        if validate:
            loop.validate(config.steps, validate)
    return loop.close()


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainingConfig,
        stage: Stage,
        accelerator: Accelerator,
        learning_rate_scale: Callable[[str], float],
    ) -> None:
        self.dataset, self.config, self.stage, self.accelerator = dataset, config, stage, accelerator
        self.plain = model
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
        optimizer = kind(_groups(model, config, learning_rate_scale), betas=config.betas, fused=True)
        if is_fsdp(accelerator):
            shard_blocks(model, accelerator)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average: list[Tensor] = []
        if config.average_decay:
            self.average = [tensor.detach().float().clone() for tensor in self._weights()]
        self.state = TrainingState.of(stage.path, config.keep_every)
        self.sharded = self._sharded_state()
        self.first_step = self._load()
        where = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        batches = StepBatches(dataset, seed=config.seed, batch_size=config.batch_size, **where)
        micros = range(self.first_step * config.gradient_accumulation, config.steps * config.gradient_accumulation)
        self.batches = in_order(batches, micros, config.loader_workers)
        if config.tracker != "none":
            # TensorBoard takes no lists.
            settings = {n: v if isinstance(v, int | float | str) else str(v) for n, v in config.model_dump().items()}
            start_tracker(accelerator, config.tracker, str(stage.record["name"]), settings)
        self.metrics = MetricsLog(stage.path / "metrics.jsonl", self.first_step, accelerator)
        samples = config.batch_size * config.gradient_accumulation * accelerator.num_processes
        self.throughput = Throughput(samples, accelerator.num_processes, accelerator.device)

    def _sharded_state(self) -> ShardedState | None:
        if is_zero(self.accelerator):
            return ZeroState(self.state, self.model, self.accelerator)
        if is_fsdp(self.accelerator):
            return FsdpState(self.state, self.plain, self.accelerator, self.optimizer.optimizer)
        return None

    def steps(self) -> Any:
        self.progress = tqdm(
            range(self.first_step, self.config.steps),
            initial=self.first_step,
            total=self.config.steps,
            desc=str(self.stage.record["name"]),
            unit="step",
            disable=not self.accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,
        )
        return self.progress

    def step(self, step: int, after_step: Callable[[int], dict[str, Any]] | None) -> None:
        self.model.train()
        learning_rate = learning_rate_at(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        for micro in range(self.config.gradient_accumulation):
            self.metrics.add_terms(self._micro_step(step * self.config.gradient_accumulation + micro))
        self._update_average(step)
        self.metrics.facts |= {"learning_rate": learning_rate} | (after_step(step) if after_step else {})
        if (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps:
            self.metrics.flush(step + 1, self.throughput)
            self.progress.set_postfix(loss=f"{self.metrics.latest['loss']:.4f}")

    def _micro_step(self, micro: int) -> dict[str, Tensor]:
        asked = time.monotonic()
        loaded = next(self.batches)
        work = self.plain.work(loaded.batch) if isinstance(self.plain, Measured) else None
        self.throughput.add(time.monotonic() - asked, work)
        indices = loaded.indices
        batch = {name: values.to(self.accelerator.device) for name, values in loaded.batch.items()}
        torch.manual_seed(loaded.seed)
        with self.accelerator.accumulate(self.model):
            with self._autocast(is_fsdp(self.accelerator)):
                terms = self.model(batch)
            self._require_finite("loss", micro, terms, indices)
            self.accelerator.backward(terms["loss"])
            if self.accelerator.sync_gradients:
                norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm))
                self._require_finite("gradient", micro, terms | {"gradient": all_of(norm)}, indices)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    def _autocast(self, is_wanted: bool = True) -> torch.autocast:
        """Where accelerate and DeepSpeed leave it to us: in validation, and under FSDP."""
        enabled = is_wanted and uses_bf16(self.config)
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    def _require_finite(self, name: str, micro: int, terms: dict[str, Tensor], indices: np.ndarray) -> None:
        """On all processes or on none, so that none waits for another that is gone."""
        bad = (~torch.isfinite(terms[name].detach())).float().reshape(1).to(self.accelerator.device)
        ranks = self.accelerator.gather(bad).nonzero().flatten().tolist()
        if not ranks:
            return
        if self.accelerator.process_index not in ranks:
            raise TrainingError(
                f"the {name} of micro-step {micro} is not finite on process {ranks[0]}; see its message"
            )
        values = {name: value.item() for name, value in terms.items()}
        raise TrainingError(
            f"the {name} of micro-step {micro} is not finite: {values}; samples {self.dataset.describe(indices)[:8]}. "
            "Lower the learning rate, or look at these samples"
        )

    def _weights(self) -> list[Tensor]:
        return own_weights(self.optimizer.optimizer)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _update_average(self, step: int) -> None:
        if self.average:
            decay = min(self.config.average_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, [weights.float() for weights in self._weights()], 1 - decay)

    def validate(self, step: int, validate: Callable[[nn.Module], dict[str, float]]) -> None:
        self.plain.eval()
        with torch.no_grad(), self._autocast():
            measured = {f"validation_{name}": value for name, value in validate(self.plain).items()}
        self.metrics.write({"step": step, **measured})

    def _buffers(self) -> dict[str, Tensor]:
        kept = self.plain.state_dict()
        return {name: buffer for name, buffer in self.plain.named_buffers() if name in kept}

    def save(self, step: int) -> None:
        if self.sharded:
            self.sharded.save(step, self.average, self._buffers())
        else:
            rows = {name: self.accelerator.gather(buffer[None]) for name, buffer in self._buffers().items()}
            ranks = range(self.accelerator.num_processes)
            buffers = [{name: row[rank] for name, row in rows.items()} for rank in ranks]
            if self.accelerator.is_main_process:
                self.state.save(step, self.plain, self.optimizer.optimizer, self.average, buffers)
        if self.accelerator.is_main_process:
            self.state.retain(step, self.config.keep_last)
            self.stage.keep_time()
        self.accelerator.wait_for_everyone()

    def _load(self) -> int:
        if self.sharded:
            return self.sharded.load(self.average)
        where = (self.accelerator.process_index, self.accelerator.num_processes)
        return self.state.load(self.plain, self.optimizer.optimizer, self.average, *where)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """Leave the result in the model that was given."""
        for weights, average in zip(self._weights() if self.average else [], self.average, strict=True):
            weights.copy_(average)
        if is_zero(self.accelerator):
            make_plain(self.plain, self.accelerator)
        if is_fsdp(self.accelerator):
            end_sharding(self.plain, self.accelerator)

    def close(self) -> dict[str, float]:
        self.plain.eval()
        self.progress.close()
        # Not accelerator.end_training: it also ends the process group, which the caller still needs.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.metrics.latest


def _groups(model: nn.Module, config: TrainingConfig, scale_of: Callable[[str], float]) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = scale_of(name)
        if scale == 0.0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 or config.optimizer == "adam"
            decay = config.weight_decay if decays else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": p, "scale": s, "weight_decay": d, "lr": 0.0} for (s, d), p in groups.items()]
