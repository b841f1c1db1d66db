"""What codes tell of scene and camera beyond what the action tells: I(Z; S | A) for everything that the store knows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.store import Store
from lam.audit.estimators.barber_agakov import barber_agakov_linear
from lam.audit.estimators.conditional import beyond
from lam.audit.estimators.interface import Sample as Pairs
from lam.audit.estimators.interface import inputs_of
from lam.audit.mutual_information import shuffled_by_episode
from lam.audit.sample import Sample
from lam.audit.sections.numbers import Number, Table, mean_number, permutation

LEAST_RANGE = 1e-6
"""Numbers that vary by less are constant."""
KNOWN = {
    "object_pose": ("object pose", "the store has no column object_pose"),
    "object_motion": ("change of object pose", ""),
    "hand_pose": ("hand pose", "the store has no proprioception"),
    "distractor": ("distractor's motion", "the store has no column distractor_position"),
    "brightness": ("change of brightness", "the store has no column brightness"),
    "camera_motion": ("camera motion", "the store has no camera extrinsics"),
}
"""Heading, and what is said where it is missing."""


def conditional_bits(
    codes: Int[np.ndarray, "n tokens"],
    nuisance: Float[np.ndarray, "n numbers"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    permutations: int,
    seed: int = 0,
) -> Number:
    """I(Z; S | A) = I(Z, A; S) - I(A; S), each a linear Gaussian bound; null: codes shuffled by episode.

    A difference of two lower bounds is no bound.
    """
    rng = np.random.default_rng(seed)
    pairs = Pairs(actions=nuisance, codes=codes, episodes=episodes)
    told_by, inputs = beyond(pairs, actions, barber_agakov_linear, seed=seed), inputs_of(pairs)
    told = told_by(inputs).contributions
    assert told is not None
    null = [told_by(inputs[shuffled_by_episode(episodes, rng)]).bits for _ in range(permutations)]
    return mean_number(told, episodes, permutation(null), seed)


def nuisances_of(sample: Sample) -> tuple[dict[str, Float[np.ndarray, "n numbers"]], list[str]]:
    """What the store knows of each row's scene and camera, numbers that vary only; and sentences about the rest."""
    store, gap = sample.store, sample.dataset.gaps[0]
    episodes, frames = sample.dataset.locate(sample.indices)
    found: dict[str, np.ndarray] = {}

    def both(of_episode: Callable[[int], Any]) -> np.ndarray | None:
        values = {int(e): of_episode(int(e)) for e in np.unique(episodes)}
        if any(value is None for value in values.values()):
            return None
        pairs = [values[int(e)][[f, f + gap]] for e, f in zip(episodes, frames, strict=True)]
        return np.stack(pairs).astype(np.float64).reshape(len(pairs), 2, -1)

    columns = {name: both(_column(store, name)) for name in ("object_pose", "distractor_position", "brightness")}
    if (pose := columns["object_pose"]) is not None:
        found |= {"object_pose": pose[:, 0], "object_motion": pose[:, 1] - pose[:, 0]}
    if store.info.proprioception_dims and (hand := both(store.proprioception)) is not None:
        found["hand_pose"] = hand[:, 0]
    for name in ("distractor_position", "brightness"):
        if (values := columns[name]) is not None:
            found[name.removesuffix("_position")] = values[:, 1] - values[:, 0]
    if (motion := camera_motion(sample, episodes, frames)) is not None:
        found["camera_motion"] = motion
    missing = [f"{text[0]}: {text[1]}" for name, text in KNOWN.items() if name not in found and text[1]]
    varying = {name: values[:, np.ptp(values, axis=0) > LEAST_RANGE] for name, values in found.items()}
    missing += [f"{KNOWN[name][0]}: it never changes in these episodes" for name in found if not varying[name].size]
    return {name: values for name, values in varying.items() if values.size}, missing


def camera_motion(
    sample: Sample, episodes: Int[np.ndarray, " n"], frames: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"] | None:
    """Movement of each row's own camera in its own axes, metres; None where some pose is not known."""
    poses: dict[tuple[int, int], np.ndarray | None] = {}
    gap, out = sample.dataset.gaps[0], np.empty((sample.size, 3))
    for row, key in enumerate(zip(episodes.tolist(), sample.views.tolist(), strict=True)):
        if key not in poses:
            poses[key] = sample.store.extrinsics(key[0], sample.dataset.views[key[1]])
        of_episode = poses[key]
        if of_episode is None:
            return None
        first, later = of_episode[[frames[row], frames[row] + gap]].astype(np.float64)
        eyes = [-pose[:, :3].T @ pose[:, 3] for pose in (first, later)]
        out[row] = first[:, :3] @ (eyes[1] - eyes[0])
    return out


def nuisances_table(rows: dict[str, dict[str, Number]]) -> Table:
    """The table of all models."""
    present = {key for row in rows.values() for key in row}
    return Table(
        "nuisances",
        "What the code tells beyond the action",
        "Conditional information I(Z; S | A) in bits: how much the code tells of S that the action does not. By linear "
        "Gaussian bounds, I(Z, A; S) - I(A; S) with squares and products of A; the difference of two lower bounds is "
        "no bound. The null shuffles codes by episode; codes that mean nothing cost the bound something, "
        "so that it lies below 0. Poses are those of the first frame. A scripted policy makes "
        "actions follow from the scene, so some bits about it are no leak.",
        {key: text[0] for key, text in KNOWN.items() if key in present},
        rows,
    )


def _column(store: Store, name: str) -> Callable[[int], np.ndarray | None]:
    return lambda episode: store.columns(episode).get(name) if name in store.info.columns else None
