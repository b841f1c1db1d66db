"""Many scenes of one ManiSkill task at once: on a CUDA GPU in one simulator, otherwise in one each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from eval.benchmark import StepResult
from eval.maniskill import ManiSkillBenchmark
from eval.sapien_scene import show_poses
from eval.scenes import Scenes, SeparateSimulators
from eval.tasks import TASKS


def make_scenes(scenes: int, **arguments: Any) -> Scenes:
    """So many scenes of what `ManiSkillBenchmark` makes of the other arguments."""
    if arguments.get("physics") == "physx_cuda":
        return ManiSkillScenes(scenes, **arguments)
    return SeparateSimulators([ManiSkillBenchmark(**arguments) for _ in range(scenes)])


class ManiSkillScenes:
    """Scenes that ManiSkill simulates at once; a `Scenes` of eval/scenes.py.

    A seed names the same initial state in any scene and among any others; another one than on the CPU, because
    ManiSkill draws it with the generator of the device. Physics on a GPU does not repeat to the last bit. Cameras take
    their pictures scene by scene, exactly as in a single one.
    """

    def __init__(self, scenes: int, **arguments: Any) -> None:
        """Build the scenes; the other arguments are those of `ManiSkillBenchmark`.

        Raises:
            RuntimeError: there is no CUDA GPU, where there are several.
        """
        first = ManiSkillBenchmark(scenes=scenes, **arguments)
        self.each = [first, *(first.beside(index) for index in range(1, scenes))]
        self._environment = first.environment
        self._is_fresh = True
        self._built_for: list[int] = []
        self._idle = (np.array(first.action_space.low) + np.array(first.action_space.high)) / 2

    def reset(self, seeds: Sequence[int]) -> list[str]:
        """Start the episode of each seed; see `Scenes`."""
        import torch

        everywhere = [*seeds, *[seeds[-1]] * (len(self.each) - len(seeds))]
        if self._must_be_built(everywhere):
            self._environment.reset(seed=everywhere, options={"reconfigure": True})
            self._is_fresh, self._built_for = True, everywhere
            self._furnish()
        for index, seed in enumerate(seeds):
            # Of several seeds ManiSkill draws the states of all scenes from the first, so each scene begins by itself.
            scene = torch.tensor([index], device=self._environment.device)
            _, info = self._environment.reset(seed=[seed] * len(self.each), options={"env_idx": scene})
            if info["reconfigure"]:
                self._furnish()
        show_poses(self._environment)
        return [scene.begin(seed) for scene, seed in zip(self.each, seeds, strict=False)]

    def step(self, actions: Sequence[Float[np.ndarray, " dims"] | None]) -> list[StepResult | None]:
        """Take one action in each scene; those whose episode is over move too, and nobody looks at them."""
        self._is_fresh = False
        taken = [*actions, *[None] * (len(self.each) - len(actions))]
        numbers = [
            scene.native(self._idle if action is None else action)
            for scene, action in zip(self.each, taken, strict=True)
        ]
        _, _, _, _, info = self._environment.step(np.stack(numbers))
        show_poses(self._environment)
        pairs = zip(self.each, actions, strict=False)
        return [None if action is None else scene.judge(info) for scene, action in pairs]

    def close(self) -> None:
        """Free the simulator."""
        for scene in self.each:
            scene.close()

    def _must_be_built(self, seeds: list[int]) -> bool:
        """As for a single scene, but a GPU, which repeats nothing to the last bit, keeps scenes that were used."""
        look_the_same = self.each[0].task in TASKS or self._built_for == seeds
        return not (look_the_same and (self._is_fresh or self._environment.gpu_sim_enabled))

    def _furnish(self) -> None:
        for scene in self.each:
            scene.furnish()
