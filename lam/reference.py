"""Checkpoints in the published layout: names of the released files to and from ours."""

import re

import torch
from torch import Tensor

from core.checkpoint import CheckpointError, load_weights
from lam.model import LamConfig, LatentActionModel

RENAMED = (
    (r"^action_latent$", "encoder.queries"),
    (r"^action_up\.", "decoder.action_up."),
    (r"^patch_up\.", "decoder.patch_up."),
    (r"^to_codebook\.", "encoder.to_code."),
    (r"^vq\.codebook\.weight$", "quantizer.codebook"),
    (r"^(encoder|decoder)\.ffn\.", r"\1.embed."),
    (r"^decoder\.out\.", "decoder.out."),
    (r"transformer_blocks\.", "blocks."),
    (r"\.ffn\.0\.", ".feed_forward.0."),
    (r"\.ffn\.3\.", ".feed_forward.2."),
    (r"_attn\.to_q\.", ".query."),
    (r"_attn\.to_k\.", ".key."),
    (r"_attn\.to_v\.", ".value."),
    (r"_attn\.to_out\.0\.", ".out."),
    (r"^(encoder\..*)\.norm1\.", r"\1.spatial_norm."),
    (r"^(encoder\..*)\.norm2\.", r"\1.temporal_norm."),
    (r"^(encoder\..*)\.norm3\.", r"\1.feed_forward_norm."),
    (r"^(decoder\..*)\.norm1\.", r"\1.spatial_norm."),
    (r"^(decoder\..*)\.norm2\.", r"\1.feed_forward_norm."),
)


def from_published(tensors: dict[str, Tensor], heads: int, patches: int) -> LatentActionModel:
    """A model with the weights of a released file; all sizes but `heads` and `patches` are read off the tensors.

    A Lightning prefix `lam.` is dropped, and so are the weights of the frozen visual encoder (`dino_encoder.*`).

    Raises:
        CheckpointError: a tensor has no place in the model, or one is missing.
    """
    own = {_our_name(name): tensor for name, tensor in tensors.items() if "dino_encoder." not in name}
    if "encoder.queries" not in own or "quantizer.codebook" not in own:
        raise CheckpointError(f"not a released latent action model: its tensors are named {sorted(tensors)[:4]}...")
    own["encoder.queries"] = own["encoder.queries"].flatten(0, -2)
    own["quantizer.codebook"] = own["quantizer.codebook"][None]
    num_tokens, feature_dim = own["encoder.queries"].shape
    _, num_codes, code_dim = own["quantizer.codebook"].shape
    own["quantizer.counts"] = torch.zeros(num_tokens, num_codes)
    config = LamConfig(
        width=own["decoder.patch_up.weight"].shape[0],
        heads=heads,
        encoder_blocks=_blocks(own, "encoder"),
        decoder_blocks=_blocks(own, "decoder"),
        num_tokens=num_tokens,
        num_codes=num_codes,
        code_dim=code_dim,
    )
    model = LatentActionModel(config, feature_dim, patches)
    load_weights(model, own, "the released file")
    return model


def _our_name(name: str) -> str:
    name = name.removeprefix("lam.")
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _blocks(tensors: dict[str, Tensor], side: str) -> int:
    return 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(f"{side}.blocks."))
