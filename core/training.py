"""The one training loop: any model whose forward answers its losses, on one process or many, resumable to the bit."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from tqdm import tqdm

from core.checkpoint import TrainingState
from core.config import Config
from core.device import bf16_is_fast, choose_attention_kernel, default_device
from core.run import Stage, say
from core.sampling import batch_indices, step_generator

Batch = dict[str, Tensor]


class TrainingConfig(Config):
    """How long, how fast and how precisely to train."""

    steps: int = 1000
    """Optimiser steps in all."""
    batch_size: int = 32
    """Samples a process and a micro-step."""
    gradient_accumulation: int = 1
    """Micro-steps an optimiser step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    final_fraction: float = 0.02
    """Learning rate at the last step, as a fraction of the peak (cosine)."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    average_decay: float = 0.0
    """Decay of the moving average of the weights that is kept as the result; 0: none."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """auto: bf16 where it is faster than float32."""
    checkpoint_every: int = 200
    """Steps between saved training states."""
    validate_every: int = 200
    """Steps between validations."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Decides initial weights, data order and every random draw."""
    tracker: Literal["none", "wandb", "tensorboard"] = "none"
    """Where metrics go besides metrics.jsonl; wandb stays offline where nobody is logged in."""


@runtime_checkable
class Dataset(Protocol):
    """Samples by index, made into batches by the data set itself."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, indices: np.ndarray, generator: np.random.Generator) -> Batch:
        """The samples at `indices`; what is random about them is drawn from `generator`."""

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the samples, for messages."""


class TrainingError(RuntimeError):
    """Training that cannot go on."""


def make_accelerator(config: TrainingConfig, directory: Path) -> Accelerator:
    """An accelerator for the launcher that started this process; on a machine without GPU, for the CPU.

    Raises:
        TrainingError: the launcher started several processes that do not see each other.
    """
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    device = default_device()
    choose_attention_kernel(device)
    on_cpu = device.type == "cpu"
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if bf16_is_fast(device) else "no"
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    handlers: list[Any] = [InitProcessGroupKwargs(backend="gloo")] if on_cpu and launched > 1 else []
    if not deepspeed:
        handlers.append(DistributedDataParallelKwargs(find_unused_parameters=False))
    accelerator = Accelerator(
        cpu=on_cpu and not deepspeed,
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation,
        kwargs_handlers=handlers,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=str(directory),
    )
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"{launched} processes were launched but each trains alone; on a CPU start them with torchrun "
            "--nproc_per_node N instead of accelerate launch --num_processes N"
        )
    return accelerator


