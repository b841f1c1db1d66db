"""A fine-tuned checkpoint as a policy: one path in, camera images in, actions in physical units out."""

from collections import deque
from pathlib import Path

import numpy as np
import torch

from core.checkpoint import CheckpointError
from core.device import bf16_is_fast, default_device
from core.policy import ActionChunk, Observation
from core.run import fingerprint_of_file
from core.spaces import ActionSpace
from core.statistics import Statistics
from vla.checkpoint import WEIGHTS, load, local
from vla.images import Eye
from vla.lora import merge
from vla.prompt import prompt


class VlaPolicy:
    """Acts on camera images and an instruction."""

    def __init__(self, directory: str | Path) -> None:
        """Load the checkpoint.

        Raises:
            CheckpointError: it cannot act, or the visual tower of this machine is not the one it was trained on.
            StatisticsError: it holds no action statistics.
        """
        directory = local(directory)
        self.model, self.description, facts = load(directory)
        if self.model.head is None:
            raise CheckpointError(f"{directory} was pretrained but never fine-tuned; run scripts/finetune_vla.py on it")
        statistics = facts.get("statistics", {})
        self.action_statistics = Statistics.from_json(statistics.get("actions"))
        self.uses_proprioception = self.description.proprioception_dims > 0
        if self.uses_proprioception:
            self.proprioception_statistics = Statistics.from_json(statistics.get("proprioception"))
        self.action_space = ActionSpace(**facts["action_space"])
        self.control_hz: float = facts["control_hz"]
        if self.description.lora is not None:
            merge(self.model.backbone)
        self.cameras = self.description.shown
        form = self.description.images
        self.image_size = form.encoder.image_size if form.encoder else max(form.size)
        self.fingerprint = fingerprint_of_file(Path(directory) / WEIGHTS)
        self.device = default_device()
        self.eye = Eye(form, self.device)
        self.model.to(self.device)
        self.use_bf16 = bf16_is_fast(self.device)

    def reset(self, instruction: str, seed: int) -> None:
        """Start an episode.

        Raises:
            PromptError: the instruction is empty or far too long.
        """
        prompt(instruction)
        self.instruction = instruction
        self.history: deque[list[int]] = deque(maxlen=self.description.history)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """The next chunk of actions.

        Raises:
            KeyError: the observation lacks a camera that the policy was trained on.
            ValueError: it lacks the proprioception that the policy was trained with.
        """
        senses = np.zeros((1, 0), np.float32)
        if self.uses_proprioception:
            if observation.proprioception is None:
                raise ValueError("the policy was trained with proprioception, the observation has none")
            senses = self.proprioception_statistics.normalise(observation.proprioception[None])
        images = self.eye(observation.images, self.cameras)
        prepared = self.model.backbone.prepare(images, [prompt(self.instruction, list(self.history))])
        inputs = {name: value.to(self.device) for name, value in prepared.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16):
            thought = self.model.think(inputs)
            actions = self.model.act_on(thought, torch.from_numpy(senses).to(self.device), self.generator)
        self.history.append(thought.codes[0].tolist())
        values = actions[0].float().cpu().numpy()
        undo = self.action_statistics.from_unit if self.model.head.is_bounded else self.action_statistics.denormalise
        return ActionChunk(actions=undo(values), action_space=self.action_space)


def load_policy(path: str) -> VlaPolicy:
    """The policy in a fine-tuned checkpoint's directory."""
    return VlaPolicy(path)
