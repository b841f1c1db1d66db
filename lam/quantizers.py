"""Vector quantisation of action tokens, with codebooks that stay alive."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a bottleneck answers."""

    codes: Float[Tensor, "batch tokens dim"]
    """Quantised encodings; gradients pass straight through to the encodings."""
    indices: Int[Tensor, "batch tokens"]
    """Code indices."""
    loss: Float[Tensor, ""]
    """Codebook term + beta x commitment term (van den Oord et al. 2017, equation 3)."""


class VectorQuantizer(nn.Module):
    """Nearest code of a learned codebook; one codebook for all tokens (the paper's) or one a token."""

    def __init__(self, num_codes: int, dim: int, num_tokens: int, beta: float, is_shared: bool) -> None:
        super().__init__()
        self.num_codes, self.beta = num_codes, beta
        books = 1 if is_shared else num_tokens
        self.codebook = nn.Parameter(torch.empty(books, num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))
        self.num_tokens = num_tokens
        self.register_buffer("counts", torch.zeros(num_tokens, num_codes))

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> Quantized:
        """Quantise; in training the use of codes is counted for `codebook_health` and `revive`."""
        indices = self.nearest(encodings)
        codes = self.look_up(indices)
        encodings = encodings.float()
        loss = F.mse_loss(codes, encodings.detach()) + self.beta * F.mse_loss(encodings, codes.detach())
        if self.training:
            with torch.no_grad():
                self.counts += F.one_hot(indices, self.num_codes).sum(0)
        return Quantized(encodings + (codes - encodings).detach(), indices, loss)

    @torch.no_grad()
    def nearest(self, encodings: Float[Tensor, "batch tokens dim"]) -> Int[Tensor, "batch tokens"]:
        """Index of the nearest code by Euclidean distance, in float32 whatever the autocast."""
        with torch.autocast(encodings.device.type, enabled=False):
            by_token = encodings.detach().float().transpose(0, 1)
            books = self.codebook.float().expand(self.num_tokens, -1, -1)
            distances = (
                by_token.square().sum(-1, keepdim=True)
                - 2 * by_token @ books.transpose(1, 2)
                + books.square().sum(-1)[:, None]
            )
            return distances.argmin(-1).transpose(0, 1)

    def look_up(self, indices: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The codes at `indices`."""
        books = self.codebook.expand(self.num_tokens, -1, -1)
        return books[torch.arange(self.num_tokens, device=indices.device), indices].float()

    @torch.no_grad()
    def revive(self, encodings: Float[Tensor, "batch tokens dim"], generator: torch.Generator) -> int:
        """Replace codes that were hardly used since the last call by perturbed encodings; answers how many.

        Before anything was counted this places all codes.
        With the same encodings, counts and generator on every process, the result is the same on every process.
        """
        is_shared = self.codebook.shape[0] == 1
        counts = self.counts.sum(0, keepdim=True) if is_shared else self.counts
        dead = counts <= 0.1 * counts.mean(-1, keepdim=True)
        for book in range(len(self.codebook)):
            pool = encodings.flatten(0, 1) if is_shared else encodings[:, book]
            number = int(dead[book].sum())
            chosen = torch.randint(len(pool), (number,), generator=generator).to(pool.device)
            noise = torch.randn(number, pool.shape[1], generator=generator).to(pool.device)
            self.codebook[book, dead[book]] = pool[chosen].float() + 0.01 * pool.float().std() * noise
        self.counts.zero_()
        return int(dead.sum())


def codebook_health(counts: Float[Tensor, "tokens codes"]) -> dict[str, float]:
    """Perplexity (mean over tokens) and the share of codes in use, from how often each code was used."""
    share = counts.float() / counts.sum(-1, keepdim=True).clamp_min(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return {"perplexity": entropy.exp().mean().item(), "usage": (counts > 0).float().mean().item()}
