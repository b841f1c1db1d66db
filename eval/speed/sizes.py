"""How much is measured, and who acts meanwhile."""

from pkgutil import resolve_name
from typing import NamedTuple

from core.policy import Policy
from core.spaces import END_EFFECTOR_DELTA
from eval.baselines import RandomPolicy
from eval.cameras import POLICY_CAMERA
from eval.execution import Execution


class Sizes(NamedTuple):
    """Sizes of everything that is measured."""

    episodes: int
    """Of each way to run them, in each round."""
    rounds: int
    """How often everything is timed in turn."""
    step_limit: int
    """Control steps of an episode."""
    renderings: int
    """Of each number of cameras, in each round."""
    alike_episodes: int
    """Whose pictures with either mesh are compared."""
    success_episodes: int
    """That the policy tries with either mesh."""
    calls: int
    """Of a policy server, in each round."""
    clients: int
    """Of one server at once."""
    crowd_s: float
    """How long they ask."""
    workers: int = 2
    image_size: int = 112
    """Of what a policy sees that does not say its own; pixels."""
    execute_steps: int = 4
    """Actions of a chunk that are taken before the policy is asked again."""

    @property
    def execution(self) -> Execution:
        """How they are taken: what is out of range is clipped, however far, as the plain loop does."""
        return Execution(execute_steps=self.execute_steps, stop_beyond=1e9)


FULL = Sizes(
    episodes=32,
    rounds=3,
    step_limit=50,
    renderings=50,
    alike_episodes=12,
    success_episodes=200,
    calls=500,
    clients=64,
    crowd_s=60.0,
)
QUICK = Sizes(
    episodes=3,
    rounds=1,
    step_limit=4,
    renderings=2,
    alike_episodes=1,
    success_episodes=2,
    calls=10,
    clients=3,
    crowd_s=2.0,
)


class Actor(NamedTuple):
    """A policy that each process makes for itself."""

    make: str
    """Import string, called with the path."""
    path: str
    is_given: bool

    def load(self) -> Policy:
        """The policy, in this process."""
        return resolve_name(self.make)(self.path)


def actor(path: str, make: str) -> Actor:
    """The policy at `path`, or one that moves at random and is shown pictures all the same."""
    return Actor(make, path, True) if path else Actor("eval.speed.sizes:WatchingPolicy", "watching", False)


class WatchingPolicy(RandomPolicy):
    """Small moves at random, whatever the picture shows."""

    cameras = (POLICY_CAMERA,)

    def __init__(self, path: str) -> None:
        super().__init__(END_EFFECTOR_DELTA, scale=0.2)
