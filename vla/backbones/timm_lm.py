"""`timm_lm`: any vision transformers of timm, a projector, and any causal language model of transformers.

DINOv2-S with SmolLM2-135M can be had without a model hub.
"""

from collections.abc import Sequence
from pathlib import Path

from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from core.config import Config
from core.weights import DEFAULT_TOWER, find_weights
from vla.backbones.causal import CausalBackbone, language_of_form
from vla.backbones.interface import Setting
from vla.backbones.towers import Towers, create_tower
from vla.language_models import SMOLLM2, LanguageModel, load_language_model


class TimmLmConfig(Config):
    """Which towers, which language model, and how they are joined."""

    towers: tuple[str, ...] = (DEFAULT_TOWER,)
    """Names in timm, with their tags."""
    weights: str = "auto"
    """Where their weights come from, as encoder.weights of scripts/cache_features.py."""
    image_size: int = 224
    """Pixels a side that frames are resized to for the towers."""
    pool: int = Field(default=1, ge=1)
    """Patches are averaged over squares of this many a side, which makes fewer image tokens."""
    language: str = SMOLLM2
    """Folder, or name in the hub."""


class TimmLmBackbone(CausalBackbone):
    """Patches of all cameras, one after the other, stand before the text."""

    tower = ("vision",)
    untrained = ("project",)

    def __init__(
        self, options: TimmLmConfig, setting: Setting, towers: list[nn.Module], language: LanguageModel
    ) -> None:
        super().__init__(*language)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.vision, self.pool = Towers(towers), options.pool
        rows, columns = self.vision.grid
        if rows % options.pool or columns % options.pool:
            raise ValueError(
                f"backbone.options.pool is {options.pool}, which does not divide the grid {self.vision.grid}"
            )
        self.extra_tokens = self.image_tokens = setting.views * (rows // options.pool) * (columns // options.pool)
        self.project = nn.Sequential(
            nn.LayerNorm(self.vision.width),
            nn.Linear(self.vision.width, self.width),
            nn.GELU(),
            nn.Linear(self.width, self.width),
        )
        self.set_latents(setting)

    @classmethod
    def fresh(cls, options: TimmLmConfig, setting: Setting, texts: Sequence[str]) -> "TimmLmBackbone":
        """With pretrained towers and language model; the projector between them is random."""
        towers = []
        for name in options.towers:
            found = find_weights(name, options.weights)
            towers.append(create_tower(name, options.image_size, str(found.path) if found.path else None))
        return cls(options, setting, towers, load_language_model(options.language))

    @classmethod
    def restored(cls, options: TimmLmConfig, setting: Setting, folder: Path) -> "TimmLmBackbone":
        """The same form."""
        towers = [create_tower(name, options.image_size) for name in options.towers]
        return cls(options, setting, towers, LanguageModel(*language_of_form(folder)))

    def embed_images(
        self, images: UInt8[Tensor, "batch views high wide 3"]
    ) -> Float[Tensor, "batch image_tokens width"]:
        """Image tokens, camera by camera and row by row."""
        patches = self.vision(rearrange(images, "batch views h w c -> (batch views) h w c"))
        rows, columns = self.vision.grid
        sizes = {"rows": rows // self.pool, "columns": columns // self.pool, "down": self.pool, "right": self.pool}
        patches = reduce(patches, "n (rows down columns right) dim -> n (rows columns) dim", "mean", **sizes)
        return rearrange(
            self.project(patches), "(batch views) tokens dim -> batch (views tokens) dim", batch=len(images)
        )
