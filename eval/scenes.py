"""Several episodes of one task at once, each in a scene of its own that nothing in another scene touches."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from eval.benchmark import Benchmark, StepResult


class Scenes(Protocol):
    """Scenes that are reset and stepped together; results of an episode do not depend on what is in the others."""

    @property
    def each(self) -> Sequence[Benchmark]:
        """The scenes one by one, to be observed; they are reset and stepped here only."""

    def reset(self, seeds: Sequence[int]) -> list[str]:
        """Start the episode of each seed in a scene, the first ones where there are fewer; answers the instructions."""

    def step(self, actions: Sequence[Float[np.ndarray, " dims"] | None]) -> list[StepResult | None]:
        """Take one action in each scene that was reset; None where its episode is over, for actions and for results."""

    def close(self) -> None:
        """Free the simulators."""


class SeparateSimulators:
    """Scenes of any benchmark: a simulator for each, one after the other."""

    def __init__(self, each: Sequence[Benchmark]) -> None:
        self.each = each

    def reset(self, seeds: Sequence[int]) -> list[str]:
        """Start the episode of each seed; see `Scenes`."""
        return [scene.reset(seed) for scene, seed in zip(self.each, seeds, strict=False)]

    def step(self, actions: Sequence[Float[np.ndarray, " dims"] | None]) -> list[StepResult | None]:
        """Take one action in each simulator whose episode goes on."""
        pairs = zip(self.each, actions, strict=False)
        return [None if action is None else scene.step(action) for scene, action in pairs]

    def close(self) -> None:
        """Free the simulators."""
        for scene in self.each:
            scene.close()
