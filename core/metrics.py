"""metrics.jsonl and the trackers: what a training measured, one line every so many steps."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from core.run import say, write_text
from core.throughput import TIMINGS, Throughput


class MetricsLog:
    """Means over the steps since the last line, over all processes; lines after the resumed step are dropped.

    `latest` holds the last value of each metric that is a number, those before the resumed step included.
    """

    def __init__(self, path: Path, first_step: int, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator
        self.sums: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {}
        self.terms_added = 0
        self.latest: dict[str, float] = {}
        lines = [line for line in read_metrics(path) if line["step"] <= first_step]
        for line in lines:
            self._remember(line)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
        self.last_step = first_step

    def add_terms(self, terms: dict[str, Tensor]) -> None:
        """Loss terms of one micro-step."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
        self.terms_added += 1

    def flush(self, step: int, throughput: Throughput) -> None:
        """Write the line of `step`: means of the terms, the latest of each fact since the last line, the throughput."""
        means = {name: value / self.terms_added for name, value in self.sums.items()}
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, reduction="mean")
        measured = {name: value.item() for name, value in means.items()}
        self.write({"step": step, **measured, **self.facts, **throughput.line(step - self.last_step)})
        self.sums, self.facts, self.terms_added = {}, {}, 0
        self.last_step = step

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; what is no number in it is left out of trackers."""
        numbers = self._remember(line)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if self.accelerator.trackers:
                self.accelerator.log(numbers, step=line["step"])

    def _remember(self, line: dict[str, Any]) -> dict[str, float]:
        numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        self.latest |= {name: value for name, value in numbers.items() if name not in ("step", *TIMINGS)}
        return numbers


def start_tracker(accelerator: Accelerator, tracker: str, name: str, settings: dict[str, Any]) -> None:
    """Start the tracker that the accelerator was made with; wandb stays offline where nobody is logged in."""
    logged_in = os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
    if tracker == "wandb" and not logged_in:
        os.environ.setdefault("WANDB_MODE", "offline")
        say("wandb: nobody is logged in, so the run is kept offline; `wandb sync` uploads it later")
    accelerator.init_trackers(name, config=settings)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, none where there is no such file; one that a kill cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
