"""How much latents tell about the action: information with its null, entropy, and decoding."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lam.audit.estimators.by_name import ESTIMATORS, PRIMARY, estimate
from lam.audit.estimators.interface import Sample as Pairs
from lam.audit.mutual_information import (
    code_entropy_bits,
    code_perplexity,
    linear_gaussian_bits,
    shuffled_by_episode,
)
from lam.audit.probes import one_hot
from lam.audit.sections.decoding import decoding_errors
from lam.audit.sections.numbers import Null, Number, Table, jackknife_number, mean_number, permutation


class Latents(NamedTuple):
    """What one row of the table says of each transition: codes, or numbers where there are none."""

    values: Float[np.ndarray, "n features"]
    """Numbers; indicator columns of codes."""
    codes: Int[np.ndarray, "n tokens"] | None = None
    num_codes: int = 0


def of_codes(codes: Int[np.ndarray, "n tokens"], num_codes: int) -> Latents:
    """Codes as latents."""
    return Latents(one_hot(codes, num_codes), codes, num_codes)


def primary_bits(
    latents: Latents,
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    permutations: int,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> Number:
    """I(Z; A) by the primary estimator, with the same on shuffled actions.

    Raises:
        ValueError: too few episodes.
    """
    rng = np.random.default_rng(seed)
    codes = latents.codes
    pairs = Pairs(
        actions=actions, codes=codes, latents=None if codes is not None else latents.values, episodes=episodes
    )
    if len(actions) > (most := ESTIMATORS[PRIMARY].max_samples):
        pairs = pairs.take(np.sort(rng.choice(len(actions), most, replace=False)))
    found = estimate(PRIMARY, pairs, seed=seed)
    tick()
    null = []
    for _ in range(permutations):
        order = shuffled_by_episode(pairs.episodes, rng)
        null.append(estimate(PRIMARY, pairs.with_actions(pairs.actions[order]), seed=seed).bits)
        tick()
    assert found.contributions is not None
    return mean_number(found.contributions, pairs.episodes, permutation(null), seed)


def linear_bits(
    latents: Latents,
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    permutations: int,
    seed: int = 0,
) -> Number:
    """I(Z; A) by the linear Gaussian bound."""
    found = linear_gaussian_bits(latents.values, actions, episodes, permutations=permutations, seed=seed)
    null = Null("permutation", found.null_mean, found.null_p95)
    return Number(found.bits, found.ci95, null, found.n, found.episodes)


def code_numbers(latents: Latents, episodes: Int[np.ndarray, " n"], seed: int = 0) -> dict[str, Number]:
    """Joint entropy of the codes and mean perplexity of a token, beside the most they could be."""
    assert latents.codes is not None
    codes, num_codes = latents.codes, latents.num_codes
    most = min(codes.shape[1] * np.log2(num_codes), np.log2(len(codes)))
    return {
        "entropy": jackknife_number(
            lambda rows: code_entropy_bits(codes[rows]), episodes, Null("ceiling", float(most)), seed
        ),
        "perplexity": jackknife_number(
            lambda rows: float(np.mean(code_perplexity(codes[rows], num_codes))),
            episodes,
            Null("ceiling", float(num_codes)),
            seed,
        ),
    }


def action_numbers(
    latents: Latents,
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    names: Sequence[str],
    permutations: tuple[int, int],
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Number]:
    """Everything the section says of one row: `bits`, `linear_bits`, `entropy`, `perplexity`, `linear`, `mlp`, ...

    Args:
        latents: of each transition.
        actions: A_t.
        episodes: the independent units.
        names: of the actions' dimensions.
        permutations: behind the nulls of the primary estimator and of the linear bound.
        seed: of folds and shuffles.
        tick: called after every estimate of the primary estimator.
    """
    primary, cheap = permutations
    found = {"bits": primary_bits(latents, actions, episodes, primary, seed, tick)}
    found["linear_bits"] = linear_bits(latents, actions, episodes, cheap, seed)
    if latents.codes is not None:
        found |= code_numbers(latents, episodes, seed)
    return found | decoding_errors(latents.values, actions, episodes, names, seed)


def tables(rows: dict[str, dict[str, Number]], names: Sequence[str]) -> list[Table]:
    """Information, and decoding by dimension."""
    information = Table(
        "information",
        "Information about the action",
        f"Mutual information in bits between latent and action: by the primary estimator ({PRIMARY}), a lower bound "
        "cross-fitted by episode, and by a linear Gaussian bound. The null is the same estimate on actions shuffled by "
        "episode; the entropy of the code is the most that it could tell.",
        {
            "bits": "I(Z; A), bits",
            "linear_bits": "linear Gaussian, bits",
            "entropy": "H(Z), bits",
            "perplexity": "perplexity of a token",
        },
        {name: {key: row[key] for key in ("bits", "linear_bits", "entropy", "perplexity") if key in row}
         for name, row in rows.items()},
    )  # fmt: skip
    kinds = {"linear": "linear", "mlp": "MLP"}
    columns = {kind: word for kind, word in kinds.items()}
    columns |= {f"{kind} {name}": f"{word}, {name}" for kind, word in kinds.items() for name in names}
    decoding = Table(
        "decoding",
        "Decoding the action",
        "Normalised squared error of predicting the action, cross-fitted by episode: 1 is no better than the mean, 0 "
        "is exact. Linear: ridge regression; MLP: a small network.",
        columns,
        {name: {key: row[key] for key in columns if key in row} for name, row in rows.items()},
    )
    return [information, decoding]
