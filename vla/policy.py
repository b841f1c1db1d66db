"""A fine-tuned checkpoint as a policy: one path in, camera images in, actions in physical units out."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.device import bf16_is_fast, default_device
from core.policy import ActionChunk, Observation
from core.run import fingerprint_of_file
from vla.acting import ObservationError, acting_facts, senses_of
from vla.checkpoint import WEIGHTS, load, local
from vla.heads.interface import TokenHead
from vla.images import Eye
from vla.lora import merge
from vla.model import Thought
from vla.prompt import prompt


@dataclass(frozen=True)
class Session:
    """What a policy remembers of one episode."""

    instruction: str
    history: deque[list[int]]
    """Codes of the latest latent actions, oldest first."""
    generator: torch.Generator
    """Of what the head draws at random."""


class VlaPolicy:
    """Acts on camera images and an instruction: in one episode (`reset`, `act`) or in many (`start`, `act_many`)."""

    temperature = 0.0
    """It takes the most likely token."""

    def __init__(self, directory: str | Path) -> None:
        """Load the checkpoint.

        Raises:
            CheckpointError: it cannot act, its parts do not fit each other, or the visual tower of this machine is not
                the one it was trained on.
            StatisticsError: it holds no action statistics.
        """
        directory = local(directory)
        self.model, self.description, facts = load(directory)
        known = acting_facts(self.description, facts, str(directory))
        self.action_statistics, self.proprioception_statistics = known.actions, known.proprioception
        self.proprioception_dims = self.description.proprioception_dims
        self.action_space, self.control_hz = known.action_space, known.control_hz
        if self.description.lora is not None:
            merge(self.model.backbone)
        self.cameras, self.horizon = self.description.shown, self.description.horizon
        form = self.description.images
        self.image_size = form.encoder.image_size if form.encoder else max(form.size)
        self.fingerprint = fingerprint_of_file(Path(directory) / WEIGHTS)
        self.device = default_device()
        self.eye = Eye(form, self.device, known.camera_sizes)
        self.model.to(self.device)
        self.use_bf16 = bf16_is_fast(self.device)
        if self.use_bf16:
            self.model.round_products()
        self.session: Session | None = None

    def start(self, instruction: str, seed: int) -> Session:
        """An episode at its beginning.

        Raises:
            PromptError: the instruction is empty or far too long.
        """
        prompt(instruction)
        return Session(instruction, deque(maxlen=self.description.history), torch.Generator().manual_seed(seed))

    @torch.inference_mode()
    def act_many(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> list[ActionChunk]:
        """The next chunk of each episode, in one forward pass; each session once.

        In a batch of another size sums are taken in another order: the last bits of the actions may be others (in
        bfloat16 the third digit), and of two latent actions that are as likely the other may be chosen.

        Raises:
            KeyError: an observation lacks a camera that the policy was trained on.
            ImageError: an image is no RGB image, or has another shape than those of its camera in training.
            ObservationError: it lacks the proprioception that the policy was trained with, has another number of it, or
                some that is not finite.
        """
        told = [senses_of(observation, self.proprioception_statistics) for observation in observations]
        senses = torch.from_numpy(np.stack(told))
        images = self.eye([observation.images for observation in observations], self.cameras)
        prompts = [prompt(session.instruction, list(session.history)) for session in sessions]
        prepared = self.model.backbone.prepare(images, prompts)
        inputs = {name: value.to(self.device) for name, value in prepared.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16):
            thought = self.model.think(inputs)
            actions = self._act_on(thought, senses.to(self.device), [session.generator for session in sessions])
        for session, codes in zip(sessions, thought.codes.tolist(), strict=True):
            session.history.append(codes)
        undo = self.action_statistics.from_unit if self.model.head.is_bounded else self.action_statistics.denormalise
        chunks = actions.float().cpu().numpy()
        return [ActionChunk(actions=undo(chunk), action_space=self.action_space) for chunk in chunks]

    def reset(self, instruction: str, seed: int) -> None:
        """Start the one episode that `act` goes on with.

        Raises:
            PromptError: the instruction is empty or far too long.
        """
        self.session = self.start(instruction, seed)

    def act(self, observation: Observation) -> ActionChunk:
        """The next chunk of actions; see `act_many`.

        Raises:
            ObservationError: there was no `reset` before.
        """
        if self.session is None:
            raise ObservationError("the policy was given no instruction; call reset(instruction, seed) before act")
        return self.act_many([observation], [self.session])[0]

    def _act_on(
        self, thought: Thought, senses: Float[Tensor, "batch senses"], generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch horizon dims"]:
        """Normalised actions; a head that may draw is asked row by row, so that each draws from its own generator."""
        if isinstance(self.model.head, TokenHead):
            return self.model.act_on(thought, senses)
        seen = thought.seen
        rows = [
            Thought(seen._replace(image=seen.image[row, None], hidden=seen.hidden[row, None]), codes[None])
            for row, codes in enumerate(thought.codes)
        ]
        acted = [self.model.act_on(*given) for given in zip(rows, senses[:, None], generators, strict=True)]
        return torch.cat(acted)


def load_policy(path: str) -> VlaPolicy:
    """The policy in a fine-tuned checkpoint's directory."""
    return VlaPolicy(path)
