"""Splitting the episodes of a store anew: its own, or a data set that LeRobot wrote and that holds nothing out."""

from pathlib import Path

from tqdm import tqdm

from core.duplicates import Traits, hash_of_actions, sampled, signature
from core.run import write_json
from core.splits import SplitRule, manifest_of, split_by_rule
from core.store import NoActionsError, Store, StoreError
from core.store_finish import traits_of
from core.store_layout import EPISODES, SPLITS
from core.table_reader import open_table


def split_store(path: str | Path, rule: SplitRule) -> Store:
    """Write the manifest of a split; recordings that are there twice, and known scenes, stay together.

    What was made from the store before (features, labels, runs) is refused from then on, for it saw other episodes.

    Raises:
        StoreError: the store is damaged.
    """
    store = Store.open(path)
    ids = [record.episode_id for record in store.episodes]
    splits = split_by_rule(ids, _traits(store), rule)
    write_json(store.path / SPLITS, manifest_of(ids, splits, rule.model_dump(mode="json")))
    return Store.open(path)


def written_traits(store: Store) -> list[Traits] | None:
    """What tells the recordings of a store apart, as written with it; None where LeRobot wrote it.

    Raises:
        StoreError: a table of episodes is damaged.
    """
    columns = ["length", "extra", "action_hash", *(f"signature/{view}" for view in store.info.views)]
    traits: list[Traits] = []
    for path in sorted((store.path / EPISODES).glob("*/*.parquet")):
        file = open_table(path)
        if set(columns) - set(file.schema_arrow.names):
            return None
        try:
            traits += [traits_of(row) for row in file.read(columns, use_threads=False).to_pylist()]
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is damaged: {error}") from None
    return traits


def _traits(store: Store) -> list[Traits]:
    written = written_traits(store)
    if written is not None:
        return written
    return [_looked_at(store, number) for number in tqdm(range(len(store.episodes)), unit="episode", desc="look")]


def _looked_at(store: Store, episode: int) -> Traits:
    record = store.episodes[episode]
    numbers = sampled(record.length)
    signatures = {view: signature(store.frames(episode, view, numbers)) for view in record.views}
    try:
        actions = store.actions(episode, for_audit=True)
    except NoActionsError:
        actions = None
    return Traits(record.length, signatures, hash_of_actions(actions), str(record.extra.get("scene", "")))
