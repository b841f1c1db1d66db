"""Splitting the episodes of a store anew: its own, or a data set that LeRobot wrote and that holds nothing out."""

from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from core.duplicates import Traits, hash_of_actions, sampled, signature
from core.run import write_json
from core.splits import SplitRule, manifest_of, split_by_rule
from core.store import Store, StoreError
from core.store_finish import traits_of
from core.store_layout import EPISODES, SPLITS


def split_store(path: str | Path, rule: SplitRule) -> Store:
    """Write the manifest of a split; recordings that are there twice, and known scenes, stay together.

    What was made from the store before (features, labels, runs) is refused from then on, for it saw other episodes.

    Raises:
        StoreError: the store is damaged.
    """
    store = Store.open(path)
    splits = split_by_rule(traits_of_store(store), rule)
    ids = [record.episode_id for record in store.episodes]
    write_json(store.path / SPLITS, manifest_of(ids, splits, rule.model_dump(mode="json")))
    return Store.open(path)


def traits_of_store(store: Store) -> list[Traits]:
    """What tells the recordings of a store apart, from its tables, or from a few frames of each episode."""
    files = sorted((store.path / EPISODES).glob("*/*.parquet"))
    columns = ["length", "extra", "action_hash", *(f"signature/{view}" for view in store.info.views)]
    if all(set(columns) <= set(pq.read_schema(file).names) for file in files):
        return [traits_of(row) for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
    return [_looked_at(store, number) for number in tqdm(range(len(store.episodes)), unit="episode", desc="look")]


def _looked_at(store: Store, episode: int) -> Traits:
    record = store.episodes[episode]
    numbers = sampled(record.length)
    signatures = {view: signature(store.frames(episode, view, numbers)) for view in record.views}
    try:
        actions = store.actions(episode, for_audit=True)
    except StoreError:
        actions = None
    return Traits(record.length, signatures, hash_of_actions(actions), str(record.extra.get("scene", "")))
