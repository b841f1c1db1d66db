"""What every action head takes and answers."""

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class HeadSizes(NamedTuple):
    """What a head is built for."""

    width: int
    """Channels of the backbone's hidden states."""
    image_tokens: int
    """Positions of the images among them."""
    latent_tokens: int
    """Tokens of a latent action."""
    horizon: int
    """Actions of a chunk."""
    action_dims: int
    """Numbers of an action."""
    senses: int
    """Numbers of the proprioception; 0: none is read."""


class Seen(NamedTuple):
    """What a head acts on."""

    image: Float[Tensor, "batch image_tokens width"]
    """What the backbone hands on of the images."""
    states: Float[Tensor, "batch states width"]
    """Last hidden states at the last position of the prompt and at each latent token: one more than latent tokens."""
    senses: Float[Tensor, "batch senses"]
    """Normalised proprioception."""


class Words(NamedTuple):
    """Actions as tokens."""

    ids: Int[Tensor, "batch words"]
    """Token ids, those of an early end padded."""
    counts: Bool[Tensor, "batch words"]
    """Which of them are to be learned."""


class Head(nn.Module):
    """Actions from hidden states: the same positions are read in training and in acting."""

    reads_senses: ClassVar[bool] = True
    """Whether it reads the proprioception."""
    is_bounded: ClassVar[bool] = False
    """Whether its actions lie in [-1, 1], which the outer quantiles are mapped to; else they have mean 0, spread 1."""

    def loss(
        self, seen: Seen, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]
    ) -> dict[str, Tensor]:
        """Terms with "loss" among them, of normalised actions; steps that are False in `mask` do not count."""
        raise NotImplementedError

    def act(self, seen: Seen, generator: torch.Generator | None = None) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; `generator` draws what is random."""
        raise NotImplementedError


class TokenHead(nn.Module):
    """Actions as words of the backbone, written after the latent action."""

    reads_senses: ClassVar[bool] = False
    is_bounded: ClassVar[bool] = True
    names: list[str]
    """Its words, one after the other; the backbone is given those that it lacks."""
    first_id: int = 0
    """Token id of the first of them, once the backbone has them."""

    def fit(self, chunks: Float[np.ndarray, "samples horizon dims"]) -> None:
        """Learn words from normalised actions, where they are learned."""

    def save_form(self, folder: Path) -> None:
        """Write what `fit` learned."""

    def load_form(self, folder: Path) -> None:
        """Read what `save_form` wrote."""

    def tokens(self, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]) -> Words:
        """Token ids for normalised actions."""
        raise NotImplementedError

    def loss(self, logits: Float[Tensor, "batch words vocabulary"], words: Words) -> dict[str, Tensor]:
        """Next-token loss on the words that count, and the accuracy of the likeliest."""
        targets = words.ids.masked_fill(~words.counts, -100)
        loss = F.cross_entropy(logits.float().transpose(1, 2), targets)
        right = (logits.argmax(-1) == words.ids)[words.counts].float().mean()
        return {"loss": loss, "action_accuracy": right}

    def legal(
        self, logits: Float[Tensor, "batch vocabulary"], written: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Logits in which every token is impossible that cannot follow what was written."""
        raise NotImplementedError

    def is_complete(self, written: Int[Tensor, "batch words"]) -> bool:
        """Whether `actions` can read all of them."""
        raise NotImplementedError

    def actions(self, written: Int[Tensor, "batch words"]) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions of complete words."""
        raise NotImplementedError


def masked_mean(error: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]) -> Float[Tensor, ""]:
    """Mean over the steps that lie in the episode."""
    return (error.mean(-1) * mask).sum() / mask.sum().clamp_min(1)
