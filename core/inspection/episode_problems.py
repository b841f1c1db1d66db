"""Problems of episodes as such: copies, splits, instructions, lengths, times, views, what is known to be missing."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from core.duplicates import Traits, same_recordings
from core.inspection.problems import Problem, count_of, problem
from core.inspection.records import Clocks
from core.run import StageError, is_done, read_manifest
from core.splits import straddling
from core.store import EpisodeRecord, Store, StoreError
from core.store_finish import SKIPPED

SHORT_S = 1.0
"""Shorter episodes hold hardly a transition."""
UNUSUAL = 5
"""How many times longer than half of the episodes one is that is worth a look."""
WRONG_RATE = 0.05
"""Part by which the rate of the times differs from the store's where one of them is wrong."""
MANY_SKIPPED = 0.1
"""Part of the source whose absence makes the store another one."""
RATES_HZ = (1.0, 200.0)
"""Between these lie the rates at which robots are recorded."""


def episode_problems(store: Store, traits: Sequence[Traits], clocks: Clocks) -> Iterator[Problem]:
    """All problems of this kind."""
    records = list(store.episodes)
    yield from _copies(records, traits)
    yield from _splits(records, store)
    yield from _instructions(records)
    yield from _lengths(records, store.info.control_hz)
    yield from _times(clocks, store.info.control_hz)
    yield from _rate(clocks, store.info.control_hz)
    yield from _views(records, store)
    yield from _left_out(store)


def _copies(records: Sequence[EpisodeRecord], traits: Sequence[Traits]) -> Iterator[Problem]:
    groups = same_recordings(traits)
    if groups:
        first = " = ".join(records[number].episode_id for number in groups[0][:3])
        yield problem(
            "warning",
            "duplicates",
            f"The store holds {count_of(len(groups), 'recording')} more than once, for instance {first}: the same "
            "frames or the same actions.",
            "Leave out the copies in the source and convert again; until then they count twice in training.",
            [number for group in groups for number in group],
        )
    torn = straddling(traits, [record.split for record in records])
    if torn:
        yield problem(
            "fatal",
            "held_out_is_trained_on",
            f"For {count_of(len(torn), 'held-out episode')}, the same recording or scene is also trained on: what is "
            "measured on them says nothing about new episodes.",
            "Split again: scripts/split_episodes.py keeps copies and scenes together.",
            torn,
        )


def _splits(records: Sequence[EpisodeRecord], store: Store) -> Iterator[Problem]:
    held_out = [record.index for record in records if record.split == "held_out"]
    if not held_out:
        yield problem(
            "fatal",
            "nothing_held_out",
            f"No episode is held out ({len(records)} to train on): a latent action model cannot be trained without, "
            "and nothing shows whether what was learned holds for new episodes.",
            f"Hold some out: scripts/split_episodes.py {store.path}, or convert again with --held-out 0.1.",
        )
    elif len(held_out) == len(records):
        yield problem(
            "fatal", "nothing_to_train_on", "Every episode is held out.", "Split again: scripts/split_episodes.py."
        )
    elif len(held_out) > len(records) / 2:
        yield problem(
            "warning",
            "most_held_out",
            f"{len(held_out)} of {len(records)} episodes are held out, more than are trained on.",
            "Split again if that is not meant: scripts/split_episodes.py.",
        )


def _instructions(records: Sequence[EpisodeRecord]) -> Iterator[Problem]:
    silent = [record.index for record in records if not record.instruction.strip()]
    if silent:
        yield problem(
            "warning",
            "no_instruction",
            f"{_of(silent, records)} without an instruction: a policy cannot learn what they are for "
            "(a latent action model does not need any).",
            "Name the source's key in the mapping (instruction), or give default_instruction, and convert again.",
            silent,
        )


def _lengths(records: Sequence[EpisodeRecord], control_hz: float) -> Iterator[Problem]:
    lengths = np.array([record.length for record in records])
    short = np.flatnonzero(lengths < SHORT_S * control_hz)
    if len(short):
        yield problem(
            "warning",
            "short_episodes",
            f"{count_of(len(short), 'episode')} of less than {SHORT_S:g} s, the shortest of "
            f"{count_of(int(lengths.min()), 'frame')}.",
            "Look whether recordings were cut off; a transition longer than the episode leaves it out of training.",
            short,
        )
    half = float(np.median(lengths))
    long = np.flatnonzero(lengths > UNUSUAL * half)
    if len(long):
        yield problem(
            "note",
            "long_episodes",
            f"{count_of(len(long), 'episode')} more than {UNUSUAL} times as long as half of the others "
            f"({half / control_hz:.1f} s), the longest of {lengths.max() / control_hz:.1f} s.",
            "Look whether the recording went on after the task was done.",
            long,
        )


