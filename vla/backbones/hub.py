"""`hub`: any vision-language model that transformers loads (SmolVLM, PaliGemma, LLaVA, Qwen2.5-VL, Qwen3-VL ...)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, DynamicCache

from core.config import Config
from core.loading import Batch
from core.packaged import WeightsError
from vla.backbones.interface import Backbone, BackboneOutput, Setting, check_images, memory_word
from vla.images import resized

KINDS_OF_TOKENS = {"token_type_ids": 1, "mm_token_type_ids": 0}
"""What processors say of each token, and what is said of those after the prompt: text that is written, not read."""
OWN = "vlm_"
"""What the names of a processor's other results begin with in a batch."""


class HubConfig(Config):
    """Which model."""

    path: str
    """Name in the hub, or folder."""
    image_size: int = 224
    """Pixels a side that frames are resized to before the model's own processor gets them."""


class Memory(NamedTuple):
    """What was read so far."""

    keys: DynamicCache
    mask: Bool[Tensor, "batch read"]
    shift: Tensor | int
    """What is added to positions of text after pictures, for models that count those in three dimensions."""


class HubBackbone(Backbone):
    """The model's own processor makes its inputs; prompts begin with one picture of each camera."""

    tower = tuple(f"model.model.{name}" for name in ("vision_tower", "vision_model", "visual"))

    def __init__(self, options: HubConfig, setting: Setting, model: nn.Module, processor: Any) -> None:
        super().__init__()
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.size = (options.image_size, options.image_size)
        if hasattr(processor.image_processor, "do_image_splitting"):
            processor.image_processor.do_image_splitting = False  # a frame is one picture, not seventeen
        self.width: int = model.config.get_text_config().hidden_size
        self.image_id: int = getattr(model.config, "image_token_id", None) or model.config.image_token_index
        self.counts_positions = hasattr(model.model, "rope_deltas")
        self._memory_word = memory_word(model.model)
        if not {name for name, _ in self.named_modules()} & set(self.tower):
            raise ValueError(
                f"its visual tower has none of the names {list(self.tower)}, so that rates.tower would not reach it; "
                "add its name to HubBackbone.tower"
            )
        self.set_latents(setting)
        blank = np.zeros((1, setting.views, *self.size, 3), np.uint8)
        self.image_tokens = int((self.prepare(blank, ["nothing"])["ids"] == self.image_id).sum())

    @classmethod
    def fresh(cls, options: HubConfig, setting: Setting, texts: Sequence[str]) -> "HubBackbone":
        """With pretrained weights.

        Raises:
            WeightsError: they cannot be had.
        """
        try:
            model = AutoModelForImageTextToText.from_pretrained(options.path, dtype=torch.float32)
            return cls(options, setting, model, AutoProcessor.from_pretrained(options.path))
        except (OSError, ValueError, SafetensorError) as error:
            raise WeightsError(
                f"no vision-language model {options.path!r}: {str(error).splitlines()[0]}; give the folder or hub name "
                "of one, and fetch it again where a file is cut off"
            ) from None

    @classmethod
    def restored(cls, options: HubConfig, setting: Setting, folder: Path) -> "HubBackbone":
        """The same form."""
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        return cls(options, setting, model, AutoProcessor.from_pretrained(folder))

    def save_form(self, folder: Path) -> None:
        """Configuration and processor."""
        self.model.config.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def prepare(self, images: Shaped[np.ndarray, "batch views *image"], texts: Sequence[str]) -> Batch:
        """What the model's processor makes of images and prompts."""
        check_images(images, are_features=False)
        rows = [list(resized(row, self.size)) for row in images]
        pictures = self._placeholder() * images.shape[1]
        made = self.processor(
            text=[f"{pictures}{text}" for text in texts],
            images=rows,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        ids, mask = made.pop("input_ids"), made.pop("attention_mask").bool()
        return {"ids": ids, "mask": mask} | {f"{OWN}{name}": value for name, value in made.items()}

    def _placeholder(self) -> str:
        picture = getattr(self.processor, "image_token", "<image>")
        before, after = (self.tokenizer.get_vocab().get(f"<|vision_{side}|>") for side in ("start", "end"))
        framed = before is not None and after is not None
        return f"<|vision_start|>{picture}<|vision_end|>" if framed else str(picture)

    def forward(
        self, inputs: Batch | None, ids: Int[Tensor, "batch after"], memory: Memory | None = None, keep: bool = False
    ) -> BackboneOutput:
        """Hidden states and logits of the last position of the prompt and of `ids`; see `Backbone.forward`."""
        mask, count, others = torch.ones_like(ids, dtype=torch.bool), ids.shape[1], {}
        if inputs is not None:
            others = {name.removeprefix(OWN): value for name, value in inputs.items() if name.startswith(OWN)}
            for name, value in KINDS_OF_TOKENS.items():
                if name in others:
                    others[name] = F.pad(others[name], (0, count), value=value)
            ids, mask, count = (
                torch.cat([inputs["ids"], ids], dim=1),
                torch.cat([inputs["mask"], mask], dim=1),
                count + 1,
            )
        else:
            assert memory is not None, "neither a prompt nor a memory of one"
            mask = torch.cat([memory.mask, mask], dim=1)
        keys = DynamicCache(config=self.model.config.get_text_config()) if keep and memory is None else None
        keys = memory.keys if memory else keys
        places = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if not self.counts_positions:
            others["position_ids"] = places
        elif memory is not None:
            others["position_ids"] = (places + memory.shift).expand(3, -1, -1)
        others[self._memory_word] = keys
        out = self.model.model(input_ids=ids, attention_mask=mask.long(), use_cache=keys is not None, **others)
        hidden, image = out.last_hidden_state, None
        if inputs is not None:
            image = hidden[ids == self.image_id].reshape(len(ids), self.image_tokens, -1)
        last = hidden[:, -count:]
        logits = self.model.get_output_embeddings()(last)
        shift = self.model.model.rope_deltas if self.counts_positions else 0
        return BackboneOutput(image, last, logits, Memory(keys, mask, shift) if keep else None)

    def vocabulary(self) -> list[nn.Parameter]:
        """Embeddings and, where they are not the same, output weights."""
        rows = [self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight]
        return rows[:1] if rows[0] is rows[1] else rows

    def grow(self, rows: int) -> None:
        """Lengthen embeddings and output weights."""
        if rows > len(self.vocabulary()[0]):
            self.model.resize_token_embeddings(rows, mean_resizing=False)

    def use_checkpointing(self) -> None:
        """Of all blocks that the model can do it for."""
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
