"""A fine-tuned checkpoint as a policy: one path in, camera images in, actions in physical units out."""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from core.checkpoint import CheckpointError
from core.device import bf16_is_fast, default_device
from core.policy import ActionChunk, Observation
from core.run import fingerprint_of_file
from core.spaces import ActionSpace
from core.statistics import Statistics
from core.vision import load_encoder
from vla.checkpoint import WEIGHTS, load
from vla.prompt import prompt


class VlaPolicy:
    """Acts on one camera image and an instruction."""

    def __init__(self, directory: str | Path) -> None:
        """Load the checkpoint.

        Raises:
            CheckpointError: it cannot act, or the visual tower of this machine is not the one it was trained on.
            StatisticsError: it holds no action statistics.
        """
        self.model, self.description, facts = load(directory)
        if self.model.head is None:
            raise CheckpointError(f"{directory} was pretrained but never fine-tuned; run scripts/finetune_vla.py on it")
        statistics = facts.get("statistics", {})
        self.action_statistics = Statistics.from_json(statistics.get("actions"))
        self.uses_proprioception = self.description.proprioception_dims > 0
        if self.uses_proprioception:
            self.proprioception_statistics = Statistics.from_json(statistics.get("proprioception"))
        self.action_space = ActionSpace(**facts["action_space"])
        self.cameras = (self.description.view,)
        self.image_size = self.description.encoder.image_size
        self.fingerprint = fingerprint_of_file(Path(directory) / WEIGHTS)
        self.device = default_device()
        self.encoder = load_encoder(self.description.encoder, self.device)
        if self.encoder.fingerprint != self.description.encoder_fingerprint:
            raise CheckpointError(
                f"{directory} was trained on visual tower {self.description.encoder_fingerprint}, those found here "
                f"make {self.encoder.fingerprint}; run scripts/setup.sh to fetch the right ones"
            )
        self.model.to(self.device)
        self.use_bf16 = bf16_is_fast(self.device)

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode; this policy draws nothing at random."""
        self.ids = self.model.tokenizer.encode([prompt(instruction)]).to(self.device)

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """The next chunk of actions.

        Raises:
            KeyError: the observation lacks the camera that the policy was trained on.
            ValueError: it lacks the proprioception that the policy was trained with.
        """
        senses = np.zeros((1, 0), np.float32)
        if self.uses_proprioception:
            if observation.proprioception is None:
                raise ValueError("the policy was trained with proprioception, the observation has none")
            senses = self.proprioception_statistics.normalise(observation.proprioception[None])
        image = torch.from_numpy(observation.images[self.cameras[0]]).to(self.device)
        features = self.encoder(image[None])
        rows, _ = self.description.grid
        pool = self.description.pool
        features = features.reshape(1, rows, pool, -1, pool, features.shape[-1]).mean((2, 4))
        features = rearrange(features, "batch rows columns dim -> batch (rows columns) dim")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16):
            actions = self.model.act(features, self.ids, torch.from_numpy(senses).to(self.device))
        return ActionChunk(
            actions=self.action_statistics.denormalise(actions[0].float().cpu().numpy()), action_space=self.action_space
        )


def load_policy(path: str) -> VlaPolicy:
    """The policy in a fine-tuned checkpoint's directory."""
    return VlaPolicy(path)
