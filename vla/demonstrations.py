"""Which labelled episodes a policy is fine-tuned on, what is said of them before it is, and their statistics."""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from core.run import say
from core.statistics import Statistics
from core.store import EpisodeRecord, Store

ROUNDING = 1e-4
"""By so much an action may be out of range."""


class FinetuneError(ValueError):
    """Demonstrations that a policy cannot be fine-tuned on."""


def choose_demonstrations(store: Store, wanted: dict[str, int], views: Sequence[str]) -> list[EpisodeRecord]:
    """The first `wanted[task]` labelled training episodes of each task that all cameras saw; all, where none is named.

    Raises:
        FinetuneError: a task has fewer, the store has no actions, or not the views that the policy is to see.
    """
    if store.info.action_space is None:
        raise FinetuneError(f"{store.path} has no actions; fine-tuning needs labelled episodes")
    for view in views:
        if view not in store.info.views:
            raise FinetuneError(f"{store.path} has no view {view!r}; data.views takes some of {list(store.info.views)}")
    seen = [r for r in store.select(split="train", is_labelled=True) if set(views) <= set(r.views)]
    if not seen:
        raise FinetuneError(f"{store.path} has no labelled training episode with the views {list(views)}")
    chosen: list[EpisodeRecord] = [] if wanted else seen
    for task, number in wanted.items():
        found = [record for record in seen if record.task == task]
        if len(found) < number:
            raise FinetuneError(
                f"data.demonstrations.{task} asks for {number} labelled training episodes, {store.path} has "
                f"{len(found)}; its tasks are {sorted({record.task for record in store.episodes})}"
            )
        chosen += found[:number]
    return chosen


def held_out_of(store: Store, records: Sequence[EpisodeRecord], views: Sequence[str]) -> list[EpisodeRecord]:
    """Labelled held-out episodes of the tasks of `records` that all cameras saw."""
    tasks = {record.task for record in records}
    labelled = store.select(split="held_out", is_labelled=True)
    return [record for record in labelled if record.task in tasks and set(views) <= set(record.views)]


def held_out_demonstrations(
    store: Store, records: list[EpisodeRecord], views: Sequence[str], *, with_proprioception: bool, is_main: bool = True
) -> list[EpisodeRecord]:
    """Those of `held_out_of` that have all that the policy is to see.

    They are read once, so that training does not begin with what validation cannot end with.

    Raises:
        StoreError: one has no actions, or is damaged.
    """
    found = held_out_of(store, records, views)
    for record in found:
        store.actions(record.index)
    without = {r.index for r in found if with_proprioception and store.proprioception(r.index) is None}
    if without and is_main:
        say(
            f"{len(without)} of {len(found)} held-out episodes are left out of validation, for they have no "
            f"proprioception; the first is {store.episodes[min(without)].episode_id}"
        )
    return [record for record in found if record.index not in without]


def measure(store: Store, records: list[EpisodeRecord], with_proprioception: bool) -> dict[str, Statistics]:
    """Statistics of the actions and, where it is used, the proprioception of the chosen demonstrations.

    Raises:
        FinetuneError: proprioception is asked for and the store has none.
    """
    statistics = {"actions": Statistics.of(_Numbers(records, lambda record: store.actions(record.index)))}
    if with_proprioception:
        if not store.info.proprioception_dims:
            raise FinetuneError(f"{store.path} has no proprioception; set proprioception: false")
        senses = _Numbers(records, lambda record: _proprioception(store, record))
        statistics["proprioception"] = Statistics.of(senses)
    return statistics


def warnings_of(statistics: dict[str, Statistics], store: Store) -> list[str]:
    """What is odd about the numbers, in sentences: dimensions that never change, actions beyond the robot's range."""
    space, actions = store.info.action_space, statistics["actions"]
    said = []
    if actions.constant:
        said.append(
            f"the actions {[space.names[d] for d in actions.constant]} never change in these demonstrations; the "
            "policy will always answer that value"
        )
    for d, name in enumerate(space.names):
        if space.low is not None and actions.low[d] < space.low[d] - ROUNDING:
            said.append(f"action {name} goes down to {actions.low[d]:.4g}, the robot takes {space.low[d]:.4g} and more")
        if space.high is not None and actions.high[d] > space.high[d] + ROUNDING:
            said.append(f"action {name} goes up to {actions.high[d]:.4g}, the robot takes {space.high[d]:.4g} and less")
    return said


class _Numbers(Collection[np.ndarray]):
    """Numbers of episodes, read anew each time they are gone through, so that memory holds one episode at a time."""

    def __init__(self, records: Sequence[EpisodeRecord], read: Callable[[EpisodeRecord], np.ndarray]) -> None:
        self._records, self._read = records, read

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(record) for record in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, _: object) -> bool:
        raise NotImplementedError


def _proprioception(store: Store, record: EpisodeRecord) -> Float[np.ndarray, "frames senses"]:
    values = store.proprioception(record.index)
    if values is None:
        raise FinetuneError(f"episode {record.episode_id} has no proprioception; set proprioception: false")
    return values
