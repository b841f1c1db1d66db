"""Vector quantisation with codes that are moving averages of their encodings."""

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from lam.bottlenecks.interface import Bottleneck, Quantized
from lam.bottlenecks.vq import new_codes


class EmaVectorQuantizer(Bottleneck):
    """Nearest code; codes follow the mean of their encodings (van den Oord et al. 2017, appendix A.1).

    The averages are summed over processes at each step by the library.
    """

    def __init__(self, num_codes: int, dim: int, num_tokens: int, beta: float, is_shared: bool, decay: float) -> None:
        super().__init__(num_tokens, num_codes)
        self.is_shared = is_shared
        self.library = VectorQuantize(
            dim=dim if is_shared else num_tokens * dim,
            codebook_dim=dim,
            codebook_size=num_codes,
            heads=1 if is_shared else num_tokens,
            separate_codebook_per_head=not is_shared,
            decay=decay,
            commitment_weight=beta,
            rotation_trick=False,
            threshold_ema_dead_code=0,
        )

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> Quantized:
        """Straight-through codes; beta x commitment term."""
        encodings = encodings.float()
        layout = (
            "batch tokens dim -> batch tokens dim" if self.is_shared else "batch tokens dim -> batch 1 (tokens dim)"
        )
        with torch.autocast(encodings.device.type, enabled=False):
            codes, indices, loss = self.library(rearrange(encodings, layout))
        indices = indices.reshape(encodings.shape[:2])
        if self.training:
            self._count(encodings, indices)
        return Quantized(codes.reshape(encodings.shape), indices, loss.sum())

    def look_up(self, indices: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The codes at `indices`."""
        books = self._books.expand(self.num_tokens, -1, -1)
        return books[torch.arange(self.num_tokens, device=indices.device), indices].float()

    @property
    def _books(self) -> Float[Tensor, "books codes dim"]:
        return self.library._codebook.embed

    @torch.no_grad()
    def revive(self, encodings: Float[Tensor, "batch tokens dim"], generator: torch.Generator) -> int:
        """Replace codes that were hardly used by perturbed encodings, the main process's; answers how many."""
        replaced, dead = new_codes(self._books, self.counts, encodings, generator)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(replaced, 0)
        averages = self.library._codebook
        averages.embed.copy_(replaced)
        averages.cluster_size.copy_(torch.where(dead, torch.ones_like(averages.cluster_size), averages.cluster_size))
        averages.embed_avg.copy_(torch.where(dead[..., None], replaced, averages.embed_avg))
        self.counts.zero_()
        return int(dead.sum())
