"""The published training step, written plainly and with the published names: what ours is measured against.

Every view is encoded, every view is rebuilt from every view's latent action in a loop, attention is a table of scores
with a mask and a softmax in float32, and the use of codes is counted row by row in Python.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lam.blocks import sinusoidal_positions
from lam.config import LamConfig

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 1e-2, 0.1


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, tokens: Tensor, mask: Bool[Tensor, "slots slots"]) -> Tensor:
        split = "batch slots (heads width) -> batch heads slots width"
        q, k, v = (rearrange(m(tokens), split, heads=self.heads) for m in (self.to_q, self.to_k, self.to_v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attended = scores.float().softmax(-1).to(v.dtype) @ v
        return self.to_out(rearrange(attended, "batch heads slots width -> batch slots (heads width)"))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width))


class _SpatialBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.spatial_attn = _Attention(width, heads)
        self.ffn = _feed_forward(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "batch slots width"]) -> Float[Tensor, "batch slots width"]:
        tokens = tokens + self.spatial_attn(self.norm1(tokens), _all(tokens))
        return tokens + self.ffn(self.norm2(tokens))


class _SpatioTemporalBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.spatial_attn, self.temporal_attn = _Attention(width, heads), _Attention(width, heads)
        self.ffn = _feed_forward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, tokens: Float[Tensor, "batch frames slots width"]) -> Float[Tensor, "batch frames slots width"]:
        batch, _, slots, _ = tokens.shape
        tokens = rearrange(tokens, "batch frames slots width -> (batch frames) slots width")
        tokens = tokens + self.spatial_attn(self.norm1(tokens), _all(tokens))
        tokens = rearrange(tokens, "(batch frames) slots width -> (batch slots) frames width", batch=batch)
        tokens = tokens + self.temporal_attn(self.norm2(tokens), _all(tokens).tril())
        tokens = rearrange(tokens, "(batch slots) frames width -> batch frames slots width", slots=slots)
        return tokens + self.ffn(self.norm3(tokens))


def _all(tokens: Float[Tensor, "batch slots width"]) -> Bool[Tensor, "slots slots"]:
    slots = tokens.shape[1]
    return torch.ones(slots, slots, dtype=torch.bool, device=tokens.device)


class _Stack(nn.Module):
    def __init__(self, kind: type[nn.Module], inputs: int, width: int, outputs: int | None, blocks: int, heads: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.LayerNorm(width))
        self.transformer_blocks = nn.ModuleList(kind(width, heads) for _ in range(blocks))
        if outputs is not None:
            self.out = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.ffn(tokens)
        tokens = tokens + sinusoidal_positions(tokens.shape[-2], tokens.shape[-1]).to(tokens.device)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return self.out(tokens) if hasattr(self, "out") else tokens


class _Quantizer(nn.Module):
    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.codebook.weight, -1 / num_codes, 1 / num_codes)
        self.usage = [0] * num_codes

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes with straight-through gradients, the codebook term and the commitment term."""
        encodings = encodings.float()
        distances = (encodings[:, :, None] - self.codebook.weight).square().sum(-1)
        indices = distances.argmin(-1)
        for row in indices.flatten():
            self.usage[int(row)] += 1
        codes = self.codebook(indices)
        terms = F.mse_loss(codes, encodings.detach()), F.mse_loss(encodings, codes.detach())
        return encodings + (codes - encodings).detach(), *terms


class PublishedModel(nn.Module):
    """The published latent action model above its frozen visual encoder."""

    def __init__(self, config: LamConfig, feature_dim: int) -> None:
        super().__init__()
        width, heads, self.beta = config.width, config.heads, config.beta
        self.action_latent = nn.Parameter(torch.empty(1, 1, config.num_tokens, feature_dim).uniform_(-1, 1))
        self.encoder = _Stack(_SpatioTemporalBlock, feature_dim, width, None, config.encoder_blocks, heads)
        self.to_codebook = nn.Linear(width, config.code_dim)
        self.vq = _Quantizer(config.num_codes, config.code_dim)
        self.action_up = nn.Linear(config.code_dim, width)
        self.patch_up = nn.Linear(feature_dim, width)
        self.decoder = _Stack(_SpatialBlock, width, width, feature_dim, config.decoder_blocks, heads)

    def forward(self, features: Float[Tensor, "views batch 2 patches dim"]) -> Float[Tensor, ""]:
        """The loss: half the sum over all pairs of views, and half the sum of the quantiser's terms over views."""
        codes, loss = [], features.new_zeros(())
        for view in features:
            quantized, codebook_term, commitment_term = self.vq(self.encode(view))
            codes.append(quantized)
            loss = loss + (codebook_term + self.beta * commitment_term) / 2
        for target in features:
            for code in codes:
                loss = loss + F.mse_loss(self.decode(target[:, 0], code).float(), target[:, 1]) / 2
        return loss

    def encode(self, features: Float[Tensor, "batch 2 patches dim"]) -> Float[Tensor, "batch tokens code_dim"]:
        """The action tokens of the later frame."""
        queries = self.action_latent.expand(len(features), 2, -1, -1)
        tokens = self.encoder(torch.cat([queries, features], dim=2))
        return self.to_codebook(tokens[:, 1, : queries.shape[2]])

    def decode(
        self, features: Float[Tensor, "batch patches dim"], codes: Float[Tensor, "batch tokens code_dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """The later frame from the first one and codes."""
        tokens = torch.cat([self.action_up(codes), self.patch_up(features)], dim=1)
        return self.decoder(tokens)[:, -features.shape[1] :]


class PublishedStep:
    """Forward, backward, clipping and Adam of the published training; call it to take one step."""

    def __init__(self, model: PublishedModel, features: Float[Tensor, "views batch 2 patches dim"], bf16: bool) -> None:
        self.model, self.features, self.bf16 = model.train(), features, bf16
        self.optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def __call__(self) -> float:
        """The loss before the step."""
        with torch.autocast(self.features.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.model(self.features)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return loss.item()
