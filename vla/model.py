"""The policy network: a backbone that predicts latent tokens and, once fine-tuned, a head that acts on them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.loading import Batch
from core.processes import is_so_everywhere
from core.throughput import Work
from vla.backbones.interface import Backbone, BackboneOutput
from vla.heads.interface import Head, Seen, TokenHead
from vla.tokens import LatentTokens


class Thought(NamedTuple):
    """A latent action that the backbone chose, and the memory to go on from."""

    seen: BackboneOutput
    """`image` of the prompt's pass, `hidden` at the last position of the prompt and at each latent token."""
    codes: Int[Tensor, "batch latent_tokens"]
    """Code indices."""


class VisionLanguageActionModel(nn.Module):
    """Backbone and, where it can act, an action head."""

    def __init__(self, backbone: Backbone, head: Head | TokenHead | None = None) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def work(self, batch: Batch) -> Work:
        """Tokens of a batch, and operations as if each weight met each token: 4, and 2 more where it is trained."""
        weights = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self.backbone.parameters()]
        whole, trained = sum(size for size, _ in weights), sum(size for size, is_trained in weights if is_trained)
        others = len(batch["ids"]) * (self.backbone.extra_tokens + self.latents.num_tokens)
        tokens = int(batch["mask"].sum()) + others
        return Work(tokens, tokens * (4.0 * whole + 2.0 * trained))

    @property
    def latents(self) -> LatentTokens:
        """The map between codes and token ids."""
        return self.backbone.latents

    def round_products(self) -> None:
        """Keep the weights of matrix products in bfloat16, to which autocast would round them anew for every token.

        For acting alone: under autocast the answers are the same to the bit, but training would lose small steps.
        """
        for part in self.modules():
            if isinstance(part, nn.Linear):
                # New parameters, so that embeddings that an output layer shares stay as exact as they are.
                for name, own in list(part.named_parameters(recurse=False)):
                    setattr(part, name, nn.Parameter(own.detach().bfloat16(), requires_grad=False))

    def latent_loss(self, inputs: Batch, codes: Int[Tensor, "batch latent_tokens"]) -> dict[str, Tensor]:
        """Next-token loss on the latent tokens and the end token, and the accuracy of the greedy choice.

        `accuracy_0` is the accuracy of the first latent token, and so on, given the true ones before it.
        """
        ids = self.latents.ids(codes)
        return self._latent_terms(self.backbone(inputs, ids).logits, ids)

    def _latent_terms(
        self, logits: Float[Tensor, "batch positions vocabulary"], ids: Int[Tensor, "batch latent_tokens"]
    ) -> dict[str, Tensor]:
        """Of the latent tokens, and of the end where there is a position for it."""
        ends = logits.shape[1] - ids.shape[1]
        targets = torch.cat([ids, torch.full_like(ids[:, :ends], self.latents.end_id)], dim=1)
        logits = logits.float()
        loss = F.cross_entropy(logits.transpose(1, 2), targets)
        right = (self.latents.legal(logits[:, : ids.shape[1]]).argmax(-1) == ids).float().mean(0)
        accuracies = {f"accuracy_{token}": value for token, value in enumerate(right)}
        return {"loss": loss, "accuracy": right.mean()} | accuracies

    @torch.no_grad()
    def think(self, inputs: Batch) -> Thought:
        """Choose the most likely latent action token by token, each token read once."""
        ids = inputs["ids"].new_zeros(len(inputs["ids"]), 0)
        out = self.backbone(inputs, ids, keep=True)
        image, hidden, chosen = out.image, [out.hidden], [ids]
        for _ in range(self.latents.num_tokens):
            chosen.append(self.latents.legal(out.logits[:, -1]).argmax(-1, keepdim=True))
            out = self.backbone(None, chosen[-1], out.memory, keep=True)
            hidden.append(out.hidden)
        seen = out._replace(image=image, hidden=torch.cat(hidden, dim=1))
        return Thought(seen, self.latents.codes(torch.cat(chosen, dim=1)))

    @torch.no_grad()
    def think_undisturbed(self, inputs: Batch) -> Int[Tensor, "batch latent_tokens"]:
        """The codes that would be chosen in acting, without dropout, whatever mode the model is in."""
        was_training = self.training
        self.eval()
        codes = self.think(inputs).codes
        self.train(was_training)
        # Older versions of torch would go on with weights that were cast here, without gradients.
        torch.clear_autocast_cache()
        return codes

    def action_loss(
        self,
        inputs: Batch,
        senses: Float[Tensor, "batch senses"],
        actions: Float[Tensor, "batch horizon dims"],
        mask: Bool[Tensor, "batch horizon"],
        codes: Int[Tensor, "batch latent_tokens"] | None = None,
        labelled: Bool[Tensor, " batch"] | None = None,
    ) -> dict[str, Tensor]:
        """The head's loss in one pass over prompt, latent action and, where actions are tokens, these.

        The latent action is the one in `codes` where it is `labelled` (everywhere, if that is not said; then
        `latent_loss` is among the terms), else the one that would be chosen in acting. Steps beyond the episode's end,
        False in `mask`, do not count.
        """
        assert self.head is not None, "this model was not fine-tuned"
        if codes is None:
            chosen = self.think_undisturbed(inputs)
        else:
            labelled = torch.ones_like(codes[:, 0], dtype=torch.bool) if labelled is None else labelled
            all_known = is_so_everywhere(bool(labelled.all()), codes.device)
            own = codes if all_known else self.think_undisturbed(inputs)
            chosen = torch.where(labelled[:, None], codes, own)
        ids = self.latents.ids(chosen)
        thought, ends = ids.shape[1], not isinstance(self.head, TokenHead)
        if isinstance(self.head, TokenHead):
            words = self.head.tokens(actions, mask)
            out = self.backbone(inputs, torch.cat([ids, words.ids[:, :-1]], dim=1))
            terms = self.head.loss(out.logits[:, thought:], words)
        else:
            out = self.backbone(inputs, ids)
            seen = Seen(out.image, out.hidden, senses)
            terms = self.head.loss(seen, actions, mask)
        if codes is None:
            return terms
        assert labelled is not None
        if labelled.any():
            latent = self._latent_terms(out.logits[labelled, : thought + ends], ids[labelled])
            terms |= {f"latent_{name}": latent[name] for name in ("loss", "accuracy")}
        else:
            terms |= {f"latent_{name}": out.logits.sum() * 0.0 for name in ("loss", "accuracy")}
        return terms

    def act(
        self, inputs: Batch, senses: Float[Tensor, "batch senses"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; `senses` is normalised proprioception, with no channels where the policy uses none.

        `generator` draws what a head draws at random.
        """
        return self.act_on(self.think(inputs), senses, generator)

    @torch.no_grad()
    def act_on(
        self, thought: Thought, senses: Float[Tensor, "batch senses"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions that follow from a latent action."""
        assert self.head is not None, "this model was not fine-tuned"
        out = thought.seen
        if not isinstance(self.head, TokenHead):
            return self.head.act(Seen(out.image, out.hidden, senses), generator)
        written = thought.codes.new_zeros(len(thought.codes), 0)
        while not self.head.is_complete(written):
            token = self.head.legal(out.logits[:, -1], written).argmax(-1, keepdim=True)
            written = torch.cat([written, token], dim=1)
            out = self.backbone(None, token, out.memory, keep=True)
        return self.head.actions(written)
