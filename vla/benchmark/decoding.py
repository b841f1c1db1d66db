"""Two other ways to choose a latent action and write actions: all read again for each token, and the published one."""

import torch
from jaxtyping import Float
from torch import Tensor

from core.loading import Batch
from vla.backbones.interface import BackboneOutput
from vla.heads.interface import TokenHead
from vla.model import Thought, VisionLanguageActionModel
from vla.tokens import LegalLatents


class Regenerating(VisionLanguageActionModel):
    """Keeps no memory: images, prompt and all tokens so far are read again for the next one."""

    @torch.no_grad()
    def think(self, inputs: Batch) -> Thought:
        """Choose the most likely latent action."""
        self.inputs = inputs
        ids = inputs["ids"].new_zeros(len(inputs["ids"]), 0)
        for _ in range(self.latents.num_tokens):
            logits = self.backbone(inputs, ids).logits[:, -1]
            ids = torch.cat([ids, self.latents.legal(logits).argmax(-1, keepdim=True)], dim=1)
        return Thought(self.backbone(inputs, ids), self.latents.codes(ids))

    @torch.no_grad()
    def act_on(
        self, thought: Thought, senses: Float[Tensor, "batch senses"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions that follow from a latent action."""
        if not isinstance(self.head, TokenHead):
            return super().act_on(thought, senses, generator)
        ids, logits = self.latents.ids(thought.codes), thought.seen.logits[:, -1]
        written = ids.new_zeros(len(ids), 0)
        while not self.head.is_complete(written):
            token = self.head.legal(logits, written).argmax(-1, keepdim=True)
            written = torch.cat([written, token], dim=1)
            logits = self.backbone(self.inputs, torch.cat([ids, written], dim=1)).logits[:, -1]
        return self.head.actions(written)


class Published(VisionLanguageActionModel):
    """`generate` of transformers chooses the latent tokens; the head reads the states that it leaves.

    These lie one position before the tokens: the last token is chosen and never read.
    """

    @torch.no_grad()
    def think(self, inputs: Batch) -> Thought:
        """Choose the most likely latent action."""
        backbone, number = self.backbone, self.latents.num_tokens
        image = backbone.embed_images(inputs["images"])
        embedded = backbone.language.get_input_embeddings()(inputs["ids"])
        shown = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        made = backbone.language.generate(
            inputs_embeds=torch.cat([image.to(embedded.dtype), embedded], dim=1),
            attention_mask=torch.cat([shown, inputs["mask"]], dim=1).long(),
            max_new_tokens=number,
            do_sample=False,
            logits_processor=[LegalLatents(self.latents, 0)],
            output_hidden_states=True,
            return_dict_in_generate=True,
            pad_token_id=backbone.tokenizer.pad_token_id,
        )
        states = torch.cat([hidden[-1][:, -1:] for hidden in made.hidden_states], dim=1)
        seen = made.hidden_states[0][-1][:, : image.shape[1]]
        empty = states.new_zeros(len(states), 0, 1)
        codes = self.latents.codes(made.sequences[:, -number:])
        out = BackboneOutput(seen, torch.cat([states[:, :1], states], dim=1), empty, None)
        return Thought(out, codes)
