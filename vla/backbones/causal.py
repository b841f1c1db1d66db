"""Image tokens, then text, through a causal language model of transformers: what all our own backbones share."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase

from core.loading import Batch
from vla.backbones.interface import Backbone, BackboneOutput, memory_word


class Memory(NamedTuple):
    """What was read so far."""

    keys: DynamicCache
    mask: Bool[Tensor, "batch read"]


class CausalBackbone(Backbone):
    """Image tokens first, then text; causal throughout."""

    def __init__(self, language: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.language, self.tokenizer = language, tokenizer
        self.width: int = language.config.hidden_size
        self._memory_word = memory_word(language.model)

    def embed_images(self, images: Tensor) -> Float[Tensor, "batch image_tokens width"]:
        """Image tokens of what `prepare` made of images."""
        raise NotImplementedError

    def before_images(self, batch: int) -> Float[Tensor, "batch before width"]:
        """What stands before the image tokens; nothing, if a backbone does not say otherwise."""
        return self.language.get_input_embeddings().weight.new_zeros(batch, 0, self.width)

    def forward(
        self, inputs: Batch | None, ids: Int[Tensor, "batch after"], memory: Memory | None = None, keep: bool = False
    ) -> BackboneOutput:
        """Hidden states and logits of the last position of the prompt and of `ids`; see `Backbone.forward`."""
        embed = self.language.get_input_embeddings()
        count, image, first = ids.shape[1], None, 0
        mask = torch.ones_like(ids, dtype=torch.bool)
        if inputs is not None:
            before, image = self.before_images(len(ids)), self.embed_images(inputs["images"])
            first, count = before.shape[1], count + 1
            # Looked up at once: the gradient of each look-up is as large as the vocabulary.
            text = embed(torch.cat([inputs["ids"], ids], dim=1))
            tokens = torch.cat([before, image.to(text.dtype), text], dim=1)
            shown = torch.ones(len(ids), first + image.shape[1], dtype=torch.bool, device=ids.device)
            mask = torch.cat([shown, inputs["mask"], mask], dim=1)
        else:
            assert memory is not None, "neither a prompt nor a memory of one"
            tokens, mask = embed(ids), torch.cat([memory.mask, mask], dim=1)
        keys = DynamicCache() if keep and memory is None else memory.keys if memory else None
        hidden = self.language.model(
            inputs_embeds=tokens,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :],
            use_cache=keys is not None,
            **{self._memory_word: keys},
        ).last_hidden_state
        if image is not None:
            image = self.image_for_heads(image, hidden[:, first : first + image.shape[1]])
        last = hidden[:, -count:]
        return BackboneOutput(image, last, self.language.lm_head(last), Memory(keys, mask) if keep else None)

    def image_for_heads(
        self, projected: Float[Tensor, "batch image_tokens width"], hidden: Float[Tensor, "batch image_tokens width"]
    ) -> Float[Tensor, "batch image_tokens width"]:
        """What an action head gets of the images: the last hidden states, if a backbone does not say otherwise."""
        return hidden

    def vocabulary(self) -> list[nn.Parameter]:
        """Embeddings and, where they are not the same, output weights."""
        rows = [self.language.get_input_embeddings().weight, self.language.get_output_embeddings().weight]
        return rows[:1] if rows[0] is rows[1] else rows

    def grow(self, rows: int) -> None:
        """Lengthen embeddings and output weights."""
        if rows > len(self.vocabulary()[0]):
            self.language.resize_token_embeddings(rows, mean_resizing=False)

    def use_checkpointing(self) -> None:
        """Of the language model's blocks."""
        self.language.gradient_checkpointing_enable({"use_reentrant": False})

    def save_form(self, folder: Path) -> None:
        """Configuration of the language model, and tokenizer."""
        self.language.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def language_of_form(folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The language model, without its weights, and the tokenizer of a saved form."""
    config: Any = AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
