"""Nested dropout (Rippel et al. 2014): earlier tokens matter most, so that one model serves every rate."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_first(
    codes: Float[Tensor, "batch tokens dim"], kept: Int[Tensor, " batch"] | int
) -> Float[Tensor, "batch tokens dim"]:
    """The first `kept` tokens of each row, zeros in place of the others."""
    kept = torch.as_tensor(kept, device=codes.device).reshape(-1, 1)
    is_kept = torch.arange(codes.shape[1], device=codes.device) < kept
    return codes * is_kept[..., None]


def drop_later_tokens(codes: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Each row keeps between one and all of its tokens, with equal chance."""
    return keep_first(codes, torch.randint(1, codes.shape[1] + 1, (len(codes),), device=codes.device))
