"""`prismatic`: Prismatic, OpenVLA and the released MVP-LAM and UniVLA models: DINOv2 + SigLIP, projector, Llama.

Reads the layout that those are released in (config.json, safetensors in one file or several, tokenizer), without code
from the hub. Patches come from each tower's last block but one and stand right after the first text token.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.checkpoint import CheckpointError
from core.config import Config
from core.loading import Batch
from core.run import write_json
from vla.backbones.causal import CausalBackbone
from vla.backbones.interface import Setting, check_images
from vla.backbones.towers import Towers, create_tower
from vla.tokens import latent_name

NAMES = {
    "vision_backbone.featurizer.": "vision.towers.0.",
    "vision_backbone.fused_featurizer.": "vision.towers.1.",
    "projector.fc1.": "projector.0.",
    "projector.fc2.": "projector.2.",
    "projector.fc3.": "projector.4.",
    "language_model.": "language.",
}
"""What tensors are called in released files, and here."""
RESIZED = "resize-naive"
"""How released models resize images: each side by itself, as the towers here do."""
SPACE = "▁"
"""What Llama's tokenizer calls the space that the released models read between the prompt and their answer."""


class PrismaticConfig(Config):
    """Which released model."""

    path: str = ""
    """Its folder."""
    knows_latents: bool = False
    """Whether it was pretrained on latent tokens, which then keep their embeddings: those of `<ACT_0>` and so on are
    the ids after its padding token (32001 and up)."""


