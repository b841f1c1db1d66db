"""Checkpoints in the published layout: their names to and from ours, and agreement with reference tensors."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from core.checkpoint import CheckpointError, load_weights
from lam.config import LamConfig
from lam.model import LatentActionModel
from lam.objectives.interface import DataFacts, Transitions
from lam.objectives.published import Published

QUERIES, CODEBOOK, COUNTS = "encoder.queries", "bottleneck.codebook", "bottleneck.counts"
PREFIX = "lam."
"""What Lightning puts before every name."""
FROZEN_ENCODER = "dino_encoder."
"""Where the released files keep the visual encoder."""

NAMES = {
    "action_latent": QUERIES,
    "action_up": "decoder.action_up",
    "patch_up": "decoder.patch_up",
    "to_codebook": "encoder.to_code",
    "vq.codebook.weight": CODEBOOK,
    "encoder.ffn": "encoder.embed",
    "decoder.ffn": "decoder.embed",
    "decoder.out": "decoder.out",
}
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
BLOCK = {
    "ffn.0": "feed_forward.0",
    "ffn.3": "feed_forward.2",
    "norm1": "spatial_norm",
    **{f"spatial_attn.{theirs}": f"spatial.{ours}" for theirs, ours in ATTENTION.items()},
}
SPATIAL_BLOCK = BLOCK | {"norm2": "feed_forward_norm"}
SPATIO_TEMPORAL_BLOCK = BLOCK | {
    "norm2": "temporal_norm",
    "norm3": "feed_forward_norm",
    **{f"temporal_attn.{theirs}": f"temporal.{ours}" for theirs, ours in ATTENTION.items()},
}


def from_published(
    tensors: Mapping[str, Tensor], heads: int, patches: int, beta: float = LamConfig().beta
) -> LatentActionModel:
    """A model with the weights of a released file; all sizes but `heads` and `patches` are read off the tensors.

    A Lightning prefix `lam.` is dropped, and so are the weights of the frozen visual encoder (`dino_encoder.*`).

    Raises:
        CheckpointError: a tensor has no place in the model, or one is missing.
    """
    theirs = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith(FROZEN_ENCODER)}
    blocks = {side: _number_of_blocks(theirs, side) for side in ("encoder", "decoder")}
    names = {published: ours for ours, published in published_names(**blocks).items()}
    own = {_renamed(name, names): tensor for name, tensor in theirs.items()}
    needed = {QUERIES, CODEBOOK, "decoder.patch_up.weight"}
    if not needed <= set(own):
        raise CheckpointError(f"not a released latent action model: its tensors are named {sorted(tensors)[:4]}...")
    own[QUERIES] = own[QUERIES].flatten(0, -2)
    own[CODEBOOK] = own[CODEBOOK][None]
    num_tokens, feature_dim = own[QUERIES].shape
    _, num_codes, code_dim = own[CODEBOOK].shape
    own[COUNTS] = torch.zeros(num_tokens, num_codes, dtype=torch.long)
    config = LamConfig(
        width=own["decoder.patch_up.weight"].shape[0],
        heads=heads,
        encoder_blocks=blocks["encoder"],
        decoder_blocks=blocks["decoder"],
        num_tokens=num_tokens,
        num_codes=num_codes,
        code_dim=code_dim,
        beta=beta,
    )
    model = LatentActionModel(config, feature_dim, patches)
    load_weights(model, own, "the released file")
    return model


def to_published(model: LatentActionModel) -> dict[str, Tensor]:
    """The weights under the published names, without prefix and without the frozen visual encoder.

    Raises:
        CheckpointError: the published layout has no place for a model of this form.
    """
    config = model.config
    released = LamConfig()
    fixed = ("network", "latent", "bottleneck", "codebook", "normalise_encodings", "predict_change")
    if foreign := {key: getattr(config, key) for key in fixed if getattr(config, key) != getattr(released, key)}:
        raise CheckpointError(f"the published layout has no place for a model with {foreign}")
    names = published_names(config.encoder_blocks, config.decoder_blocks)
    tensors = {_renamed(name, names): tensor for name, tensor in model.state_dict().items() if name != COUNTS}
    tensors["action_latent"] = tensors["action_latent"][None, None]
    tensors["vq.codebook.weight"] = tensors["vq.codebook.weight"][0]
    return tensors


def published_names(encoder: int, decoder: int) -> dict[str, str]:
    """Our names of parameters or their modules to the published ones, for so many blocks on either side."""
    names = {ours: theirs for theirs, ours in NAMES.items()}
    for side, blocks, table in (("encoder", encoder, SPATIO_TEMPORAL_BLOCK), ("decoder", decoder, SPATIAL_BLOCK)):
        for block in range(blocks):
            for theirs, ours in table.items():
                names[f"{side}.blocks.{block}.{ours}"] = f"{side}.transformer_blocks.{block}.{theirs}"
    return names


def is_reference(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are reference tensors of a latent action model, as `differences` takes them."""
    return "weight.action_latent" in tensors


