"""What every backbone answers."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class BackboneOutput(NamedTuple):
    """Hidden states and logits of one forward pass."""

    hidden: Float[Tensor, "batch positions width"]
    """Last hidden states: image tokens first, then text (only new positions when a cache was given)."""
    logits: Float[Tensor, "batch text vocabulary"]
    """Next-token logits at the text positions."""
    cache: Any
    """Keys and values for the next call, where asked for."""
