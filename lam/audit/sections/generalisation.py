"""Probes fitted on some cameras or tasks and scored on others, by a bound that no shift of actions inflates."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lam.audit.estimators.contrast import blocks_of, contrastive_bits, normal_critic
from lam.audit.mutual_information import shuffled_by_episode
from lam.audit.probes import episode_folds, rank_gaussianise
from lam.audit.sections.numbers import Number, Table, by_place, mean_number, nmse_number, permutation
from lam.audit.sections.regression import fit_ridge

FOLDS = 5
FEWEST = 30
"""Rows that something can be fitted or scored on."""


class Scores(NamedTuple):
    """Of the rows that were scored."""

    bits: Float[np.ndarray, " rows"]
    errors: Float[np.ndarray, "rows dims"]
    deviations: Float[np.ndarray, "rows dims"]


def transferred(
    latents: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    train: Int[np.ndarray, " train"],
    test: Int[np.ndarray, " test"],
    permutations: int,
    seed: int = 0,
) -> dict[str, Number] | None:
    """`bits` and `nmse` on the rows `test` of probes fitted on the rows `train` of other episodes.

    Bits: the contrastive bound among the scored rows with a normal density as critic, so that actions that are
    distributed otherwise than where it was fitted gain nothing; at most log2 of the rows. NMSE: 1 is the mean of the
    scored rows themselves. None where there are too few rows.
    """
    varies = np.ptp(actions[test], axis=0) > 0 if len(test) else np.zeros(0, bool)
    if min(len(train), len(test)) < FEWEST or not varies.any():
        return None
    targets = actions[:, varies].astype(np.float64)
    where, rng = episodes[test], np.random.default_rng(seed)
    means, bits = _fitted(latents, targets, episodes, train, test, seed)
    shuffles = [latents[shuffled_by_episode(episodes, rng)] for _ in range(permutations)]
    null = [float(_fitted(shuffle, targets, episodes, train, test, seed)[1].mean()) for shuffle in shuffles]
    errors = (targets[test] - means) ** 2
    deviations = (targets[test] - targets[test].mean(axis=0)) ** 2
    return {
        "bits": mean_number(bits, where, permutation(null), seed),
        "nmse": nmse_number(errors, deviations, where, seed),
    }


def by_camera(
    latents: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    cameras: Int[np.ndarray, " n"],
    trained: list[int],
    permutations: int,
    seed: int = 0,
) -> dict[int, dict[str, Number]]:
    """Scores at each camera of probes fitted at those that the model was trained on."""
    fitted = np.flatnonzero(np.isin(cameras, trained))
    found = {}
    for camera in np.unique(cameras):
        test = np.flatnonzero(cameras == camera)
        if (numbers := transferred(latents, actions, episodes, fitted, test, permutations, seed)) is not None:
            found[int(camera)] = numbers
    return found


def by_task(
    latents: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    tasks: np.ndarray,
    permutations: int,
    seed: int = 0,
) -> dict[str, dict[str, Number]]:
    """Scores in each task of probes fitted on the others."""
    found = {}
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks != task), np.flatnonzero(tasks == task)
        if (numbers := transferred(latents, actions, episodes, *rows, permutations, seed)) is not None:
            found[str(task)] = numbers
    return found


def place_tables(kind: str, about: str, by_model: dict[str, dict[str, dict[str, Number]]]) -> list[Table]:
    """Bits and NMSE by place (`kind`: camera or task), a column a model."""
    found = []
    for key, title in (("bits", "bits about the action"), ("nmse", "NMSE of a linear probe")):
        numbers = {m: {place: both[key] for place, both in places.items()} for m, places in by_model.items()}
        found.append(by_place(f"{kind}_{key}", f"By {kind}: {title}", about, numbers))
    return found


def _fitted(
    latents: np.ndarray, targets: np.ndarray, episodes: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the test rows, and the bits that a normal density around them proves on rank-Gaussianised targets.

    Where training and test rows share episodes, each fold of episodes is predicted from the rest.
    """
    normal = rank_gaussianise(targets, np.random.default_rng(seed))
    both = np.concatenate([targets, normal], axis=1)
    predictions = np.zeros_like(both)
    if np.intersect1d(episodes[train], episodes[test]).size:
        folds = episode_folds(episodes, FOLDS, seed)
    else:
        folds = np.where(np.isin(np.arange(len(episodes)), test), 0, 1)
    covariances = []
    for fold in np.unique(folds[test]):
        known, asked = train[folds[train] != fold], test[folds[test] == fold]
        ridge = fit_ridge(latents[known], both[known], episodes[known], seed)
        predictions[asked] = ridge.predict(latents[asked])
        errors = (both[known] - ridge.predict(latents[known]))[:, targets.shape[1] :]
        covariances.append(errors.T @ errors / len(known))
    means, normal_means = np.split(predictions[test], 2, axis=1)
    critic = normal_critic(normal[test], normal_means, np.mean(covariances, axis=0))
    bits = np.empty(len(test))
    for block in blocks_of(np.arange(len(test)), np.random.default_rng(seed)):
        bits[block] = contrastive_bits(critic.scores(block))
    return means, bits
