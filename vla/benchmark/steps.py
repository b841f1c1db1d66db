"""Pretraining steps on a given batch: ours without the loop around it, and one of bare `transformers` and `timm`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core.loading import Batch
from core.training import TrainingConfig
from vla.backbones.timm_lm import TimmLmBackbone
from vla.model import VisionLanguageActionModel
from vla.pretrain import LatentObjective

RECIPE = TrainingConfig(learning_rate=1e-4, warmup_steps=0, schedule="constant", log_every=1, validate_every=10**9)
"""How both are trained."""


class Step:
    """Call it to take one step; `gradients` and `update` are its halves."""

    def __init__(self, trained: nn.Module, batch: Batch, bf16: bool) -> None:
        self.trained, self.batch, self.bf16 = trained, batch, bf16
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": RECIPE.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, RECIPE.learning_rate, betas=RECIPE.betas, fused=True)

    def __call__(self) -> float:
        """The loss before the step."""
        loss = self.gradients()
        self.update()
        return loss.item()

    def gradients(self) -> Float[Tensor, ""]:
        """Forward and backward."""
        with torch.autocast(self.batch["ids"].device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss()
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Clipping and the optimiser."""
        nn.utils.clip_grad_norm_(self.trained.parameters(), RECIPE.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> Float[Tensor, ""]:
        """Of the batch."""
        raise NotImplementedError


class OurStep(Step):
    """Our objective, without the training loop."""

    def __init__(self, model: VisionLanguageActionModel, batch: Batch, bf16: bool) -> None:
        super().__init__(model, batch, bf16)
        self.objective = LatentObjective(model)

    def loss(self) -> Float[Tensor, ""]:
        """Of the latent tokens and the end."""
        return self.objective(self.batch)["loss"]


class BareStep(Step):
    """The same loss from the tower of timm and the language model of transformers, with no more than it takes.

    The language model is asked for logits where they are needed alone; `labels=` would have it make all of them.
    """

    def __init__(self, backbone: TimmLmBackbone, batch: Batch, bf16: bool) -> None:
        super().__init__(backbone, batch, bf16)
        self.tower, self.project, self.language = backbone.vision.towers[0], backbone.project, backbone.language
        self.pool, self.mean_and_std = backbone.pool, backbone.vision.mean_and_std_0
        ids = backbone.latents.ids(batch["codes"])
        self.answer, self.end = ids, torch.full_like(ids[:, :1], backbone.latents.end_id)

    def loss(self) -> Float[Tensor, ""]:
        """Of the latent tokens and the end."""
        image, targets = self.project(self._patches()), torch.cat([self.answer, self.end], dim=1)
        embedded = self.language.get_input_embeddings()(torch.cat([self.batch["ids"], self.answer], dim=1))
        shown, said = (torch.ones(part.shape[:2], device=image.device) for part in (image, self.answer))
        mask = torch.cat([shown, self.batch["mask"], said], dim=1).long()
        logits = self.language(
            inputs_embeds=torch.cat([image.to(embedded.dtype), embedded], dim=1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=targets.shape[1],
        ).logits
        return functional.cross_entropy(logits.float().transpose(1, 2), targets)

    @torch.no_grad()
    def _patches(self) -> Float[Tensor, "batch tokens dim"]:
        pixels = self.batch["images"][:, 0].permute(0, 3, 1, 2).float()
        size = tuple(self.tower.patch_embed.img_size)
        if tuple(pixels.shape[-2:]) != size:
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 255)
        mean, std = self.mean_and_std[:, :, None, None]
        features = self.tower.forward_features((pixels - mean) / std)[:, self.tower.num_prefix_tokens :]
        rows, columns = self.tower.patch_embed.grid_size
        grid = features.transpose(1, 2).unflatten(2, (rows, columns))
        return functional.avg_pool2d(grid, self.pool).flatten(2).transpose(1, 2)
