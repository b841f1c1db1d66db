"""The one owner of the map from latent code indices to token ids, and the tokenizer that holds both."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

PAD, END = "<pad>", "</s>"


class LatentTokenizer:
    """A BPE tokenizer with one extra token a code, `<ACT_0>`, `<ACT_1>`, ..."""

    def __init__(self, tokenizer: Tokenizer, num_codes: int, num_tokens: int) -> None:
        self.tokenizer, self.num_codes, self.num_tokens = tokenizer, num_codes, num_tokens
        ids = [tokenizer.token_to_id(f"<ACT_{code}>") for code in range(num_codes)]
        if None in ids or ids != list(range(ids[0], ids[0] + num_codes)):
            raise ValueError(f"the tokenizer has no consecutive tokens <ACT_0>..<ACT_{num_codes - 1}>, but {ids}")
        self.first_id: int = ids[0]
        self.pad_id: int = tokenizer.token_to_id(PAD)
        self.end_id: int = tokenizer.token_to_id(END)

    @classmethod
    def trained_on(
        cls, texts: Iterable[str], num_codes: int, num_tokens: int, vocabulary: int = 1024
    ) -> "LatentTokenizer":
        """A byte-level BPE (any text can be encoded) whose merges are learned from `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        special = [PAD, END, *(f"<ACT_{code}>" for code in range(num_codes))]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, num_codes, num_tokens)

    @classmethod
    def from_json(cls, text: str, num_codes: int, num_tokens: int) -> "LatentTokenizer":
        """The tokenizer of a checkpoint."""
        return cls(Tokenizer.from_str(text), num_codes, num_tokens)

    def to_json(self) -> str:
        """Everything needed to build it again."""
        return self.tokenizer.to_str()

    @property
    def size(self) -> int:
        """Token ids, latent ones included."""
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Int[Tensor, "batch text"]:
        """Token ids, padded on the left so that what follows the text is aligned."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        longest = max(len(row) for row in rows)
        return torch.tensor([[self.pad_id] * (longest - len(row)) + row for row in rows])

    def latent_ids(self, codes: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Token ids of code indices."""
        return codes + self.first_id

    def codes(self, ids: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Code indices of token ids; the inverse of `latent_ids`."""
        return ids - self.first_id

    def legal(self, logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits in which everything but a latent token is impossible."""
        allowed: Bool[Tensor, " vocabulary"] = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        allowed[self.first_id : self.first_id + self.num_codes] = True
        return logits.masked_fill(~allowed, float("-inf"))
