"""Splits: which episodes are trained on and which are held out, as a manifest beside the store's tables.

    {"rule": {...}, "splits": {"train": {"sha256": ..., "episodes": [ids]}, "held_out": {...}}}

Recordings that are there twice, and scenes where they are known, are never torn apart.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from core.config import Config
from core.duplicates import Traits, kept_together

NAMES = ("train", "held_out")


class SplitError(ValueError):
    """A manifest of splits that is damaged or does not fit its store."""


class SplitRule(Config):
    """How episodes are split."""

    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the episodes that are held out."""
    seed: int = 0
    """Decides which."""


def split_by_rule(ids: Sequence[str], traits: Sequence[Traits], rule: SplitRule) -> list[str]:
    """The split of each episode: whole groups are held out, in a seeded order, until their share is reached.

    Where not even the smallest group fits into the share, it is held out all the same, unless it is the only one. The
    order of the episodes decides nothing.
    """
    groups = kept_together(traits)
    drawn = [hashlib.sha256(f"{rule.seed} {min(ids[e] for e in group)}".encode()).hexdigest() for group in groups]
    splits = ["train"] * len(traits)
    left = round(rule.held_out * len(traits))
    if rule.held_out and len(groups) > 1:
        left = max(left, min(len(group) for group in groups))
    for _, group in sorted(zip(drawn, groups, strict=True)):
        if len(group) <= left:
            left -= len(group)
            for episode in group:
                splits[episode] = "held_out"
    return splits


def splits_of_ranges(described: Mapping[str, Any], episodes: Sequence[int]) -> list[str]:
    """The split of each episode by its number, as LeRobot's `info.json` has it: {"train": "0:90", "test": "90:100"}."""
    splits = ["train"] * len(episodes)
    ranges = described.get("splits")
    for name, stretch in ranges.items() if isinstance(ranges, dict) else ():
        first, _, last = str(stretch).partition(":")
        if name != "train" and first.isdecimal() and last.isdecimal():
            for place, episode in enumerate(episodes):
                splits[place] = "held_out" if int(first) <= episode < int(last) else splits[place]
    return splits


def straddling(traits: Sequence[Traits], splits: Sequence[str]) -> list[int]:
    """Held-out episodes that are the same recording, or of the same scene, as one that is trained on."""
    groups = [group for group in kept_together(traits) if len({splits[episode] for episode in group}) > 1]
    return [episode for group in groups for episode in group if splits[episode] == "held_out"]


def manifest_of(ids: Sequence[str], splits: Sequence[str], rule: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's content."""
    members = {name: [i for i, split in zip(ids, splits, strict=True) if split == name] for name in NAMES}
    return {
        "rule": dict(rule),
        "splits": {name: {"sha256": hash_of(found), "episodes": found} for name, found in members.items()},
    }


def hash_of(ids: Sequence[str]) -> str:
    """Identifies a set of episodes, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def read_manifest(file: Path, ids: Sequence[str]) -> list[str]:
    """The split of each of the episodes `ids`.

    Raises:
        SplitError: the manifest is damaged, names an episode twice or not at all, or one that is not there.
    """
    try:
        splits = json.loads(file.read_text())["splits"]
        found = [(name, splits[name]["episodes"], splits[name]["sha256"]) for name in NAMES]
        damaged = [name for name, episodes, sha256 in found if hash_of(episodes) != sha256]
        by_id = {episode: name for name, episodes, _ in found for episode in episodes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SplitError(
            f"{file} is damaged ({type(error).__name__}: {error}); run scripts/split_episodes.py"
        ) from None
    listed = sum(len(episodes) for _, episodes, _ in found)
    if damaged or listed != len(by_id) or by_id.keys() != set(ids):
        problem = f"the hash of {damaged} is wrong" if damaged else f"{listed} ids for {len(ids)} episodes"
        raise SplitError(f"{file} does not fit its episodes: {problem}; run scripts/split_episodes.py again")
    return [by_id[name] for name in ids]
