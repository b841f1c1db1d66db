"""The policy network: a backbone that predicts latent tokens and, once fine-tuned, a head that acts on them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.tokens import LatentTokenizer


class Thought(NamedTuple):
    """What the backbone makes of an image and an instruction."""

    image: Float[Tensor, "batch image_tokens width"]
    """What the backbone hands on of the image."""
    latent: Float[Tensor, "batch latent_tokens width"]
    """Last hidden states that it chose the latent tokens from, one position before each."""
    codes: Int[Tensor, "batch latent_tokens"]
    """Code indices of these tokens."""


class VisionLanguageActionModel(nn.Module):
    """Backbone, tokenizer and, where it can act, an action head."""

    def __init__(self, backbone: nn.Module, tokenizer: LatentTokenizer, head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.head = backbone, tokenizer, head

    def latent_loss(
        self,
        features: Float[Tensor, "batch patches dim"],
        ids: Int[Tensor, "batch text"],
        codes: Int[Tensor, "batch tokens"],
    ) -> dict[str, Tensor]:
        """Next-token loss on the latent tokens and the end token, and the accuracy of the greedy choice.

        `accuracy_0` is the accuracy of the first latent token, and so on, given the true ones before it.
        """
        latent = self.tokenizer.latent_ids(codes)
        end = torch.full_like(latent[:, :1], self.tokenizer.end_id)
        targets = torch.cat([latent, end], dim=1)
        whole = torch.cat([ids, latent], dim=1)
        logits = self.backbone(features, whole, whole != self.tokenizer.pad_id).logits
        logits = logits[:, ids.shape[1] - 1 :].float()
        loss = F.cross_entropy(logits.transpose(1, 2), targets)
        right = (self.tokenizer.legal(logits[:, :-1]).argmax(-1) == latent).float().mean(0)
        accuracies = {f"accuracy_{token}": value for token, value in enumerate(right)}
        return {"loss": loss, "accuracy": right.mean()} | accuracies

    def think(self, features: Float[Tensor, "batch patches dim"], ids: Int[Tensor, "batch text"]) -> Thought:
        """Choose the most likely latent action token by token, keeping the hidden states that lead to it.

        Training and acting both go this way, so that the head sees in training what it will see when it acts.
        """
        mask = ids != self.tokenizer.pad_id
        out = self.backbone(features, ids, mask, use_cache=True)
        image = out.image
        hidden, chosen = [out.hidden[:, -1:]], [self._choice(out.logits)]
        while len(chosen) < self.tokenizer.num_tokens:
            mask = torch.cat([mask, torch.ones_like(chosen[-1], dtype=torch.bool)], dim=1)
            out = self.backbone(None, chosen[-1], mask, cache=out.cache, use_cache=True)
            hidden.append(out.hidden)
            chosen.append(self._choice(out.logits))
        return Thought(image, torch.cat(hidden, dim=1), self.tokenizer.codes(torch.cat(chosen, dim=1)))

    def _choice(self, logits: Float[Tensor, "batch text vocabulary"]) -> Int[Tensor, "batch 1"]:
        return self.tokenizer.legal(logits[:, -1]).argmax(-1, keepdim=True)

    def act(
        self,
        features: Float[Tensor, "batch patches dim"],
        ids: Int[Tensor, "batch text"],
        proprioception: Float[Tensor, "batch senses"],
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; `proprioception` is normalised, with no channels where the policy does not use it."""
        assert self.head is not None, "this model was not fine-tuned"
        thought = self.think(features, ids)
        return self.head(thought.image, thought.latent, proprioception)
