"""Agreement with reference tensors of the published models: Prismatic, and the attention-pooled action head."""

import json
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from core.checkpoint import load_weights
from vla.backbones.prismatic import PrismaticBackbone, load_released
from vla.backbones.towers import Towers
from vla.heads.interface import HeadSizes, Seen
from vla.heads.l1_pool import L1PoolConfig, L1PoolHead
from vla.tokens import train_tokenizer

PRISMATIC, HEAD = "weight.vision_backbone.featurizer.cls_token", "weight.latent_action_pool.latents"
PLAIN = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def is_reference(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are reference tensors of one of the two."""
    return PRISMATIC in tensors or HEAD in tensors


@torch.no_grad()
def differences(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, float]:
    """Largest absolute difference of each `output.*`."""
    weights = {name.removeprefix("weight."): value for name, value in tensors.items() if name.startswith("weight.")}
    inputs = {name.removeprefix("input."): value for name, value in tensors.items() if name.startswith("input.")}
    made = (_prismatic if PRISMATIC in tensors else _head)(weights, inputs, metadata)
    return {
        f"output.{name}": (value - tensors[f"output.{name}"]).abs().max().item()
        for name, value in made.items()
        if f"output.{name}" in tensors
    }


def _prismatic(weights: dict[str, Tensor], inputs: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    towers = [VisionTransformer(num_classes=0, **json.loads(metadata[name])) for name in ("dino", "siglip")]
    for tower in towers:
        tower.pretrained_cfg = PLAIN
    language = LlamaForCausalLM(LlamaConfig(**json.loads(metadata["text_config"])))
    backbone = PrismaticBackbone(Towers(towers, second_to_last=True), language, train_tokenizer([], 0), views=1).eval()
    load_released(backbone, [weights], "the reference")
    embedded = language.get_input_embeddings()(inputs["input_ids"])
    image = backbone.join(backbone.vision.of_pixels(list(inputs["pixel_values"].chunk(2, dim=1))), len(embedded))
    mask = inputs["attention_mask"].bool()
    shown = torch.ones(image.shape[:2], dtype=torch.bool)
    whole = torch.cat([mask[:, :1], shown, mask[:, 1:]], dim=1)
    tokens = torch.cat([embedded[:, :1], image, embedded[:, 1:]], dim=1)
    hidden = language.model(inputs_embeds=tokens, attention_mask=whole.long()).last_hidden_state
    logits = language.lm_head(hidden)
    ignored = torch.full(image.shape[:2], -100)
    labels = torch.cat([inputs["labels"][:, :1], ignored, inputs["labels"][:, 1:]], dim=1)
    loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])
    return {"last_hidden_state": hidden, "logits": logits, "loss": loss[None]}


def _head(weights: dict[str, Tensor], inputs: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    width, window = int(metadata["token_dim"]), int(metadata["window"])
    image, latent = inputs["visual_tokens"], inputs["latent_tokens"]
    dims = len(weights["proj.0.weight"]) // window
    sizes = HeadSizes(width, image.shape[1], latent.shape[1], window, dims, 0)
    head = L1PoolHead(L1PoolConfig(hidden=int(metadata["hidden"]), heads=int(metadata["heads"])), sizes).eval()
    load_weights(head, weights, "the reference")
    # The state before the first latent token is not read.
    states = torch.cat([torch.zeros_like(latent[:, :1]), latent], dim=1)
    return {"action_chunk": head.act(Seen(image, states, torch.zeros(len(image), 0)))}
