"""Finite scalar quantisation (Mentzer et al. 2023): a few bounded dimensions, each rounded; nothing can collapse."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from vector_quantize_pytorch import FSQ

from lam.bottlenecks.interface import Bottleneck, Quantized


class FiniteScalarQuantizer(Bottleneck):
    """Each token projected to `len(levels)` numbers, rounded, and projected back."""

    def __init__(self, levels: Sequence[int], dim: int, num_tokens: int) -> None:
        super().__init__(num_tokens, prod(levels))
        self.library = FSQ(list(levels), dim=dim)

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> Quantized:
        """Straight-through codes; no loss of its own."""
        with torch.autocast(encodings.device.type, enabled=False):
            codes, indices = self.library(encodings.float())
        indices = indices.long()
        if self.training:
            self._count(encodings, indices)
        return Quantized(codes, indices, codes.new_zeros(()))

    def look_up(self, indices: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The codes at `indices`."""
        return self.library.indices_to_codes(indices).float()
