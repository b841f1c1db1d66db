"""`bins`: every number of a chunk is a word, one of 256 bins (RT-1, RT-2, OpenVLA)."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.config import Config
from vla.heads.interface import HeadSizes, TokenHead, Words
from vla.tokens import only


class BinsConfig(Config):
    """How fine."""

    bins: int = 256
    """Bins between -1 and 1."""


class BinsHead(TokenHead):
    """Words of a step after those of the step before, dimension by dimension."""

    def __init__(self, config: BinsConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.bins, self.horizon, self.dims = config.bins, sizes.horizon, sizes.action_dims
        self.names = [f"<BIN_{number}>" for number in range(config.bins)]

    def tokens(self, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]) -> Words:
        """The bin that each number lies in, the outermost for those beyond."""
        numbers = ((actions + 1) / 2 * self.bins).floor().clamp(0, self.bins - 1).long()
        counts = mask[:, :, None].expand_as(actions)
        flat = "batch horizon dims -> batch (horizon dims)"
        return Words(rearrange(numbers, flat) + self.first_id, rearrange(counts, flat))

    def legal(
        self, logits: Float[Tensor, "batch vocabulary"], written: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Any bin may follow."""
        return only(logits, torch.arange(self.first_id, self.first_id + self.bins))

    def is_complete(self, written: Int[Tensor, "batch words"]) -> bool:
        """Whether there is a word for every number."""
        return written.shape[1] == self.horizon * self.dims

    def actions(self, written: Int[Tensor, "batch words"]) -> Float[Tensor, "batch horizon dims"]:
        """The middles of the bins."""
        middles = (written - self.first_id + 0.5) / self.bins * 2 - 1
        return rearrange(middles, "batch (horizon dims) -> batch horizon dims", dims=self.dims)
