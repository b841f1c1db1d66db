"""An inspection of a store: all that is measured, and the problems that follow from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.duplicates import Traits
from core.inspection.episode_problems import episode_problems
from core.inspection.picture_problems import picture_problems
from core.inspection.pictures import Looks, chosen_episodes, look_at
from core.inspection.problems import Problem, in_order
from core.inspection.records import clocks_of_store, traits_of_store
from core.inspection.value_problems import action_problems, sense_problems
from core.inspection.values import Values, action_values, sense_values
from core.store import Store, StoreError

EPISODES = 200
"""Episodes of which frames are decoded where nothing else is asked for."""


class Compared(NamedTuple):
    """In how many episodes copies of others were sought."""

    by_frames: int
    by_actions: int

    @classmethod
    def of(cls, traits: Sequence[Traits]) -> "Compared":
        """Those of which there is something to compare."""
        return cls(sum(bool(one.signatures) for one in traits), sum(bool(one.action_hash) for one in traits))


class Inspection(NamedTuple):
    """What was found in a store."""

    store: Store
    looks: Looks
    actions: Values | None
    senses: Values | None
    compared: Compared
    problems: list[Problem]
    """The worst first."""

    @property
    def is_fatal(self) -> bool:
        """Whether training on the store would be wrong or fail."""
        return any(one.level == "fatal" for one in self.problems)


def inspect_store(path: str | Path, most_episodes: int | None = EPISODES, seed: int = 0) -> Inspection:
    """Look at everything but frames in all episodes, at frames in at most so many, chosen by the seed; None: all.

    Raises:
        StoreError: `path` is no store, or so damaged that it cannot be opened.
    """
    store = open_store(Path(path))
    actions, senses = action_values(store), sense_values(store)
    looks = look_at(store, chosen_episodes(len(store.episodes), most_episodes, seed))
    traits = traits_of_store(store, looks, actions.hashes if actions else {})
    problems = [
        *episode_problems(store, traits, clocks_of_store(store)),
        *action_problems(store, actions),
        *sense_problems(senses),
        *picture_problems(store, looks, actions, senses),
    ]
    return Inspection(store, looks, actions, senses, Compared.of(traits), in_order(problems))


def open_store(path: Path) -> Store:
    """The store at `path`.

    Raises:
        StoreError: it is none; the message says how one is made of what is there.
    """
    if path.exists() and not any((path / name).exists() for name in ("meta/info.json", "parts")):
        raise StoreError(
            f"{path} is not a store, for there is no meta/info.json in it; convert it first: "
            f"python scripts/convert_episodes.py {path} STORE, then inspect STORE"
        )
    return Store.open(path)


def to_json(inspection: Inspection) -> dict[str, Any]:
    """The inspection for machines: problems, what was looked at, and the facts of the store."""
    store = inspection.store
    records = store.episodes
    return {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "is_fatal": inspection.is_fatal,
        "episodes": len(records),
        "frames": store.num_frames,
        "control_hz": store.info.control_hz,
        "views": {view: list(size) for view, size in store.info.views.items()},
        "episodes_looked_at": len(inspection.looks.episodes),
        "copies_sought_in": inspection.compared._asdict(),
        "problems": [
            {
                "level": one.level,
                "name": one.name,
                "what": one.what,
                "advice": one.advice,
                "episodes": one.named(records),
                "episodes_in_all": len(one.episodes),
            }
            for one in inspection.problems
        ],
        "actions": _numbers(inspection.actions),
        "proprioception": _numbers(inspection.senses),
    }


def _numbers(values: Values | None) -> dict[str, Any] | None:
    if values is None or not len(values.episodes):
        return None
    facts = {"min": values.low.min(0), "q01": values.q01, "mean": values.mean, "std": values.std}
    facts |= {"q99": values.q99, "max": values.high.max(0)}
    return {"names": list(values.names), **{name: fact.astype(float).tolist() for name, fact in facts.items()}}
