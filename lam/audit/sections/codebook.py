"""How codes are used: how many, how evenly, and how much tokens repeat each other."""

from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Int

from lam.audit.estimators.discrete import miller_madow_entropy
from lam.audit.mutual_information import code_perplexity
from lam.audit.sections.numbers import Null, Number, Table, jackknife_number, permutation


def token_numbers(
    codes: Int[np.ndarray, "n tokens"], num_codes: int, episodes: Int[np.ndarray, " n"], seed: int = 0
) -> dict[str, Number]:
    """Perplexity and share of used codes, token by token."""
    found = {}
    for token in range(codes.shape[1]):
        one = codes[:, [token]]
        found[f"perplexity {token}"] = jackknife_number(
            lambda rows, one=one: float(code_perplexity(one[rows], num_codes)[0]),
            episodes,
            Null("ceiling", float(num_codes)),
            seed,
        )
        found[f"used {token}"] = jackknife_number(
            lambda rows, one=one: len(np.unique(one[rows])) / num_codes, episodes, Null("ceiling", 1.0), seed
        )
    return found


def redundancy_numbers(
    codes: Int[np.ndarray, "n tokens"], episodes: Int[np.ndarray, " n"], permutations: int, seed: int = 0
) -> dict[str, Number]:
    """Mutual information of each pair of tokens in bits (Miller-Madow); null: one token shuffled."""
    rng, found = np.random.default_rng(seed), {}
    for one, other in combinations(range(codes.shape[1]), 2):
        pair = codes[:, [one, other]]
        null = [shared_bits(np.stack([pair[:, 0], rng.permutation(pair[:, 1])], axis=1)) for _ in range(permutations)]
        found[f"{one} and {other}"] = jackknife_number(
            lambda rows, pair=pair: shared_bits(pair[rows]), episodes, permutation(null), seed
        )
    return found


def shared_bits(pair: Int[np.ndarray, "n 2"]) -> float:
    """H(first) + H(second) - H(both), each with the Miller-Madow correction."""
    entropies = []
    for columns in (pair[:, [0]], pair[:, [1]], pair):
        counts = np.unique(columns, axis=0, return_counts=True)[1]
        entropies.append(miller_madow_entropy(counts, len(counts)))
    return entropies[0] + entropies[1] - entropies[2]


def usage(codes: Int[np.ndarray, "n tokens"], num_codes: int) -> dict[str, Any]:
    """How often each code occurs, by token, and how many never do."""
    counts = np.stack([np.bincount(token, minlength=num_codes) for token in codes.T])
    return {"histogram": counts.tolist(), "dead_codes": (counts == 0).sum(axis=1).tolist(), "n": len(codes)}


def tokens_table(rows: dict[str, dict[str, Number]], tokens: int) -> Table:
    """Perplexity and used share of all models."""
    columns = {f"perplexity {token}": f"perplexity, token {token}" for token in range(tokens)}
    columns |= {f"used {token}": f"codes in use, token {token}" for token in range(tokens)}
    about = "Perplexity: codes that a token uses in effect. A code is in use where some held-out transition has it."
    return Table("tokens", "Use of the codes", about, columns, rows)


def redundancy_table(rows: dict[str, dict[str, Number]]) -> Table:
    """Shared bits of all models."""
    pairs = list(dict.fromkeys(key for row in rows.values() for key in row))
    about = (
        "Mutual information of pairs of tokens in bits (Miller-Madow); what two tokens share is counted once in H(Z). "
        "The null shuffles one of the two."
    )
    return Table("redundancy", "What tokens repeat of each other", about, {p: f"tokens {p}" for p in pairs}, rows)
