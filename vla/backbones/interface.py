"""What every backbone answers."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class BackboneOutput(NamedTuple):
    """Hidden states and logits of one forward pass."""

    image: Float[Tensor, "batch image_tokens width"] | None
    """What an action head shall get of the image; None where the image was in an earlier call."""
    hidden: Float[Tensor, "batch text width"]
    """Last hidden states at the text positions (only new ones when a cache was given)."""
    logits: Float[Tensor, "batch text vocabulary"]
    """Next-token logits at the text positions."""
    cache: Any
    """Keys and values for the next call, where asked for."""
