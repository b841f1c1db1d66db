"""`fast`: FAST tokens: frequencies of a chunk, rounded and compressed into words (Pertsch et al., arXiv 2501.09747).

A chunk's discrete cosine transform is scaled, rounded and written as text from the lowest frequency up, all dimensions
of a frequency together; byte-pair encoding makes words of it: those of a published tokenizer, or ones that are learned
from the demonstrations. Published words are of bytes, so that one may begin or end within a letter.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, trainers
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from core.config import Config
from core.run import write_json
from vla.checkpoint import local
from vla.heads.interface import HeadSizes, TokenHead, Words

OWN_FIRST_LETTER = 0x4E00
"""Own words are spelt in letters from here on, one for each whole number, so that none is split or changed as text."""
PUBLISHED_LETTERS = 0x800
"""Published words are spelt in letters from 0 to here, of one or two bytes in UTF-8."""
LETTERS_IN_BYTES = re.compile(rb"[\x80-\xbf]?(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf])*[\xc2-\xdf]?")
"""Such letters, the first of which may lack its first byte, and the last its second."""


class FastError(ValueError):
    """A tokenizer of actions that cannot be used."""


class FastConfig(Config):
    """Which words."""

    words: int = 1024
    """Size of the vocabulary that is learned; at least one word for every whole number that occurs."""
    scale: float = 10.0
    """Factor on frequencies before they are rounded; larger is finer and longer."""
    path: str = ""
    """Folder or hub name of a published tokenizer (physical-intelligence/fast), whose words and scale are used instead;
    its code is not run."""


class Spelling(NamedTuple):
    """What a word spells."""

    begun: int
    """Letters that begin in it."""
    starts_inside: bool
    """Whether it starts with the rest of a letter."""
    ends_inside: bool
    """Whether its last letter goes on in the next word."""


NOTHING, NEVER = Spelling(0, False, False), Spelling(10**9, False, False)


class FastHead(TokenHead):
    """Complete when the words spell exactly one chunk; nothing else can be written."""

    def __init__(self, config: FastConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config, self.shape = config, (sizes.horizon, sizes.action_dims)
        self.scale, self.least, self.letters, self.first = config.scale, 0, 0, OWN_FIRST_LETTER
        self.tokenizer, self.names = Tokenizer(models.BPE()), []

    def fit(self, chunks: Float[np.ndarray, "samples horizon dims"]) -> None:
        """Learn words from normalised chunks, or read published ones and see that they can spell these.

        Raises:
            FastError: there are too few words for the numbers that occur, or no such tokenizer.
        """
        if self.config.path:
            self._read_published(local(self.config.path))
            self._require_spelt(chunks)
            return
        numbers = self._numbers(chunks)
        self.least, self.letters = int(numbers.min()), int(numbers.max() - numbers.min()) + 1
        alphabet = [chr(self.first + number) for number in range(self.letters)]
        if self.letters > self.config.words:
            raise FastError(
                f"{self.letters} whole numbers occur, and head.options.words is {self.config.words}; raise it, or "
                f"lower head.options.scale from {self.scale}"
            )
        trainer = trainers.BpeTrainer(
            vocab_size=self.config.words, initial_alphabet=alphabet, show_progress=False, max_token_length=1000
        )
        self.tokenizer.train_from_iterator([self._text(row) for row in numbers], trainer)
        self.tokenizer.decoder = decoders.Fuse()
        self._look_up()

    def save_form(self, folder: Path) -> None:
        """Write the words and how they are spelt."""
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())
        facts = {"least": self.least, "letters": self.letters, "scale": self.scale, "first": self.first}
        write_json(folder / "fast.json", facts)

    def load_form(self, folder: Path) -> None:
        """Read them.

        Raises:
            FastError: a file is missing or cut off.
        """
        self.tokenizer, facts = _tokenizer(folder / "tokenizer.json"), _read(folder / "fast.json")
        self.least, self.letters, self.scale = facts["least"], facts["letters"], facts["scale"]
        self.first = facts.get("first", OWN_FIRST_LETTER)
        self._look_up()

    def tokens(self, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]) -> Words:
        """Words of whole chunks; steps beyond the end repeat the last one, then words for the end."""
        kept = mask.sum(1, keepdim=True).clamp_min(1) - 1
        steps = torch.arange(actions.shape[1], device=actions.device).expand_as(mask).minimum(kept)
        filled = actions.gather(1, steps[:, :, None].expand_as(actions)).float().cpu().numpy()
        rows = [self._words(row) for row in self._numbers(filled)]
        longest = max(len(row) for row in rows) + 1
        end = len(self.names) - 1
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows], device=actions.device)
        lengths = torch.tensor([len(row) for row in rows], device=actions.device)
        counts = torch.arange(longest, device=actions.device)[None] <= lengths[:, None]
        return Words(ids + self.first_id, counts)

    def legal(
        self, logits: Float[Tensor, "batch vocabulary"], written: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Words that go on with what is spelt and are not longer than what is left; the end where nothing is left."""
        left, inside = (facts[:, None] for facts in self._left(written))
        goes_on = inside | (left == 0) | (self.begun > 0)
        fits = (self.starts_inside == inside) & (self.begun <= left) & goes_on
        kept = torch.full_like(logits, float("-inf"))
        place = slice(self.first_id, self.first_id + len(self.names))
        kept[:, place] = logits[:, place].masked_fill(~fits.to(logits.device), float("-inf"))
        return kept

    def is_complete(self, written: Int[Tensor, "batch words"]) -> bool:
        """Whether all chunks are spelt."""
        left, inside = self._left(written)
        return not bool((left > 0).any() or inside.any())

    def actions(self, written: Int[Tensor, "batch words"]) -> Float[Tensor, "batch horizon dims"]:
        """Chunks of complete words."""
        words = (written - self.first_id).cpu()
        texts = [self.tokenizer.decode([w for w in row if w < len(self.names) - 1]) for row in words.tolist()]
        numbers = np.array([[ord(letter) - self.first + self.least for letter in text] for text in texts])
        frequencies = numbers.reshape(len(texts), *self.shape) / self.scale
        chunks = idct(frequencies, axis=1, norm="ortho")
        return torch.from_numpy(chunks).float().to(written.device)

    def _left(self, written: Int[Tensor, "batch words"]) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """How many letters are to begin yet, and whether the last one goes on."""
        words = (written - self.first_id).cpu()
        left = self.shape[0] * self.shape[1] - self.begun[words].sum(1)
        return left, self.ends_inside[words[:, -1]] if words.shape[1] else torch.zeros_like(left, dtype=torch.bool)

    def _numbers(self, chunks: Float[np.ndarray, "samples horizon dims"]) -> Int[np.ndarray, "samples numbers"]:
        frequencies = dct(chunks.astype(np.float64), axis=1, norm="ortho")
        return np.around(frequencies * self.scale).astype(np.int64).reshape(len(chunks), -1)

    def _text(self, numbers: Int[np.ndarray, " numbers"]) -> str:
        known = np.clip(numbers - self.least, 0, self.letters - 1)
        return "".join(chr(self.first + number) for number in known)

    def _words(self, numbers: Int[np.ndarray, " numbers"]) -> list[int]:
        words: list[int] = self.tokenizer.encode(self._text(numbers)).ids
        # Letters that no word has are left out by the tokenizer without a sign.
        if int(self.begun[words].sum()) != len(numbers):
            raise FastError(
                f"the tokenizer {self.config.path} has no words for some of the whole numbers of a chunk, "
                f"{sorted(set(numbers.tolist()))}; leave head.options.path empty, so that words are learned"
            )
        return words

    def _read_published(self, folder: Path) -> None:
        facts, self.tokenizer = _read(folder / "processor_config.json"), _tokenizer(folder / "tokenizer.json")
        if missing := {"scale", "min_token"} - set(facts):
            raise FastError(
                f"{folder / 'processor_config.json'} is not of a FAST tokenizer: it has no {sorted(missing)}"
            )
        if not isinstance(self.tokenizer.decoder, decoders.ByteLevel):
            raise FastError(f"{folder / 'tokenizer.json'} is not of a FAST tokenizer: its words are not of bytes")
        self.scale, self.least = float(facts["scale"]), int(facts["min_token"])
        self.letters, self.first = PUBLISHED_LETTERS, 0
        self._look_up()

    def _require_spelt(self, chunks: Float[np.ndarray, "samples horizon dims"]) -> None:
        numbers, most = self._numbers(chunks), self.least + self.letters - 1
        if numbers.min() < self.least or numbers.max() > most:
            raise FastError(
                f"chunks of the demonstrations have the whole numbers {numbers.min()}..{numbers.max()}, the tokenizer "
                f"{self.config.path} spells {self.least}..{most}; leave head.options.path empty, so that words are "
                "learned"
            )
        for row in numbers:
            self._words(row)

    def _look_up(self) -> None:
        """Names and spellings of the words; the last one is the end, which spells nothing."""
        size = self.tokenizer.get_vocab_size()
        spell = _of_bytes if isinstance(self.tokenizer.decoder, decoders.ByteLevel) else _of_letters
        spelt = [spell(self.tokenizer.id_to_token(number)) for number in range(size)] + [NOTHING]
        self.names = [f"<FAST_{number}>" for number in range(size)] + ["<FAST_END>"]
        self.begun, self.starts_inside, self.ends_inside = (torch.tensor(facts) for facts in zip(*spelt, strict=True))


def _of_letters(word: str) -> Spelling:
    return Spelling(len(word), False, False)


def _of_bytes(word: str) -> Spelling:
    """Of a word in the writing of byte-level tokenizers, a sign a byte; one that spells no letters is never written."""
    known = {sign: byte for byte, sign in bytes_to_unicode().items()}
    spelt = bytes(known[sign] for sign in word if sign in known)
    if len(spelt) < len(word) or not spelt or not LETTERS_IN_BYTES.fullmatch(spelt):
        return NEVER
    rest = [0x80 <= byte < 0xC0 for byte in spelt]
    return Spelling(rest.count(False), rest[0], spelt[-1] >= 0xC0)


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise FastError(f"{file} is missing, damaged or cut off ({error}); fetch or export it again") from None


def _tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(_read(file)))
