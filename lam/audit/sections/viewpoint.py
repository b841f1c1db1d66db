"""How much codes tell of the camera: entropy within a transition, a probe that names it, agreement of cameras."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int

from lam.audit.mutual_information import code_entropy_bits
from lam.audit.probes import CrossFittedRidge, episode_folds, one_hot
from lam.audit.sections.numbers import Null, Number, Table, by_place, jackknife_number, mean_number, permutation
from lam.audit.views import (
    SeenTogether,
    equal_share,
    most_view_entropy_bits,
    seen_together,
    view_agreement,
    view_entropy_bits,
)

FOLDS = 5
COLUMNS = {
    "view_bits": "I(token; view | transition), tokens added up, bits",
    "view_bits_share": "as a share of the most possible",
    "camera_accuracy": "camera named from the code",
    "agreement": "equal codes of two cameras",
    "kappa": "kappa",
    "entropy": "H of a token, bits",
}


def view_numbers(
    codes: Int[np.ndarray, "n tokens"],
    num_codes: int,
    transitions: Int[np.ndarray, " n"],
    cameras: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"],
    permutations: int,
    seed: int = 0,
) -> dict[str, Number]:
    """The numbers of `COLUMNS` for one model; empty where no transition was seen by two cameras."""
    together = seen_together(transitions, cameras)
    if not together:
        return {}
    rng = np.random.default_rng(seed)

    def by_transition(of_group: Callable[[np.ndarray], np.ndarray], shuffled: bool = False) -> np.ndarray:
        return np.concatenate([of_group(codes[_shuffled(g.rows, rng) if shuffled else g.rows]) for g in together])

    where = np.concatenate([episodes[group.rows[:, 0]] for group in together])
    most = np.concatenate(
        [np.full(len(g.rows), most_view_entropy_bits(g.rows.shape[1], codes.shape[1])) for g in together]
    )
    entropy = by_transition(view_entropy_bits)
    null = np.array([by_transition(view_entropy_bits, shuffled=True).mean() for _ in range(permutations)])
    chance = np.mean([by_transition(equal_share, shuffled=True).mean() for _ in range(permutations)])
    found = {
        "view_bits": mean_number(entropy, where, permutation(null), seed),
        "view_bits_share": mean_number(entropy / most, where, permutation(null / most.mean()), seed),
        "agreement": mean_number(by_transition(equal_share), where, Null("permutation", float(chance)), seed),
        "kappa": kappa_number(codes, together, episodes, seed),
        "entropy": jackknife_number(
            lambda rows: float(np.mean([code_entropy_bits(codes[rows][:, [t]]) for t in range(codes.shape[1])])),
            episodes,
            Null("ceiling", float(np.log2(num_codes))),
            seed,
        ),
    }
    rows = np.concatenate([group.rows.reshape(-1) for group in together])
    if len(np.unique(episodes[rows])) >= FOLDS:
        found["camera_accuracy"] = camera_probe(one_hot(codes[rows], num_codes), cameras[rows], episodes[rows], seed)
    return found


def kappa_number(
    codes: Int[np.ndarray, "n tokens"], together: list[SeenTogether], episodes: Int[np.ndarray, " n"], seed: int
) -> Number:
    """Cohen's kappa of two cameras, mean over tokens, of all groups of transitions."""
    where = np.concatenate([episodes[group.rows[:, 0]] for group in together])
    number = np.concatenate([np.full(len(group.rows), place) for place, group in enumerate(together)])
    within = np.concatenate([np.arange(len(group.rows)) for group in together])

    def statistic(chosen: np.ndarray) -> float:
        parts = [
            (view_agreement(codes[group.rows[rows]])[1], len(rows))
            for place, group in enumerate(together)
            if len(rows := within[chosen[number[chosen] == place]])
        ]
        return float(np.average([part[0] for part in parts], weights=[part[1] for part in parts]))

    return jackknife_number(statistic, where, Null("chance", 0.0), seed)


def camera_probe(
    latents: Float[np.ndarray, "n features"],
    cameras: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"],
    seed: int = 0,
) -> Number:
    """Share of the transitions whose camera a linear probe names from the latent, cross-fitted by episode.

    Chance is the share of the most frequent camera.
    """
    names, index = np.unique(cameras, return_inverse=True)
    fit = CrossFittedRidge(latents, episode_folds(episodes, FOLDS, seed)).fit(np.eye(len(names))[index])
    hits = fit.predictions.argmax(axis=1) == index
    return mean_number(hits.astype(float), episodes, Null("chance", float(np.bincount(index).max() / len(index))), seed)


def pair_numbers(
    codes: Int[np.ndarray, "n tokens"],
    transitions: Int[np.ndarray, " n"],
    cameras: Int[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"],
    names: Sequence[str],
    seed: int = 0,
) -> dict[str, Number]:
    """Kappa, mean over tokens, of every pair of cameras that saw some transition together."""
    found = {}
    for pair in combinations(range(len(names)), 2):
        rows = np.flatnonzero(np.isin(cameras, pair))
        together = seen_together(transitions[rows], cameras[rows])
        if together:
            label = " and ".join(names[camera] for camera in pair)
            found[label] = kappa_number(codes[rows], together, episodes[rows], seed)
    return found


def views_table(rows: dict[str, dict[str, Number]], cameras: int) -> Table:
    """The table of all models."""
    return Table(
        "views",
        "What the code tells of the camera",
        f"From transitions that at least 2 of {cameras} cameras saw. The encoder is deterministic, so the entropy of "
        "each token within a transition is what it tells of the camera (added up, Miller-Madow; of all tokens together "
        "it would hardly ever be less than the most possible); its null groups codes of different transitions. The "
        "camera is named by a linear probe, cross-fitted by episode; chance is the most frequent camera. Agreement "
        "means little where a token has hardly any entropy.",
        COLUMNS,
        rows,
    )


def pairs_table(by_model: dict[str, dict[str, Number]]) -> Table:
    """A row a pair of cameras, a column a model."""
    about = "Cohen's kappa of two cameras' codes of a transition, mean over tokens: 0 is chance, 1 always equal."
    return by_place("pairs", "Pairs of cameras", about, by_model)


def _shuffled(rows: Int[np.ndarray, "transitions views"], rng: np.random.Generator) -> np.ndarray:
    """Each camera's rows in an order of its own."""
    return np.stack([rng.permutation(column) for column in rows.T], axis=1)
