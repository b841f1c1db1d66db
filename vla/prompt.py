"""The words around an instruction, the same in pretraining, fine-tuning and acting."""

from collections.abc import Iterable, Sequence

from core.store import EpisodeRecord
from vla.tokens import latent_name

LONGEST = 1000
"""Characters of an instruction."""


class PromptError(ValueError):
    """An instruction that is empty or far too long."""


def prompt(instruction: str, history: Sequence[Sequence[int]] = ()) -> str:
    """The published prompt (OpenVLA's), with the instruction in lower case and without a final full stop.

    Args:
        instruction: what is to be done.
        history: code indices of earlier latent actions, oldest first; they stand before the question.

    Raises:
        PromptError: the instruction is empty, or longer than `LONGEST` characters.
    """
    text = instruction.strip().rstrip(".").lower()
    if not text:
        raise PromptError("the instruction is empty; say what the robot is to do")
    if len(text) > LONGEST:
        raise PromptError(
            f"the instruction has {len(text)} characters, at most {LONGEST} are read; it begins {text[:60]!r}"
        )
    past = "".join(latent_name(code) for action in history for code in action)
    return f"{f'So far: {past} ' if past else ''}In: What action should the robot take to {text}?\nOut:"


def prompts_of(records: Iterable[EpisodeRecord]) -> list[str]:
    """Prompts of episodes.

    Raises:
        PromptError: one has no usable instruction; the message names it.
    """
    found = []
    for record in records:
        try:
            found.append(prompt(record.instruction))
        except PromptError as error:
            raise PromptError(f"episode {record.episode_id}: {error}") from None
    return found
