"""The one owner of the map from latent code indices to token ids, for every tokenizer and every backbone."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.config import Config

PAD, END = "<pad>", "</s>"


class TokenError(ValueError):
    """Code indices or token ids that no latent token stands for."""


class LatentTokens(Config):
    """Which token ids stand for latent code indices, and how many of them make a latent action."""

    first_id: int
    """Token id of code index 0; the others follow."""
    num_codes: int
    """Values of a code index."""
    num_tokens: int
    """Tokens of a latent action; 0: the model thinks in none."""
    end_id: int
    """Token id that ends what is said."""

    def ids(self, codes: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Token ids of code indices.

        Raises:
            TokenError: a code index is out of range.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise TokenError(
                f"code indices span {int(codes.min())}..{int(codes.max())}, the model's are 0..{self.num_codes - 1}; "
                "pretrain on labels of the same latent action model"
            )
        return codes + self.first_id

    def codes(self, ids: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Code indices of token ids; the inverse of `ids`.

        Raises:
            TokenError: a token stands for no code.
        """
        last = self.first_id + self.num_codes - 1
        if ids.numel() and not self.first_id <= int(ids.min()) <= int(ids.max()) <= last:
            raise TokenError(
                f"token ids span {int(ids.min())}..{int(ids.max())}, latent tokens are {self.first_id}..{last}"
            )
        return ids - self.first_id

    def legal(self, logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits in which everything but a latent token is impossible."""
        return only(logits, torch.arange(self.first_id, self.first_id + self.num_codes))


class LegalLatents(LogitsProcessor):
    """For `generate` of transformers: after a prompt of so many positions latent tokens, then the end, nothing else."""

    def __init__(self, latents: LatentTokens, prompt_length: int) -> None:
        self.latents, self.prompt_length = latents, prompt_length

    def __call__(
        self, input_ids: Int[Tensor, "batch text"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Scores in which what is not legal at this position is impossible."""
        if input_ids.shape[1] - self.prompt_length < self.latents.num_tokens:
            return self.latents.legal(scores)
        return only(scores, torch.tensor([self.latents.end_id]))


def only(
    logits: Float[Tensor, "*batch vocabulary"], allowed: Int[Tensor, " allowed"]
) -> Float[Tensor, "*batch vocabulary"]:
    """Logits in which everything but the allowed token ids is impossible."""
    kept = torch.full_like(logits, float("-inf"))
    allowed = allowed.to(logits.device)
    kept[..., allowed] = logits[..., allowed]
    return kept


def train_tokenizer(texts: Iterable[str], num_codes: int, vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text can be encoded) whose merges are learned from `texts`, latent tokens included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *latent_names(num_codes)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END, padding_side="left")


def latent_names(num_codes: int) -> list[str]:
    """All latent tokens as text."""
    return [latent_name(code) for code in range(num_codes)]


def latent_name(code: int) -> str:
    """The latent token of a code index as text."""
    return f"<ACT_{code}>"


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    """Ids of tokens, which are added where the tokenizer does not have them; one after the other.

    Raises:
        TokenError: the tokenizer has some of them, or has them at scattered ids.
    """
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(names))
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        raise TokenError(
            f"the tokenizer has {names[0]}..{names[-1]} at the ids {ids[:4]}..., which do not follow one another, as "
            "where a head of another vocabulary was trained before; start from a checkpoint that has none or all of "
            "them, such as the one before fine-tuning"
        )
    return ids


@torch.no_grad()
def start_from_mean(rows: Float[Tensor, "vocabulary width"], known: int, new: Sequence[int]) -> None:
    """Set the embeddings (or output weights) of new tokens to the mean of those of the first `known`."""
    rows[list(new)] = rows[:known].float().mean(0).to(rows.dtype)
