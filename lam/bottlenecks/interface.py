"""What a bottleneck is given and answers, and how the use of its codes is counted."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NoCodesError(ValueError):
    """Code indices were asked of a bottleneck that has none."""


class Quantized(NamedTuple):
    """Tokens behind the bottleneck."""

    codes: Float[Tensor, "batch tokens dim"]
    """What the decoder gets; gradients reach the encodings."""
    indices: Int[Tensor, "batch tokens"] | None
    """Code indices; None where the bottleneck is continuous."""
    loss: Float[Tensor, ""]
    """Its own loss, a mean."""


class Bottleneck(nn.Module):
    """Encodings in, `Quantized` out. A discrete one sets `num_codes` and calls `_count` in training."""

    counts: Tensor
    recent: Tensor | None = None
    """The encodings of the last training batch, from which `revive` may take new codes."""

    def __init__(self, num_tokens: int, num_codes: int | None) -> None:
        super().__init__()
        self.num_tokens, self.num_codes = num_tokens, num_codes
        if num_codes is not None:
            self.register_buffer("counts", torch.zeros(num_tokens, num_codes, dtype=torch.long))

    def look_up(self, indices: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The codes at `indices`.

        Raises:
            NoCodesError: it has no codes.
        """
        raise NoCodesError(f"{type(self).__name__} has no codes to look up; choose bottleneck vq, vq_ema or fsq")

    def revive(self, encodings: Float[Tensor, "batch tokens dim"], generator: torch.Generator) -> int:
        """Replace codes that were hardly used since the last call; answers how many. Nothing to do by default."""
        if self.num_codes is not None:
            self.counts.zero_()
        return 0

    @torch.no_grad()
    def _count(self, encodings: Float[Tensor, "batch tokens dim"], indices: Int[Tensor, "batch tokens"]) -> None:
        """Add to the use of each code, and keep the encodings; on the device, without a loop."""
        assert self.num_codes is not None
        self.recent = encodings.detach()
        flat = indices + self.num_codes * torch.arange(self.num_tokens, device=indices.device)
        self.counts.view(-1).scatter_add_(0, flat.flatten(), torch.ones_like(flat.flatten()))


def dead_codes(counts: Int[Tensor, "books codes"]) -> Tensor:
    """Which codes were used less than a tenth as often as the average one; all where nothing was counted."""
    counts = counts.float()
    return counts <= 0.1 * counts.mean(-1, keepdim=True)


def codebook_health(counts: Int[Tensor, "tokens codes"]) -> dict[str, float]:
    """Perplexity (mean over tokens) and the share of codes in use, from how often each code was used."""
    share = counts.float() / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return {"perplexity": entropy.exp().mean().item(), "usage": (counts > 0).float().mean().item()}
