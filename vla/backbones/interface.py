"""What every backbone takes and answers."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from core.config import Config
from core.loading import Batch
from vla.images import ImageError
from vla.tokens import LatentTokens, add_tokens, latent_names, start_from_mean


class Setting(Config):
    """What a backbone is built for, besides its own options."""

    num_codes: int
    """Values of a latent code index."""
    num_tokens: int
    """Latent tokens of an action; 0: none."""
    views: int = 1
    """Cameras whose images it is shown, in one order."""
    feature_dim: int = 0
    """Channels of a patch, where images come as features of a frozen tower."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of these patches."""


class BackboneOutput(NamedTuple):
    """Of one pass; `positions` are the last of the prompt and those after it, or with a memory only the new ones."""

    image: Float[Tensor, "batch image_tokens width"] | None
    """What an action head shall get of the images; None where they were in an earlier call."""
    hidden: Float[Tensor, "batch positions width"]
    """Last hidden states."""
    logits: Float[Tensor, "batch positions vocabulary"]
    """Next-token logits."""
    memory: Any
    """For the next call, where it was asked for."""


class Backbone(nn.Module):
    """Images and a prompt in, hidden states and logits out.

    `fresh` makes one with pretrained weights where there are any, `restored` one of the same form whose weights will be
    loaded; `save_form` writes what `restored` reads: configuration and tokenizer, no weights.
    """

    reads_features: ClassVar[bool] = False
    """Whether images come as patch features of a frozen tower, not as frames."""
    comes_pretrained: ClassVar[bool] = True
    """Whether `fresh` has pretrained weights."""
    tower: ClassVar[tuple[str, ...]] = ()
    """What the names of the visual tower's parameters begin with."""
    untrained: ClassVar[tuple[str, ...]] = ()
    """Its parts for which there are no pretrained weights; adapters leave them whole."""
    width: int
    image_tokens: int
    """Of a sample."""
    extra_tokens: int = 0
    """Those of them, and others, that are not among the ids of a prompt."""
    tokenizer: PreTrainedTokenizerBase
    latents: LatentTokens

    @classmethod
    def fresh(cls, options: Config, setting: Setting, texts: Sequence[str]) -> "Backbone":
        """A backbone to be trained; `texts` are prompts of the training, for those that learn a tokenizer."""
        raise NotImplementedError

    @classmethod
    def restored(cls, options: Config, setting: Setting, folder: Path) -> "Backbone":
        """A backbone of the form that `save_form` wrote to `folder`."""
        raise NotImplementedError

    def save_form(self, folder: Path) -> None:
        """Write what `restored` needs."""
        raise NotImplementedError

    def prepare(self, images: Shaped[np.ndarray, "batch views *image"], texts: Sequence[str]) -> Batch:
        """What `forward` takes of images and prompts, on the CPU; called by the processes that load data."""
        check_images(images, self.reads_features)
        encoded = self.tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        return {"images": torch.from_numpy(images), "ids": ids, "mask": mask}

    def forward(
        self, inputs: Batch | None, ids: Int[Tensor, "batch after"], memory: Any = None, keep: bool = False
    ) -> BackboneOutput:
        """One pass over a prompt and the tokens `ids` after it, or, with a `memory`, over `ids` alone.

        `keep` asks for a memory, so that the next call needs only what is new.
        """
        raise NotImplementedError

    def vocabulary(self) -> list[nn.Parameter]:
        """The matrices with a row for each token: embeddings and, where they are others, output weights."""
        raise NotImplementedError

    def grow(self, rows: int) -> None:
        """Make these matrices at least so long."""
        raise NotImplementedError

    def use_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        raise NotImplementedError

    def set_latents(self, setting: Setting) -> None:
        """Give the tokenizer the latent tokens and `self.latents` the map to them."""
        ids = self.add_tokens(latent_names(setting.num_codes)) if setting.num_tokens else [0]
        sizes = {"num_codes": setting.num_codes, "num_tokens": setting.num_tokens}
        self.latents = LatentTokens(first_id=ids[0], end_id=self.tokenizer.eos_token_id, **sizes)

    def add_tokens(self, names: Sequence[str], are_trained: bool = False) -> list[int]:
        """Ids of tokens; embeddings of those that the tokenizer did not have start from the mean of the others.

        Args:
            names: consecutive tokens.
            are_trained: the weights know them, only the tokenizer may not.
        """
        known = len(self.tokenizer)
        ids = add_tokens(self.tokenizer, names)
        self.grow(len(self.tokenizer))
        new = [] if are_trained else [token for token in ids if token >= known]
        for rows in self.vocabulary() if new else []:
            start_from_mean(rows, known, new)
        return ids


def memory_word(module: nn.Module) -> str:
    """What `forward` of a module of transformers calls a memory: `cache`, or before version 5.24 `past_key_values`."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def check_images(images: Shaped[np.ndarray, "batch views *image"], are_features: bool) -> None:
    """Refuse what is not RGB frames (or, where a backbone reads those, patch features).

    Raises:
        ImageError: another type, number of axes or order of channels.
    """
    if are_features:
        if images.ndim != 4 or images.dtype.kind != "f":
            raise ImageError(f"features are {images.dtype} {images.shape}, not float (batch, views, patches, channels)")
        return
    if images.ndim != 5 or images.dtype != np.uint8:
        raise ImageError(f"images are {images.dtype} {images.shape}, not uint8 (batch, views, height, width, 3)")
    if images.shape[-1] != 3:
        first = images.shape[2] == 3
        hint = "; the channels come first, move them to the end" if first else ""
        raise ImageError(f"images have the shape {images.shape}, not (batch, views, height, width, 3){hint}")