def _times(clocks: Clocks, control_hz: float) -> Iterator[Problem]:
    timed = {place: clock for place, clock in clocks.found.items() if clock.steps and clock.seconds > 0}
    off = [place for place, clock in timed.items() if not clock.is_at(control_hz, WRONG_RATE)]
    at_another = set(off)  # a lower rate would be a gap at every step
    odd = [place for place, clock in clocks.found.items() if clock.gaps and place not in at_another]
    hz = float(np.median([timed[place].steps / timed[place].seconds for place in off])) if off else control_hz
    of_all = f"{len(off)} of {count_of(len(clocks.found), 'episode')}"
    if len(off) > len(clocks.found) / 2:
        yield problem(
            "fatal",
            "wrong_rate",
            f"The store says {control_hz:g} frames a second, the times of its frames {hz:.3g} ({of_all}): everything "
            "that is given in seconds would be wrong.",
            "Correct the rate: fps in meta/info.json, or control_hz in the mapping.",
            off,
        )
        return
    if off:
        yield problem(
            "warning",
            "mixed_rates",
            f"The times of {of_all} are not those of {control_hz:g} frames a second, as the store says, but of "
            f"{hz:.3g} (their median): in these, everything that is given in seconds would be wrong.",
            "Make a store of the episodes of each rate, or leave these out.",
            off,
        )
    if odd:
        gaps = sum(clocks.found[place].gaps for place in odd)
        yield problem(
            "warning",
            "time_gaps",
            f"{count_of(gaps, 'place')} where time goes back, stands still, or a frame or more is missing: there one "
            "step is not one step of the robot.",
            "Leave these episodes out, or cut them at the gaps.",
            odd,
        )


def _rate(clocks: Clocks, control_hz: float) -> Iterator[Problem]:
    if not RATES_HZ[0] <= control_hz <= RATES_HZ[1]:
        yield problem(
            "warning",
            "unusual_rate",
            f"The rate of {control_hz:g} Hz is none at which robots are usually recorded ({RATES_HZ[0]:g} to "
            f"{RATES_HZ[1]:g} Hz).",
            "Check control_hz in the mapping.",
        )
    if clocks.unreadable:
        yield problem(
            "fatal",
            "unreadable_times",
            f"{count_of(len(clocks.unreadable), 'file')} cannot be read, the first: {clocks.unreadable[0]}",
            "Restore the file, or write the store again.",
        )


def _views(records: Sequence[EpisodeRecord], store: Store) -> Iterator[Problem]:
    for view in store.info.views:
        without = [record.index for record in records if view not in record.views]
        if len(without) == len(records):
            yield problem(
                "fatal",
                "absent_view",
                f"No episode has the view {view}, which the store promises.",
                "Correct the view's source in the mapping, or leave the view out.",
            )
        elif without:
            yield problem(
                "warning" if len(without) > len(records) / 2 else "note",
                "missing_view",
                f"{_of(without, records)} without the view {view}.",
                "Nothing to do if that is how it was recorded: training takes what is there.",
                without,
                view,
            )


def _left_out(store: Store) -> Iterator[Problem]:
    for note in store.notes:
        yield problem("warning", "promised_and_not_there", f"{note}.", "Restore what is missing if it should be there.")
    for note in _source_notes(store):
        yield problem(
            "note", "source_note", f"From the conversion: {note}.", "See whether the mapping should say more."
        )
    file = store.path / SKIPPED
    if not file.is_file():
        return
    try:
        skipped = json.loads(file.read_text())
        reason = str(skipped[0]["reason"]) if skipped else ""
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{file} is damaged: {error}; restore it, or write the store again") from None
    if skipped:
        of = len(skipped) + len(store.episodes)
        yield problem(
            "warning" if len(skipped) > MANY_SKIPPED * of else "note",
            "skipped",
            f"The conversion left out {len(skipped)} of {of} episodes, the first because: {reason}",
            f"All reasons are in {SKIPPED}.",
        )


def _source_notes(store: Store) -> list[str]:
    """What the conversion said of its source; none where the store was not converted."""
    if not is_done(store.path):
        return []
    try:
        summary = read_manifest(store.path)["summary"]
        notes = summary.get("notes", [])
    except (StageError, KeyError, AttributeError, OSError, ValueError) as error:
        raise StoreError(f"{store.path}/manifest.json is damaged: {error}") from None
    return [str(note) for note in notes]


def _of(some: Sequence[int], records: Sequence[EpisodeRecord]) -> str:
    return f"{len(some)} of {count_of(len(records), 'episode')}"
