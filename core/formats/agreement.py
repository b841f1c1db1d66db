"""What one episode says of its source, and whether the others agree."""

import numpy as np

from core.episode import Episode
from core.formats.mapping import Mapping
from core.store_layout import ColumnInfo, StoreInfo


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
