"""What is measured: the paper's model and tower, or the same in small to see that the measuring works."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from core.vision import EncoderConfig
from lam.config import LamConfig
from lam.model import LatentActionModel


class Sizes(NamedTuple):
    """Sizes of everything that is measured."""

    model: LamConfig
    tower: EncoderConfig
    feature_dim: int
    patches: int
    batch: int
    """Transitions of a training step."""
    rounds: int
    """How often everything is timed in turn."""
    label_batch: int
    """Transitions that are labelled together."""
    labelled: int
    """Transitions that are labelled in all; a multiple of `label_batch`."""
    quick_model: LamConfig
    """The quickstart's model, and what it is given."""
    quick_dim: int
    quick_patches: int
    quick_batch: int

    def new_model(self, **changes: int) -> LatentActionModel:
        """A model with weights that are the same each time."""
        torch.manual_seed(0)
        return LatentActionModel(self.model.model_copy(update=changes), self.feature_dim, self.patches)

    def features(self, views: int, batch: int, device: torch.device) -> Float[Tensor, "views batch 2 patches dim"]:
        """Random features, the same each time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(views, batch, 2, self.patches, self.feature_dim, generator=generator).to(device)


FULL = Sizes(
    model=LamConfig(),
    tower=EncoderConfig(name="vit_base_patch14_reg4_dinov2.lvd142m", image_size=224, weights="random"),
    feature_dim=768,
    patches=256,
    batch=2,
    rounds=3,
    label_batch=16,
    labelled=16,
    quick_model=LamConfig(network="perceptron", width=384, code_dim=32, codebook="per_token", normalise_encodings=True),
    quick_dim=384,
    quick_patches=16,
    quick_batch=256,
)
QUICK = Sizes(
    model=LamConfig(width=48, heads=4, encoder_blocks=2, decoder_blocks=2, code_dim=16),
    tower=EncoderConfig(name="vit_tiny_patch16_224", image_size=64, weights="random"),
    feature_dim=192,
    patches=16,
    batch=2,
    rounds=2,
    label_batch=4,
    labelled=4,
    quick_model=LamConfig(network="perceptron", width=16, code_dim=8),
    quick_dim=12,
    quick_patches=4,
    quick_batch=16,
)
