"""What a reader of a format offers: a cheap list of its episodes, and each of them on its own.

A new format is one file with a class of this shape and one line in `core/formats/by_name.py`. Episodes are read by key,
so that several processes can share the work and a killed conversion goes on where it stopped.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from core.episode import Episode
from core.store_layout import StoreInfo

DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
    OverflowError,
)
"""What libraries raise that read a damaged file."""


class SourceError(ValueError):
    """A source of which nothing can be read: a missing file, another format, a mapping that does not fit."""


class EpisodeError(ValueError):
    """One episode that cannot be read; the message names its file and the episode."""

    def __init__(self, file: Path | str, key: str, problem: str) -> None:
        super().__init__(f"{file}, episode {key}: {problem}")


@contextmanager
def naming_episode(file: Path, key: str, damage: tuple[type[Exception], ...] = DAMAGE) -> Iterator[None]:
    """A block in which what goes wrong with a damaged file becomes an EpisodeError."""
    try:
        yield
    except (EpisodeError, SourceError):
        raise
    except damage as error:
        problem = str(error).strip("'\"")[:500] or type(error).__name__
        hint = "" if type(error) is ValueError else f" ({type(error).__name__}: the file is damaged, copy it again)"
        raise EpisodeError(file, key, problem + hint) from None


@runtime_checkable
class Reader(Protocol):
    """An opened source."""

    info: StoreInfo
    """What holds for all of its episodes."""
    keys: Sequence[str]
    """The episodes, in an order that does not change, found without decoding any of them."""
    notes: Sequence[str]
    """What a person should know of the source: what it promises and does not hold, what was left out."""

    def read(self, key: str) -> Episode:
        """One episode; frames are `LazyFrames` wherever the format allows it.

        Raises:
            EpisodeError: it is damaged. So does looking at frames that turn out to be.
        """


def episodes_of(reader: Reader) -> Iterator[Episode]:
    """All episodes, one at a time."""
    return (reader.read(key) for key in reader.keys)
