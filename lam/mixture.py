"""Several datasets as one, each with its share of the samples."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.sampling import Shares
from lam.dataset import TransitionDataset, TransitionsError


class Mixture:
    """Datasets whose samples are drawn in proportion to `weights`."""

    def __init__(self, datasets: Sequence[TransitionDataset], weights: Sequence[float]) -> None:
        forms = {(dataset.num_patches, dataset.source.dim) for dataset in datasets}
        if len(forms) != 1:
            raise TransitionsError(f"datasets differ in (patches, channels) of their features: {sorted(forms)}")
        self.datasets = list(datasets)
        self._shares = Shares([len(dataset) for dataset in datasets], weights)
        self.num_patches, self.dim = forms.pop()

    def __len__(self) -> int:
        return len(self._shares)

    def batch(self, indices: Int[np.ndarray, " batch"], generator: np.random.Generator) -> dict[str, Tensor]:
        """The fields of `lam.objectives.interface.Transitions`, dataset by dataset."""
        parts = [self.datasets[number].batch(inner, generator) for number, inner in self._shares.split(indices)]
        return joined(parts) if len(parts) > 1 else parts[0]

    def describe(self, indices: Int[np.ndarray, " batch"]) -> list[str]:
        """`episode:frame` of each sample."""
        return [name for number, inner in self._shares.split(indices) for name in self.datasets[number].describe(inner)]


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches one after another, their samples and rows renumbered."""
    rows = samples = 0
    moved = []
    for part in parts:
        shift = {"sample": samples, "own": rows, "cross": rows}
        moved.append({name: values + shift.get(name, 0) for name, values in part.items()})
        samples += int(part["sample"].max()) + 1
        rows += len(part["sample"])
    return {name: torch.cat([part[name] for part in moved]) for name in moved[0]}


def first_rows(batch: dict[str, Tensor]) -> Float[Tensor, "samples 2 patches dim"]:
    """Features of each sample as the first of its cameras saw it, float32."""
    is_first = torch.cat([batch["sample"].new_ones(1), batch["sample"].diff()]).bool()
    return batch["features"][is_first].float()