def open_stage(accelerator: Accelerator, path: str | Path, name: str, config: Config, inputs: dict[str, str]) -> Stage:
    """`Stage.open` for several processes: the main one opens it, then the others look."""
    stage = Stage.open(path, name, config, inputs) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    stage = stage or Stage.open(path, name, config, inputs, is_main=False)
    accelerator.wait_for_everyone()
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
    after_step: Callable[[int], dict[str, float]] | None = None,
    learning_rate_scale: Callable[[str], float] = lambda name: 1.0,
) -> dict[str, float]:
    """Train `model`, whose `forward(batch)` answers a dict of scalars with "loss" among them, in place.

    Leaves the (averaged) weights in `model` and answers the last logged and validation metrics. `after_step` runs once
    an optimiser step, on every process; `learning_rate_scale` answers a factor for a parameter's name, 0 freezes it.

    Raises:
        TrainingError: a loss is not finite; the message names the step, the terms and the samples.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    loop = _Loop(model, dataset, config, stage, accelerator, learning_rate_scale)
    with _StopSignal(accelerator) as stop:
        for step in loop.steps():
            loop.step(step, after_step)
            finished = step + 1 == config.steps
            if validate and (finished or (step + 1) % config.validate_every == 0):
                loop.validate(step, validate)
            stopping = stop.requested()
            if (step + 1) % config.checkpoint_every == 0 or stopping:
                loop.save(step + 1)
            if stopping and not finished:
                raise KeyboardInterrupt
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
        optimizer = torch.optim.AdamW(_groups(model, config, learning_rate_scale), betas=config.betas)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = None
        if config.average_decay:
            self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.state = TrainingState.of(stage.path)
        self.first_step = self.state.load(self.plain, self.optimizer.optimizer, self.average)
        self.metrics = _Metrics(
            stage.path / "metrics.jsonl", self.first_step, accelerator, config, str(stage.record["name"])
        )
        self.latest: dict[str, float] = {}

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

    def step(self, step: int, after_step: Callable[[int], dict[str, float]] | None) -> None:
        self.model.train()
        learning_rate = learning_rate_at(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        terms: dict[str, Tensor] = {}
        for micro in range(self.config.gradient_accumulation):
            terms = self._micro_step(step * self.config.gradient_accumulation + micro)
        self._update_average(step)
        extra = after_step(step) if after_step else {}
        self.metrics.add(step, terms, {"learning_rate": learning_rate} | extra)
        if (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps:
            self.latest |= self.metrics.flush(step)
            self.progress.set_postfix(loss=f"{self.latest['loss']:.4f}")

    def _micro_step(self, micro: int) -> dict[str, Tensor]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        indices = batch_indices(
            len(self.dataset),
            seed=self.config.seed,
            step=micro,
            batch_size=self.config.batch_size,
            rank=rank,
            world_size=world,
        )
        generator = step_generator(self.config.seed, micro, rank)
        batch = {k: v.to(self.accelerator.device) for k, v in self.dataset.batch(indices, generator).items()}
        torch.manual_seed(int(generator.integers(2**62)))
        with self.accelerator.accumulate(self.model):
            with self.accelerator.autocast():
                terms = self.model(batch)
            if not torch.isfinite(terms["loss"]):
                self._refuse(micro, terms, indices)
            self.accelerator.backward(terms["loss"])
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {name: value.detach() for name, value in terms.items()}

    def _refuse(self, micro: int, terms: dict[str, Tensor], indices: np.ndarray) -> None:
        values = {name: value.item() for name, value in terms.items()}
        raise TrainingError(
            f"the loss of micro-step {micro} is not finite: {values}; samples {self.dataset.describe(indices)[:8]}. "
            "Lower the learning rate, or look at these samples"
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _update_average(self, step: int) -> None:
        if self.average is None:
            return
        decay = min(self.config.average_decay, (1 + step) / (10 + step))
        values = self.plain.state_dict()
        smooth = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in smooth], [values[n] for n in smooth], 1 - decay)
        for name in set(values) - set(smooth):
            self.average[name].copy_(values[name])

    def validate(self, step: int, validate: Callable[[nn.Module], dict[str, float]]) -> None:
        self.plain.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            measured = {f"validation_{name}": value for name, value in validate(self.plain).items()}
        self.latest |= measured
        self.metrics.write({"step": step + 1, **measured})

    def save(self, step: int) -> None:
        if self.accelerator.is_main_process:
            self.state.save(step, self.plain, self.optimizer.optimizer, self.average)
            self.stage.keep_time()
        self.accelerator.wait_for_everyone()

    def close(self) -> dict[str, float]:
        if self.average is not None:
            self.plain.load_state_dict(self.average)
        self.plain.eval()
        self.progress.close()
        if self.config.tracker != "none":
            self.accelerator.end_training()
        return self.latest


class _Metrics:
    """Means over the steps since the last line, over all processes; lines after the resumed step are dropped."""

    def __init__(
        self, path: Path, first_step: int, accelerator: Accelerator, config: TrainingConfig, name: str
    ) -> None:
        self.path, self.accelerator = path, accelerator
        self.tracked = config.tracker != "none"
        self.sums: dict[str, Tensor] = {}
        self.plain: dict[str, float] = {}
        self.count = 0
        self.since = time.monotonic()
        if accelerator.is_main_process and path.exists():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
            path.write_text("".join(f"{line}\n" for line in kept))
        if self.tracked:
            _start_tracker(accelerator, config, name)

    def add(self, step: int, terms: dict[str, Tensor], plain: dict[str, float]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.float()
        self.plain |= plain
        self.count += 1

    def flush(self, step: int) -> dict[str, float]:
        means = {name: value / self.count for name, value in self.sums.items()}
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, reduction="mean")
        values = {name: value.item() for name, value in means.items()} | self.plain
        rate = self.count / (time.monotonic() - self.since)
        self.write({"step": step + 1, **values, "steps_per_s": round(rate, 3)})
        self.sums, self.count, self.since = {}, 0, time.monotonic()
        return values

    def write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if self.tracked:
                self.accelerator.log(line, step=line["step"])


class _StopSignal:
    """SIGINT and SIGTERM ask for a stop after the current step; a second one stops at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.is_set = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        if self.accelerator.is_main_process:
            say("stopping after this step; the training state will be saved (again to stop at once)")

    def requested(self) -> bool:
        """Whether any process was asked to stop."""
        if self.accelerator.num_processes == 1:
            return self.is_set
        flag = torch.tensor(float(self.is_set), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())


def _groups(model: nn.Module, config: TrainingConfig, scale_of: Callable[[str], float]) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = scale_of(name)
        if scale == 0.0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": p, "scale": s, "weight_decay": d, "lr": 0.0} for (s, d), p in groups.items()]


def _start_tracker(accelerator: Accelerator, config: TrainingConfig, name: str) -> None:
    logged_in = os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
    if config.tracker == "wandb" and not logged_in:
        os.environ.setdefault("WANDB_MODE", "offline")
        say("wandb: nobody is logged in, so the run is kept offline; `wandb sync` uploads it later")
    accelerator.init_trackers(name, config=config.model_dump(mode="json"))
