"""What one episode says of its source, and whether the others agree."""

import numpy as np
from jaxtyping import Float

from core.episode import Episode
from core.formats.mapping import Mapping
from core.store_layout import ColumnInfo, StoreInfo

MOST_NOTES = 100
"""Notes on a source; more would tell nothing new."""
LARGEST_STEP = 1.5
"""Frames that one step of time is long at most; at more there is a gap."""


def add_note(notes: list[str], sentence: str) -> None:
    """Note something on a source, once, and not without end."""
    if sentence not in notes and len(notes) < MOST_NOTES:
        notes.append(sentence)


def time_gaps(times_s: Float[np.ndarray, " frames"], control_hz: float) -> str:
    """What to say of places where time was lost between two frames; empty: nowhere.

    Raises:
        ValueError: frames come at another rate, gaps aside, by half a frame over the whole episode.
    """
    steps = np.diff(times_s)
    gaps = np.flatnonzero(steps * control_hz > LARGEST_STEP)
    if len(gaps) > len(steps) / 2:  # then it is the rate
        gaps = gaps[:0]
    lasts = times_s[-1] - times_s[0] - (steps[gaps] - 1 / control_hz).sum()
    if not abs(lasts - len(steps) / control_hz) <= 0.5 / control_hz:
        rate = len(steps) / max(lasts, 1e-9)
        raise ValueError(f"timestamps are {rate:.2f} a second, meta/info.json says fps {control_hz:g}; correct it")
    if not len(gaps):
        return ""
    longest = int(gaps[steps[gaps].argmax()])
    return f"{len(gaps)} time gaps, the longest of {steps[longest]:.2f} s after frame {longest}"


def info_of(episode: Episode, names: tuple[str, ...], mapping: Mapping) -> StoreInfo:
    """What one episode says of all: `names` are those of its proprioception."""
    columns = {
        name: ColumnInfo("string" if values.dtype.kind == "O" else values.dtype.name, values.shape[1:] or (1,))
        for name, values in episode.columns.items()
    }
    return StoreInfo(
        control_hz=episode.control_hz,
        views={name: view.frames.shape[1:3] for name, view in episode.views.items()},
        action_space=episode.action_space,
        proprioception_dims=0 if episode.proprioception is None else episode.proprioception.shape[1],
        proprioception_names=names,
        robot_type=mapping.robot_type,
        columns=columns,
    )


def check_fits(one: StoreInfo, all_of_them: StoreInfo) -> None:
    """Refuse what differs from the other episodes of a source.

    Raises:
        ValueError: a view has another size, or a rate, an action space, names or columns are others.
    """
    for name, size in one.views.items():
        if size != all_of_them.views.get(name):
            raise ValueError(
                f"view {name} has (height, width) {size}, in other episodes {all_of_them.views.get(name)}; "
                f"set views.{name}.size in the mapping"
            )
    for what in ("control_hz", "action_space", "proprioception_names", "columns"):
        here, there = getattr(one, what), getattr(all_of_them, what)
        if here != there and here not in (None, ()):  # an episode may lack actions or proprioception
            raise ValueError(
                f"{what} is {here}, in other episodes {there}; name in the mapping what all have, or convert them "
                f"as separate sources"
            )


def check_finite(episode: Episode) -> None:
    """Refuse what is no finite number.

    Raises:
        ValueError: actions or proprioception have one; it names the frame.
    """
    for name, values in (("actions", episode.actions), ("proprioception", episode.proprioception)):
        if values is not None and not np.isfinite(values).all():
            frame = int(np.argmax(~np.isfinite(values).all(axis=1)))
            raise ValueError(f"{name} of frame {frame} are {values[frame].tolist()}; they must be finite numbers")
