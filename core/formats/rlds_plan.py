"""What of an RLDS data set becomes what: a mapping held against the features that the data set describes."""

from typing import NamedTuple

from core.formats.interface import SourceError
from core.formats.mapping import Mapping, Numbers, ViewMapping
from core.formats.tfds_features import Features, Leaf

ACTION, STATE, OBSERVATION = "action", "observation/state", "observation/"
INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction", "observation/instruction")
"""Where instructions usually are; the last as numbers of letters (language_table)."""


class Plan(NamedTuple):
    """What is read of each step; every source is described and of the right kind."""

    views: dict[str, ViewMapping]
    actions: tuple[Numbers, ...]
    """Empty: there are none, or the mapping leaves them out."""
    proprioception: tuple[Numbers, ...]
    instruction: str
    """Empty: there is none."""
    notes: list[str]


def plan(mapping: Mapping, features: Features) -> Plan:
    """What a mapping takes from such a data set.

    Raises:
        SourceError: it names what is not there or of another kind.
    """
    notes: list[str] = []
    views = mapping.views or _found_views(features, notes)
    for name, view in views.items():
        _check_pictures(f"views.{name}", view.source, features)
    actions = _pieces("actions", mapping.actions, ACTION, features, notes)
    proprioception = _pieces("proprioception", mapping.proprioception, STATE, features, notes)
    instruction = mapping.instruction or next((name for name in INSTRUCTIONS if name in features.steps), "")
    if not instruction:
        notes.append(f"there are no instructions: every episode has {mapping.default_instruction!r}")
    for key, source in (("instruction", instruction), ("scene", mapping.scene)):
        if source:
            _check_told(key, source, features)
    for source in mapping.columns:
        leaf = _leaf("columns", source, features)
        if leaf.kind not in ("text", "number") or not leaf.size:
            raise SourceError(f"columns: {source} holds {leaf.described()}, which a store cannot hold")
    return Plan(views, actions, proprioception, instruction, notes)


def names_of(piece: Numbers, features: Features) -> list[str]:
    """One name for each number of a piece: observation.state_0, ..."""
    numbers = piece.taken(features.steps[piece.source].size)
    return [f"{piece.source.replace('/', '.')}_{number}" for number in numbers]


def _found_views(features: Features, notes: list[str]) -> dict[str, ViewMapping]:
    """All RGB pictures of the observation; where it has none, of the step."""
    pictures = {path: leaf for path, leaf in features.steps.items() if leaf.kind == "image"}
    colour = {path for path, leaf in pictures.items() if leaf.dtype == "uint8" and leaf.shape[2:] in ((3,), ())}
    if left_out := sorted(set(pictures) - colour):
        notes.append(f"pictures that are not RGB are left out: {', '.join(left_out)}")
    found = [path for path in sorted(colour) if path.startswith(OBSERVATION)] or sorted(colour)
    if not found:
        raise SourceError(
            f"no RGB pictures are described; steps hold {sorted(features.steps)}: set the mapping's views"
        )
    return {path.removeprefix(OBSERVATION).replace("/", "."): ViewMapping(source=path) for path in found}


def _check_pictures(key: str, source: str, features: Features) -> None:
    leaf = _leaf(key, source, features)
    if leaf.kind == "image":
        fits = leaf.shape[2:] in ((), (1,), (3,))
    else:
        fits = leaf.kind == "number" and len(leaf.shape) == 3 and leaf.shape[2] == 3 and leaf.size > 0
    if not fits or leaf.dtype != "uint8":
        raise SourceError(
            f"the mapping's {key} names {source}, which holds {leaf.described()}, no RGB pictures of uint8"
        )


def _pieces(
    key: str, pieces: tuple[Numbers, ...] | None, usual: str, features: Features, notes: list[str]
) -> tuple[Numbers, ...]:
    """Those of the mapping, else what RLDS calls so if it is there; each is numbers of every step."""
    if pieces is None:
        if not any(f"{path}/".startswith(f"{usual}/") for path in features.steps):
            notes.append(f"steps hold no {usual}, so episodes have no {key}")
            return ()
        pieces = (Numbers(source=usual),)
    for piece in pieces:
        leaf = _leaf(key, piece.source, features)
        if leaf.kind != "number" or not leaf.size:
            raise SourceError(
                f"the mapping's {key} names {piece.source}, which holds {leaf.described()}, not numbers of a known size"
            )
        try:
            piece.taken(leaf.size)
        except ValueError as error:
            raise SourceError(f"the mapping's {key}: {error}") from None
    return pieces


def _check_told(key: str, source: str, features: Features) -> None:
    """Instructions and scenes may belong to the episode, too; instructions may be numbers of letters."""
    leaf = features.episode.get(source) or _leaf(key, source, features)
    is_one = leaf.kind in ("text", "number") and leaf.size == 1
    is_letters = leaf.kind == "number" and len(leaf.shape) == 1 and leaf.size > 0 and leaf.dtype.startswith(("u", "i"))
    if not is_one and not (is_letters and key == "instruction"):
        raise SourceError(f"the mapping's {key} names {source}, which holds {leaf.described()}, not one text a step")


def _leaf(key: str, source: str, features: Features) -> Leaf:
    if source in features.steps:
        return features.steps[source]
    inside = sorted(path for path in features.steps if path.startswith(f"{source}/"))
    hint = f"it is a group, name one of {inside}" if inside else f"steps hold {sorted(features.steps)}"
    where = f"the mapping's {key}" if inside or key != "actions" else f"the mapping's {key} (or [] for none)"
    raise SourceError(f"{where} names {source}, which features.json does not describe as values: {hint}")