def differences(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, float]:
    """The largest absolute difference of every `output.*` and `grad.*` from what our model computes.

    `weight.*` is a state dict in the published layout, `input.features` is (views, batch, 2, patches, dim); the
    metadata state what no tensor shows: `heads` and `beta`.

    Raises:
        CheckpointError: a weight, an input or a number in the metadata is missing, or an output is not known.
    """
    missing = {"heads", "beta"} - set(metadata)
    if missing or "input.features" not in tensors:
        raise CheckpointError(f"the file lacks {sorted(missing) or 'input.features'}; see its README for the layout")
    features = tensors["input.features"]
    weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    model = from_published(weights, int(metadata["heads"]), features.shape[-2], float(metadata["beta"]))
    outputs = _outputs(model, features)
    outputs["loss"].backward()
    names = {
        theirs: ours
        for ours, theirs in published_names(model.config.encoder_blocks, model.config.decoder_blocks).items()
    }
    parameters = dict(model.named_parameters())
    found: dict[str, float] = {}
    for name, wanted in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "output":
            if rest not in outputs:
                raise CheckpointError(f"the file has {name}; known outputs are {sorted(outputs)}")
            ours = outputs[rest].detach()
        elif kind == "grad":
            gradient = parameters[_renamed(rest, names)].grad
            assert gradient is not None, f"the loss does not reach {rest}"
            ours = gradient
        else:
            continue
        found[name] = (ours.reshape(wanted.shape).double() - wanted.double()).abs().max().item()
    return found


def _outputs(model: LatentActionModel, features: Float[Tensor, "views batch 2 patches dim"]) -> dict[str, Tensor]:
    views, batch = features.shape[:2]
    encodings = model.encode(rearrange(features, "views batch ... -> (views batch) ..."))
    quantized = model.quantize(encodings)
    codes = quantized.codes.unflatten(0, (views, batch))
    grid = [[model.decode(features[i, :, 0], codes[j]) for j in range(views)] for i in range(views)]
    objective = Published(model, DataFacts(cameras=views, action_dims=0, senses=0))
    return {
        "encoding": encodings.unflatten(0, (views, batch)),
        "indices": quantized.indices.unflatten(0, (views, batch)),
        "reconstruction": torch.stack([torch.stack(row) for row in grid]),
        "loss": objective.terms(all_pairs(features))["loss"],
    }


def all_pairs(features: Float[Tensor, "views batch 2 patches dim"]) -> Transitions:
    """Transitions that every one of `views` cameras saw, with all pairs of cameras."""
    views, batch = features.shape[:2]
    row = torch.arange(views * batch).view(views, batch)
    cross = [torch.stack([row[i], row[j]], dim=1) for i in range(views) for j in range(views) if i != j]
    return Transitions(
        features=features.flatten(0, 1),
        sample=torch.arange(batch).repeat(views),
        camera=torch.arange(views).repeat_interleave(batch),
        own=row.flatten(),
        cross=torch.cat(cross) if cross else row.new_zeros(0, 2),
    )


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with its longest known beginning replaced; an unknown name stays, and will be complained about."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        start = ".".join(parts[:length])
        if start in names:
            return ".".join([names[start], *parts[length:]])
    return name


def _number_of_blocks(tensors: Mapping[str, Tensor], side: str) -> int:
    found = (re.match(rf"{side}\.transformer_blocks\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
