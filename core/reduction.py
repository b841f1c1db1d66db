"""What of a frame's patch tokens is stored: all of them, means over squares, or the principal components of the map."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from core.run import fingerprint_of_file, say
from core.store import EpisodeRecord, Store
from core.vision import Grid, VisualEncoder

FITTED_FRAMES = 2000
"""Training frames that principal components are fitted on; at least as many as components."""
BATCH = 32
FILE = "components.npz"


class ReductionError(ValueError):
    """Tokens cannot be reduced so."""


class Projection(NamedTuple):
    """A frame's whole map of patches to a few numbers whose mean square is 1 on average."""

    mean: Float[Tensor, " map"]
    weights: Float[Tensor, "map components"]


class Reduction(NamedTuple):
    """From the tokens of an encoder to what is stored."""

    encoder_grid: Grid
    pool: int
    projection: Projection | None
    dim: int
    """Numbers of each stored token."""

    @property
    def grid(self) -> Grid:
        """How stored tokens lie in the image; one token where the whole map is projected."""
        if self.projection is not None:
            return Grid(1, 1)
        return Grid(self.encoder_grid.rows // self.pool, self.encoder_grid.cols // self.pool)

    def __call__(self, tokens: Float[Tensor, "n patches dim"]) -> Float[Tensor, "n stored dim_stored"]:
        """Stored tokens of frames."""
        tokens = pooled(tokens, self.encoder_grid, self.pool)
        if self.projection is None:
            return tokens
        mean, weights = (part.to(tokens.device) for part in self.projection)
        return rearrange((tokens.flatten(1) - mean) @ weights, "n components -> n 1 components")


def reduction(
    directory: Path, store: Store, views: Sequence[str], encoder: VisualEncoder, pool: int, components: int
) -> Reduction:
    """The reduction of a cache in `directory`; principal components are fitted on training frames, once.

    Raises:
        ReductionError: the grid cannot be pooled so, or there are fewer frames than components.
    """
    if encoder.grid.rows % pool or encoder.grid.cols % pool:
        raise ReductionError(f"pool is {pool}, which does not divide the patch grid {tuple(encoder.grid)}")
    plain = Reduction(encoder.grid, pool, None, encoder.dim)
    if not components:
        return plain
    if not (directory / FILE).exists():
        _fit(directory, plain, store, views, encoder, components)
    with np.load(directory / FILE) as arrays:
        projection = Projection(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["weights"]))
    return plain._replace(projection=projection, dim=components)


def projection_fingerprint(directory: Path) -> str:
    """What identifies a cache's principal components: features of another fit mean something else."""
    return fingerprint_of_file(directory / FILE)


def pooled(tokens: Tensor, grid: Grid, pool: int) -> Tensor:
    """Means over squares of `pool` patches a side."""
    sizes = {"rows": grid.rows // pool, "cols": grid.cols // pool, "down": pool, "across": pool}
    return reduce(tokens, "n (rows down cols across) dim -> n (rows cols) dim", "mean", **sizes)


def _fit(
    directory: Path, plain: Reduction, store: Store, views: Sequence[str], encoder: VisualEncoder, components: int
) -> None:
    """Principal components by the eigenvectors of the frames' products, of which there are fewer than of the map's."""
    maps = torch.cat([plain(encoder(images.to(encoder.device))).flatten(1).cpu() for images in _sample(store, views)])
    if len(maps) <= components:
        raise ReductionError(
            f"{len(maps)} training frames cannot give {components} principal components; lower components"
        )
    mean = maps.mean(0)
    deviations = maps - mean
    variances, vectors = torch.linalg.eigh(deviations.double() @ deviations.T.double())
    largest = variances[-components:].flip(0)
    axes = deviations.T @ vectors[:, -components:].flip(1).float() / largest.sqrt().float()
    kept = float(largest.sum() / variances.sum())
    say(f"features: {components} components of {maps.shape[1]} numbers keep {kept:.0%} of the variance")
    scale = (largest.sum() / len(maps) / components).sqrt().float()
    draft = directory / f".{FILE}"
    with draft.open("wb") as stream:
        np.savez(stream, mean=mean.numpy(), weights=(axes / scale).numpy(), kept=np.array(kept))
    draft.replace(directory / FILE)


def _sample(store: Store, views: Sequence[str]) -> Iterator[Tensor]:
    """Training frames spread over episodes, views and time, in batches of one view's."""
    seen = [(view, r) for view in views for r in store.select(split="train") if view in r.views]
    each = max(1, -(-FITTED_FRAMES // max(1, len(seen))))
    random = np.random.default_rng(0)
    chosen = [seen[number] for number in sorted(random.permutation(len(seen))[: -(-FITTED_FRAMES // each)].tolist())]
    for view, records in groupby(chosen, key=itemgetter(0)):
        for some in _batched((record for _, record in records), max(1, BATCH // each)):
            frames = [random.choice(r.length, min(each, r.length), replace=False).tolist() for r in some]
            pictures = [store.frames(r.index, view, sorted(f)) for r, f in zip(some, frames, strict=True)]
            yield torch.from_numpy(np.concatenate(pictures))


def _batched(items: Iterable[EpisodeRecord], size: int) -> Iterator[tuple[EpisodeRecord, ...]]:
    """Items in groups of `size`, the last one perhaps smaller."""
    items = iter(items)
    while group := tuple(islice(items, size)):
        yield group
