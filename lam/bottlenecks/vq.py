"""Vector quantisation with a codebook learned by its gradient, as published."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.zero import set_parameter, whole
from lam.bottlenecks.interface import Bottleneck, Quantized, dead_codes


class VectorQuantizer(Bottleneck):
    """Nearest code of a learned codebook; one codebook for all tokens (the paper's) or one a token."""

    def __init__(self, num_codes: int, dim: int, num_tokens: int, beta: float, is_shared: bool) -> None:
        super().__init__(num_tokens, num_codes)
        self.beta = beta
        books = 1 if is_shared else num_tokens
        self.codebook = nn.Parameter(torch.empty(books, num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> Quantized:
        """Straight-through codes; codebook term + beta x commitment term (van den Oord et al. 2017, equation 3)."""
        encodings = encodings.float()
        indices = self._nearest(encodings)
        codes = self.look_up(indices)
        loss = F.mse_loss(codes, encodings.detach()) + self.beta * F.mse_loss(encodings, codes.detach())
        if self.training:
            self._count(encodings, indices)
        return Quantized(encodings + (codes - encodings).detach(), indices, loss)

    @torch.no_grad()
    def _nearest(self, encodings: Float[Tensor, "batch tokens dim"]) -> Int[Tensor, "batch tokens"]:
        """Index of the nearest code by Euclidean distance, in float32 whatever the autocast."""
        with torch.autocast(encodings.device.type, enabled=False):
            by_token = encodings.detach().transpose(0, 1)
            books = self.codebook.float().expand(self.num_tokens, -1, -1)
            distances = books.square().sum(-1)[:, None] - 2 * by_token @ books.transpose(1, 2)
            return distances.argmin(-1).transpose(0, 1)

    def look_up(self, indices: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The codes at `indices`."""
        books = self.codebook.expand(self.num_tokens, -1, -1)
        return books[torch.arange(self.num_tokens, device=indices.device), indices].float()

    @torch.no_grad()
    def revive(self, encodings: Float[Tensor, "batch tokens dim"], generator: torch.Generator) -> int:
        """Replace codes that were hardly used since the last call by perturbed encodings; answers how many.

        Before anything was counted this places all codes. Processes with the same counts and generator place the same
        codes, from the main one's encodings; how many encodings each has does not matter.
        """
        replaced, dead = new_codes(whole(self.codebook), self.counts, encodings, generator)
        set_parameter(self.codebook, dead, replaced[dead])
        self.counts.zero_()
        return int(dead.sum())


def new_codes(
    codebook: Float[Tensor, "books codes dim"],
    counts: Int[Tensor, "tokens codes"],
    encodings: Float[Tensor, "batch tokens dim"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "books codes dim"], Tensor]:
    """The codebook with perturbed encodings in place of dead codes, and which were dead."""
    is_shared = len(codebook) == 1
    dead = dead_codes(counts.sum(0, keepdim=True) if is_shared else counts)
    pools = encodings.detach().float().flatten(0, 1)[None] if is_shared else encodings.detach().float().transpose(0, 1)
    shape = codebook.shape
    chosen = torch.randint(pools.shape[1], shape[:2], generator=generator).to(pools.device)
    noise = torch.randn(shape, generator=generator).to(pools.device)
    spread = pools.std(dim=(1, 2), keepdim=True)
    candidates = pools.gather(1, chosen[..., None].expand(shape)) + 0.01 * spread * noise
    return torch.where(dead[..., None], candidates, codebook.float()), dead
