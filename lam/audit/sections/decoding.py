"""Decoding: how well actions are predicted from latents, also where only few labelled transitions teach how."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lam.audit.probes import bootstrap_by_episode, episode_folds, linear_probe
from lam.audit.sections.numbers import Null, Number, Table, nmse_number
from lam.audit.sections.regression import fit_ridge, network_predictions

FOLDS = 5
RESAMPLES = 200


def decoding_errors(
    latents: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    names: Sequence[str],
    seed: int = 0,
) -> dict[str, Number]:
    """NMSE of a cross-fitted linear probe and of a small network, over all dimensions and of each."""
    varies = np.flatnonzero(np.ptp(actions, axis=0) > 0)
    probe = linear_probe(latents, actions, episodes, seed=seed)
    folds = episode_folds(episodes, FOLDS, seed)
    network = network_predictions(latents, actions[:, varies], folds, seed)
    deviations = (actions[:, varies] - outside_means(actions[:, varies], folds)) ** 2
    found = {}
    for kind, predictions in (("linear", probe.predictions[:, varies]), ("mlp", network)):
        errors = (actions[:, varies] - predictions) ** 2
        found[kind] = nmse_number(errors, deviations, episodes, seed)
        for place, dim in enumerate(varies):
            one = slice(place, place + 1)
            found[f"{kind} {names[dim]}"] = nmse_number(errors[:, one], deviations[:, one], episodes, seed)
    return found


def outside_means(targets: Float[np.ndarray, "n dims"], folds: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dims"]:
    """For each sample, the mean target of the other folds: what would be predicted without inputs."""
    return np.stack([targets[folds != fold].mean(axis=0) for fold in range(int(folds.max()) + 1)])[folds]


def few_label_error(
    latents: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    labelled: tuple[
        Float[np.ndarray, "labelled features"], Float[np.ndarray, "labelled dims"], Int[np.ndarray, " labelled"]
    ],
    labels: int,
    draws: int,
    seed: int = 0,
) -> Number | None:
    """NMSE on all samples of a linear probe that saw `labels` labelled transitions; None where there are fewer.

    Whole episodes are drawn until there are enough, the last one cut short. The interval spans draws of labels and
    resampled episodes of those that are decoded.

    Args:
        latents: of the samples to decode.
        actions: of these.
        episodes: of these.
        labelled: latents, actions and episodes to draw labels from, other episodes.
        labels: labelled transitions of a draw.
        draws: number of draws.
        seed: of the draws.
    """
    inputs, targets, groups = labelled
    varies = np.ptp(targets, axis=0) > 0
    if len(inputs) < labels or not varies.any():
        return None
    deviations = (actions[:, varies] - targets[:, varies].mean(axis=0)) ** 2
    values, resampled = [], []
    for draw in range(draws):
        order = np.random.default_rng((seed, draw)).permutation(np.unique(groups))
        rows = np.concatenate([np.flatnonzero(groups == name) for name in order])[:labels]
        probe = fit_ridge(inputs[rows], targets[rows][:, varies], groups[rows], seed)
        errors = (actions[:, varies] - probe.predict(latents)) ** 2
        values.append(float(np.mean(errors.sum(axis=0) / deviations.sum(axis=0))))
        resampled.append(_resampled(np.concatenate([errors, deviations], axis=1), episodes, seed + draw))
    low, high = np.percentile(resampled, [2.5, 97.5])
    chance = Null("chance", 1.0)
    return Number(float(np.mean(values)), (float(low), float(high)), chance, len(actions), len(np.unique(episodes)))


def few_labels_table(
    rows: dict[str, dict[int, Number]], labels: Sequence[int], draws: int, training_transitions: int
) -> Table:
    """The table of all models."""
    return Table(
        "few_labels",
        "Decoding with few labels",
        f"NMSE on held-out episodes of a ridge regression from the code to the action that was fitted on so many "
        f"labelled transitions (whole episodes, drawn {draws} times from {training_transitions} transitions of "
        "training episodes); 1 is chance. The interval spans the draws and resampled episodes.",
        {str(count): f"{count} labels" for count in labels},
        {name: {str(count): number for count, number in by_count.items()} for name, by_count in rows.items()},
    )


def _resampled(values: np.ndarray, episodes: np.ndarray, seed: int) -> np.ndarray:
    kept: list[np.ndarray] = []

    def statistic(sums: np.ndarray) -> np.ndarray:
        errors, deviations = np.split(sums, 2, axis=1)
        kept.append(np.mean(errors / deviations, axis=1))
        return kept[0]

    bootstrap_by_episode(values, episodes, statistic, draws=RESAMPLES, seed=seed)
    return kept[0]
