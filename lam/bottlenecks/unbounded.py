"""No bottleneck but the number of channels."""

from jaxtyping import Float
from torch import Tensor

from lam.bottlenecks.interface import Bottleneck, Quantized


class NoBottleneck(Bottleneck):
    """The encodings as they are."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens, None)

    def forward(self, encodings: Float[Tensor, "batch tokens dim"]) -> Quantized:
        """The encodings; no loss of its own."""
        encodings = encodings.float()
        return Quantized(encodings, None, encodings.new_zeros(()))
