"""`fast`: FAST tokens: frequencies of a chunk, rounded and compressed into words (Pertsch et al., arXiv 2501.09747).

A chunk's discrete cosine transform is scaled, rounded and written as text from the lowest frequency up, all dimensions
of a frequency together; byte-pair encoding, learned from the demonstrations, makes words of it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, trainers
from torch import Tensor

from core.config import Config
from vla.heads.interface import HeadSizes, TokenHead, Words

FIRST_LETTER = 0x4E00
"""Own words are spelt in letters from here on, one for each whole number, so that none is split or changed as text."""


class FastError(ValueError):
    """A tokenizer of actions that cannot be used."""


class FastConfig(Config):
    """Which words."""

    words: int = 1024
    """Size of the vocabulary that is learned; at least one word for every whole number that occurs."""
    scale: float = 10.0
    """Factor on frequencies before they are rounded; larger is finer and longer."""


class FastHead(TokenHead):
    """Complete when the words spell exactly one chunk; nothing else can be written."""

    def __init__(self, config: FastConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config, self.shape = config, (sizes.horizon, sizes.action_dims)
        self.scale, self.least, self.letters, self.tokenizer = config.scale, 0, 0, Tokenizer(models.BPE())
        self.names: list[str] = []

    def fit(self, chunks: Float[np.ndarray, "samples horizon dims"]) -> None:
        """Learn words from normalised chunks."""
        numbers = self._numbers(chunks)
        self.least, self.letters = int(numbers.min()), int(numbers.max() - numbers.min()) + 1
        alphabet = [chr(FIRST_LETTER + number) for number in range(self.letters)]
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
        (folder / "fast.json").write_text(
            json.dumps({"least": self.least, "letters": self.letters, "scale": self.scale})
        )

    def load_form(self, folder: Path) -> None:
        """Read them."""
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        facts = json.loads((folder / "fast.json").read_text())
        self.least, self.letters, self.scale = facts["least"], facts["letters"], facts["scale"]
        self._look_up()

    def tokens(self, actions: Float[Tensor, "batch horizon dims"], mask: Bool[Tensor, "batch horizon"]) -> Words:
        """Words of whole chunks; steps beyond the end repeat the last one, then words for the end."""
        kept = mask.sum(1, keepdim=True).clamp_min(1) - 1
        steps = torch.arange(actions.shape[1], device=actions.device).expand_as(mask).minimum(kept)
        filled = actions.gather(1, steps[:, :, None].expand_as(actions)).float().cpu().numpy()
        rows = [self.tokenizer.encode(self._text(row)).ids for row in self._numbers(filled)]
        longest = max(len(row) for row in rows) + 1
        end = len(self.names) - 1
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows], device=actions.device)
        lengths = torch.tensor([len(row) for row in rows], device=actions.device)
        counts = torch.arange(longest, device=actions.device)[None] <= lengths[:, None]
        return Words(ids + self.first_id, counts)

    def legal(
        self, logits: Float[Tensor, "batch vocabulary"], written: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Words that are not longer than what is left to spell; the end where nothing is left."""
        left = self._left(written)[:, None]
        fits = torch.where(left > 0, (self.lengths > 0) & (self.lengths <= left), self.lengths == 0)
        kept = torch.full_like(logits, float("-inf"))
        place = slice(self.first_id, self.first_id + len(self.names))
        kept[:, place] = logits[:, place].masked_fill(~fits.to(logits.device), float("-inf"))
        return kept

    def is_complete(self, written: Int[Tensor, "batch words"]) -> bool:
        """Whether all chunks are spelt."""
        return bool((self._left(written) == 0).all())

    def actions(self, written: Int[Tensor, "batch words"]) -> Float[Tensor, "batch horizon dims"]:
        """Chunks of complete words."""
        words = (written - self.first_id).cpu()
        texts = [self.tokenizer.decode([w for w in row if w < len(self.names) - 1]) for row in words.tolist()]
        numbers = np.array([[ord(letter) - FIRST_LETTER + self.least for letter in text] for text in texts])
        frequencies = numbers.reshape(len(texts), *self.shape) / self.scale
        chunks = idct(frequencies, axis=1, norm="ortho")
        return torch.from_numpy(chunks).float().to(written.device)

    def _left(self, written: Int[Tensor, "batch words"]) -> Int[Tensor, " batch"]:
        return self.shape[0] * self.shape[1] - self.lengths[(written - self.first_id).cpu()].sum(1)

    def _numbers(self, chunks: Float[np.ndarray, "samples horizon dims"]) -> Int[np.ndarray, "samples numbers"]:
        frequencies = dct(chunks.astype(np.float64), axis=1, norm="ortho")
        return np.around(frequencies * self.scale).astype(np.int64).reshape(len(chunks), -1)

    def _text(self, numbers: Int[np.ndarray, " numbers"]) -> str:
        known = np.clip(numbers - self.least, 0, self.letters - 1)
        return "".join(chr(FIRST_LETTER + number) for number in known)

    def _look_up(self) -> None:
        """Names and lengths of the words; the last one is the end, which spells nothing."""
        size = self.tokenizer.get_vocab_size()
        self.names = [f"<FAST_{number}>" for number in range(size)] + ["<FAST_END>"]
        self.lengths = torch.tensor([len(self.tokenizer.decode([number])) for number in range(size)] + [0])
