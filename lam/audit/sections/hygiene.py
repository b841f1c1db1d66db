"""Whether held-out episodes are held out, and what a split by random frames would have reported."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from core.duplicates import same_recordings
from core.splits import straddling
from core.splitting import written_traits
from core.store import Store
from lam.audit.mutual_information import log_ratio_bits
from lam.audit.probes import linear_probe
from lam.audit.sections.numbers import Null, Number, Table, mean_number

COLUMNS = {
    "bits": "bits, folds by episode",
    "bits_inflation": "added by folds of random frames",
    "nmse": "NMSE, folds by episode",
    "nmse_inflation": "change by folds of random frames",
}


class Overlap(NamedTuple):
    """Held-out episodes that training saw too."""

    shared_ids: list[str]
    """Known by the same name."""
    same_recordings: list[str]
    """Another name, but the same recording or the same scene; empty also where the store does not tell."""
    is_compared: bool
    """Whether recordings could be compared."""
    held_out: int
    trained: int


def overlap(audited: Store, trained: Store) -> Overlap:
    """Held-out episodes of one store among the training episodes of another, or of the same."""
    held_out = [record for record in audited.episodes if record.split == "held_out"]
    known = [record for record in trained.episodes if record.split == "train"]
    names = {record.episode_id for record in known}
    shared = [record.episode_id for record in held_out if record.episode_id in names]
    is_same = audited.fingerprint == trained.fingerprint
    traits = [written_traits(audited), written_traits(trained) if not is_same else []]
    if traits[0] is None or traits[1] is None:
        return Overlap(shared, [], False, len(held_out), len(known))
    if is_same:
        found = straddling(traits[0], [record.split for record in audited.episodes])
        twice = [audited.episodes[number].episode_id for number in found]
    else:
        both = [traits[0][r.index] for r in held_out] + [traits[1][r.index] for r in known]
        groups = [group for group in same_recordings(both) if max(group) >= len(held_out)]
        twice = [held_out[place].episode_id for group in groups for place in group if place < len(held_out)]
    return Overlap(shared, twice, True, len(held_out), len(known))


def inflation_numbers(
    latents: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n dims"],
    episodes: Int[np.ndarray, " n"],
    seed: int = 0,
) -> dict[str, Number]:
    """Linear Gaussian bits and NMSE with folds by episode, and what folds of random rows add to them."""
    rows = np.arange(len(actions))
    ratios = {name: log_ratio_bits(latents, actions, groups, seed=seed) for name, groups in _folds(episodes, rows)}
    probes = {name: linear_probe(latents, actions, groups, seed=seed) for name, groups in _folds(episodes, rows)}
    varies = np.isfinite(probes["episode"].nmse_by_dim)
    errors = {name: ((actions - probe.predictions) ** 2)[:, varies] for name, probe in probes.items()}
    spread = np.var(actions[:, varies], axis=0)
    relative = {name: (error / spread).mean(axis=1) for name, error in errors.items()}
    nothing = Null("no inflation", 0.0)
    return {
        "bits": mean_number(ratios["episode"], episodes, Null("chance", 0.0), seed),
        "bits_inflation": mean_number(ratios["frame"] - ratios["episode"], episodes, nothing, seed),
        "nmse": mean_number(relative["episode"], episodes, Null("chance", 1.0), seed),
        "nmse_inflation": mean_number(relative["frame"] - relative["episode"], episodes, nothing, seed),
    }


def inflation_table(rows: dict[str, dict[str, Number]]) -> Table:
    """The table of all rows."""
    return Table(
        "inflation",
        "What a split by random frames would report",
        "Neighbouring frames are near copies, so folds of random frames let a probe remember. Linear Gaussian bits and "
        "linear NMSE (relative to the variance of actions); more bits or less error with random frames is inflation.",
        COLUMNS,
        rows,
    )


def _folds(episodes: np.ndarray, rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("episode", episodes), ("frame", rows)]
