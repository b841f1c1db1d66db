"""What is measured: a small language model and tower of usual sizes, or tiny ones to see that the measuring works."""

from typing import NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.loading import Batch
from core.weights import DEFAULT_TOWER
from vla.backbones.interface import Setting
from vla.backbones.timm_lm import TimmLmBackbone, TimmLmConfig
from vla.backbones.towers import create_tower
from vla.benchmark.instructions import instructions
from vla.checkpoint import new_tokens
from vla.language_models import LanguageModel
from vla.lora import LoraConfig, add_adapters
from vla.model import VisionLanguageActionModel
from vla.prompt import prompt
from vla.tokens import train_tokenizer

SETTING = Setting(num_codes=16, num_tokens=4)


class Sizes(NamedTuple):
    """Sizes of everything that is measured."""

    width: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tower: str
    image_size: int
    pool: int
    frame_side: int
    """Pixels a side of recorded frames."""
    batch: int
    """Samples of a training step."""
    rounds: int
    """How often everything is timed in turn."""
    episodes: int
    """Of the store that samples are read from."""
    window: int
    """Batches within which samples are sorted by length, where they are."""
    padded: int
    """Batches that are timed padded one way and another."""
    horizon: int
    """Actions of a chunk."""
    calls: int
    """Calls of a policy in each turn."""
    rank: int
    """Of adapters."""

    @property
    def options(self) -> TimmLmConfig:
        """Options of the backbone."""
        return TimmLmConfig(towers=(self.tower,), weights="random", image_size=self.image_size, pool=self.pool)

    def new_backbone(self) -> TimmLmBackbone:
        """A backbone with weights that are the same each time; it knows the words of `instructions`."""
        torch.manual_seed(0)
        words = train_tokenizer([prompt(text) for text in instructions(1000)], 0)
        text = LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=max(self.vocabulary, len(words)),
            tie_word_embeddings=True,
        )
        language = LanguageModel(LlamaForCausalLM(text), words)
        return TimmLmBackbone(self.options, SETTING, [create_tower(self.tower, self.image_size)], language)

    def new_model(self, with_adapters: bool = False) -> VisionLanguageActionModel:
        """A model as pretraining trains it: the tower is frozen, and with adapters most of the rest."""
        model = VisionLanguageActionModel(self.new_backbone())
        if with_adapters:
            add_adapters(model.backbone, LoraConfig(rank=self.rank, tower=False), new_tokens(model))
        model.backbone.vision.requires_grad_(False)
        return model.train()

    def images(self, number: int) -> np.ndarray:
        """Random frames of one camera, the same each time."""
        shape = (number, 1, self.frame_side, self.frame_side, 3)
        return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)

    def batch_of(self, backbone: TimmLmBackbone, texts: list[str]) -> Batch:
        """A batch of pretraining with these instructions and random codes, on the CPU."""
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(SETTING.num_codes, (len(texts), SETTING.num_tokens), generator=generator)
        return backbone.prepare(self.images(len(texts)), [prompt(text) for text in texts]) | {"codes": codes}


FULL = Sizes(
    width=576,
    feed_forward=1536,
    layers=30,
    heads=9,
    key_heads=3,
    vocabulary=49152,
    tower=DEFAULT_TOWER,
    image_size=224,
    pool=2,
    frame_side=224,
    batch=4,
    rounds=4,
    episodes=8,
    window=16,
    padded=2,
    horizon=8,
    calls=10,
    rank=32,
)
"""SmolLM2-135M's and DINOv2-S's."""
QUICK = Sizes(
    width=48,
    feed_forward=64,
    layers=2,
    heads=4,
    key_heads=2,
    vocabulary=0,
    tower="vit_tiny_patch16_224",
    image_size=32,
    pool=1,
    frame_side=32,
    batch=4,
    rounds=2,
    episodes=2,
    window=4,
    padded=2,
    horizon=4,
    calls=3,
    rank=4,
)
