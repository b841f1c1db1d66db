"""A labelled store of short episodes with two cameras, and latent labels of it, for tests of the VLA."""

from pathlib import Path

import numpy as np
from synthetic_episodes import INFO, make_episode

from core.labels import LabelsInfo, LatentLabels
from core.store import Store, finish_store, write_part

SIZE, GAP = (40, 48), 2
BOTH = ("front", "side")


def episode(number: int):
    changes = {"task": "push", "instruction": f"push the cube {number % 2}", "is_labelled": True}
    changes |= {"split": "held_out" if number >= 4 else "train", "episode_id": f"push/{number}"}
    return make_episode(number + 10, length=6 + number, **changes)


def pushes_store(path: Path) -> Store:
    """Four training and two held-out demonstrations."""
    write_part(path, 0, (episode(number) for number in range(6)), info=INFO)
    finish_store(path, INFO, 1)
    return Store.open(path)


def labels_of(store: Store, lam: str = "a lam", views: tuple[str, ...] = BOTH, num_codes: int = 4) -> LatentLabels:
    rows = [
        (record.index, frame, view)
        for record in store.episodes
        for frame in range(record.length - GAP)
        for view in range(len(views))
    ]
    episodes, frames, seen = np.array(rows).T
    codes = np.random.default_rng(0).integers(0, 4, (len(rows), 2))
    info = LabelsInfo(
        lam_fingerprint=lam,
        store_fingerprint=store.fingerprint,
        views=views,
        is_vote=False,
        gap_s=GAP / store.info.control_hz,
        num_codes=num_codes,
        num_tokens=2,
    )
    return LatentLabels(info=info, episodes=episodes, frames=frames, views=seen, codes=codes)
