"""Latent actions decoded elsewhere: with another camera's code, and in another scene."""

import numpy as np
import torch
from jaxtyping import Float, Int

from lam.audit.sample import Sample
from lam.audit.sections.numbers import Null, Number, Table, ratio_number
from lam.audit.subjects import BATCH, Subject
from lam.audit.views import seen_together

COLUMNS = {
    "own": "with its own code",
    "camera": "code of another camera",
    "nearest": "code of another scene, most similar action",
    "random": "code of another scene, any action",
}


def donors_of(sample: Sample, seed: int) -> dict[str, Int[np.ndarray, " n"]]:
    """For each row the row whose code it gets (-1: none): another camera's of its transition, other episodes'.

    Scenes are other episodes seen by the same camera; actions are compared in standard deviations of each dimension.
    """
    rng, found = np.random.default_rng(seed), {}
    found["own"] = np.arange(sample.size)
    found["camera"] = np.full(sample.size, -1)
    for group in seen_together(sample.indices, sample.views):
        turned = np.roll(group.rows, 1, axis=1)
        found["camera"][group.rows.reshape(-1)] = turned.reshape(-1)
    found["nearest"], found["random"] = np.full((2, sample.size), -1)
    scale = np.maximum(sample.actions.std(axis=0), 1e-9)
    for camera in np.unique(sample.views):
        rows = np.flatnonzero(sample.views == camera)
        for row in rows:
            others = rows[sample.episodes[rows] != sample.episodes[row]]
            if not len(others):
                continue
            found["random"][row] = rng.choice(others)
            if sample.actions.shape[1]:
                apart = np.square((sample.actions[others] - sample.actions[row]) / scale).sum(axis=1)
                found["nearest"][row] = others[apart.argmin()]
    return {name: donors for name, donors in found.items() if (donors >= 0).any()}


def transplant_numbers(
    subject: Subject, sample: Sample, donors: dict[str, Int[np.ndarray, " n"]], seed: int = 0
) -> dict[str, Number]:
    """Squared error of the decoded later frame, relative to taking the first frame for it; with each row's donor."""
    errors = {name: np.zeros(sample.size) for name in donors}
    stays = np.zeros(sample.size)
    for start in range(0, sample.size, BATCH):
        rows = np.arange(start, min(start + BATCH, sample.size))
        features = np.asarray(sample.features(rows)).astype(np.float32)
        stays[rows] = np.square(features[:, 1] - features[:, 0]).mean(axis=(1, 2))
        for name, donor in donors.items():
            vectors = subject.real.vectors[np.maximum(donor[rows], 0)]
            errors[name][rows] = decoding_error(subject, features, vectors)
    found = {}
    for name, donor in donors.items():
        rows = np.flatnonzero(donor >= 0)
        null = Null("no code: the first frame stays", 1.0)
        found[name] = ratio_number(
            errors[name][rows], np.maximum(stays[rows], 1e-12), sample.episodes[rows], null, seed
        )
    return found


@torch.inference_mode()
def decoding_error(
    subject: Subject, features: Float[np.ndarray, "n 2 patches dim"], vectors: Float[np.ndarray, "n tokens code_dim"]
) -> Float[np.ndarray, " n"]:
    """Mean squared error of the later frame's features, decoded from the first frame's."""
    device = next(subject.model.parameters()).device
    first = torch.from_numpy(features[:, 0]).to(device)
    decoded = subject.model.decode(first, torch.from_numpy(vectors).to(device)).float().cpu().numpy()
    return np.square(decoded - features[:, 1]).mean(axis=(1, 2))


def transplant_table(rows: dict[str, dict[str, Number]]) -> Table:
    """The table of all models."""
    present = {key for row in rows.values() for key in row}
    return Table(
        "transplant",
        "Transplants: decoding with the code of another",
        "Squared error of the decoded later frame (in features), relative to taking the first frame for it: below 1 "
        "the code explains change. A code that is about the action works as well when it comes from another camera, or "
        "from another episode (seen by the same camera) in which the action was most similar; one from another "
        "episode at random is the control.",
        {key: title for key, title in COLUMNS.items() if key in present},
        rows,
    )