class PrismaticBackbone(CausalBackbone):
    """First text token, patches of all cameras, then the rest of the text."""

    tower = ("vision",)

    def __init__(self, vision: Towers, language: nn.Module, tokenizer: PreTrainedTokenizerBase, views: int) -> None:
        super().__init__(language, tokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.vision, hidden = vision, 4 * vision.width
        self.projector = nn.Sequential(
            nn.Linear(vision.width, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.width),
            nn.GELU(),
            nn.Linear(self.width, self.width),
        )
        self.extra_tokens = self.image_tokens = views * vision.grid[0] * vision.grid[1]
        self.knows_latents = False
        self.vision_form: dict[str, Any] = {}

    def add_tokens(self, names: Sequence[str], are_trained: bool = False) -> list[int]:
        """As every backbone, but latent tokens that the weights know keep their embeddings."""
        knows = self.knows_latents and names[0] == latent_name(0)
        rows, needed = len(self.vocabulary()[0]), len(self.tokenizer) + len(names)
        if knows and names[0] not in self.tokenizer.get_vocab() and rows < needed:
            raise CheckpointError(
                f"backbone.options.knows_latents is set, but embeddings of {rows} tokens hold no {len(names)} latent "
                f"ones after the {len(self.tokenizer)} of the tokenizer; lower num_codes, or leave knows_latents out"
            )
        return super().add_tokens(names, are_trained or knows)

    @classmethod
    def fresh(cls, options: PrismaticConfig, setting: Setting, texts: Sequence[str]) -> "PrismaticBackbone":
        """With the released weights.

        Raises:
            CheckpointError: the folder holds no such model, or a file is missing, cut off or of another model.
        """
        folder = Path(options.path)
        backbone = _of_form(folder, setting, options.knows_latents)
        load_released(backbone, (_read(file) for file in weight_files(folder)), str(folder))
        backbone.set_latents(setting)
        return backbone

    @classmethod
    def restored(cls, options: PrismaticConfig, setting: Setting, folder: Path) -> "PrismaticBackbone":
        """The same form."""
        backbone = _of_form(folder, setting, options.knows_latents)
        backbone.set_latents(setting)
        return backbone

    def save_form(self, folder: Path) -> None:
        """In the form of a released config.json."""
        self.tokenizer.save_pretrained(folder)
        text = self.language.config.to_dict()
        write_json(folder / "config.json", {"model_type": "prismatic", "text_config": text, **self.vision_form})

    def prepare(self, images: Shaped[np.ndarray, "batch views *image"], texts: Sequence[str]) -> Batch:
        """As every backbone; the first text token is left to `before_images`, and a space ends the prompt."""
        check_images(images, are_features=False)
        options = {"add_special_tokens": False, "padding": True, "padding_side": "left", "return_tensors": "pt"}
        encoded = self.tokenizer(list(texts), **options)
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        if (space := self.tokenizer.get_vocab().get(SPACE)) is not None:
            ids, mask = (F.pad(tensor, (0, 1), value=value) for tensor, value in ((ids, space), (mask, True)))
        return {"images": torch.from_numpy(images), "ids": ids, "mask": mask}

    def before_images(self, batch: int) -> Float[Tensor, "batch before width"]:
        """The first text token."""
        embed = self.language.get_input_embeddings()
        first = torch.tensor([[self.tokenizer.bos_token_id]], device=embed.weight.device)
        return embed(first).expand(batch, -1, -1)

    def embed_images(
        self, images: UInt8[Tensor, "batch views high wide 3"]
    ) -> Float[Tensor, "batch image_tokens width"]:
        """Image tokens, camera by camera and row by row."""
        return self.join(self.vision(rearrange(images, "batch views h w c -> (batch views) h w c")), len(images))

    def join(self, patches: Float[Tensor, "n patches dim"], batch: int) -> Float[Tensor, "batch image_tokens width"]:
        """Image tokens of the towers' patches."""
        projected = self.projector(patches)
        return rearrange(projected, "(batch views) tokens dim -> batch (views tokens) dim", batch=batch)


def _of_form(folder: Path, setting: Setting, knows_latents: bool) -> PrismaticBackbone:
    """A backbone without weights, of the form that a config.json and tokenizer say."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"backbone.options.path is {str(folder)!r}, where no config.json lies")
    config = json.loads(file.read_text())
    form = {key: config[key] for key in ("timm_model_ids", "image_sizes", "tower_options") if key in config}
    if missing := {"timm_model_ids", "image_sizes"} - set(form):
        raise CheckpointError(
            f"{file} does not describe a Prismatic model: it has no {' and no '.join(sorted(missing))}"
        )
    if (strategy := config.get("image_resize_strategy", RESIZED)) != RESIZED:
        raise CheckpointError(f"{file}: image_resize_strategy is {strategy!r}; models of {RESIZED!r} are read")
    names, sizes = form["timm_model_ids"], form["image_sizes"]
    extra = form.get("tower_options", [{}] * len(names))
    towers = [create_tower(n, size, **more) for n, size, more in zip(names, sizes, extra, strict=True)]
    language = AutoModelForCausalLM.from_config(LlamaConfig(**config["text_config"]), dtype=torch.float32)
    # AutoTokenizer would ask whether to run the code that released folders name.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    backbone = PrismaticBackbone(Towers(towers, second_to_last=True), language, tokenizer, setting.views)
    backbone.knows_latents, backbone.vision_form = knows_latents, form
    return backbone


def load_released(backbone: PrismaticBackbone, parts: Iterable[dict[str, Tensor]], source: str) -> None:
    """Copy tensors of the released layout, which may come in parts, into a backbone.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or has no place.
    """
    own, seen = backbone.state_dict(), set()
    for part in parts:
        for theirs, tensor in part.items():
            name = our_name(theirs)
            if (name.startswith("vision.") and name not in own) or name.endswith("rotary_emb.inv_freq"):
                continue  # what comes after the last block but one
            if name not in own or own[name].shape != tensor.shape:
                there = f"has shape {tuple(own[name].shape)}" if name in own else "does not exist"
                raise CheckpointError(f"{source}: {theirs} has shape {tuple(tensor.shape)}, in the model it {there}")
            own[name].copy_(tensor)
            seen.add(name)
    if missing := sorted(set(own) - seen):
        raise CheckpointError(f"{source} lacks {len(missing)} tensors of the model, the first are {missing[:3]}")


def our_name(released: str) -> str:
    """The name here of a tensor in a released file."""
    for theirs, ours in NAMES.items():
        if released.startswith(theirs):
            return (ours + released.removeprefix(theirs)).replace(".scale_factor", ".gamma")
    return released


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all that its index names where it has one.

    Raises:
        CheckpointError: there is none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names; fetch it again")
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors file; weights in other formats are not read")
    return files


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file, or is cut off ({error}); fetch it again") from None
