"""Backbones small enough to build in a moment, one of each kind, in the layout that the real ones are released in."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    PaliGemmaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from vla.backbones.interface import Backbone, Setting
from vla.backbones.nano import NanoBackbone, NanoConfig
from vla.backbones.prismatic import NAMES
from vla.parts import BACKBONES, Part, find
from vla.prompt import prompt
from vla.tokens import train_tokenizer

CODES, TOKENS, SIDE = 16, 4, 28
SENTENCES = ["push the cube to the left", "push the cube to the right", "stack the red cube on the green cube"]
SMALL = NanoConfig(width=48, layers=2, heads=4, feed_forward=64, image_tokens=4, projector_width=64)
SEES = Setting(num_codes=CODES, num_tokens=TOKENS, feature_dim=12, grid=(4, 4))
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIGHT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {"embed_dim": 24, "depth": 3, "num_heads": 2}
FAMILIES = ("smolvlm", "paligemma", "llava", "qwen2_5_vl", "qwen3_vl")


def nano(setting: Setting = SEES) -> NanoBackbone:
    return NanoBackbone.fresh(SMALL, setting, [prompt(sentence) for sentence in SENTENCES])


def prepared(backbone: Backbone, images: np.ndarray, sentences: Sequence[str]) -> dict:
    return backbone.prepare(images, [prompt(sentence) for sentence in sentences])


def tokenizer(*special: str):
    """A tokenizer without latent tokens, with a beginning, as Llama's."""
    made = train_tokenizer([prompt(sentence) for sentence in SENTENCES], 0)
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(special)})
    return made


def timm_lm(folder: Path, setting: Setting = SEES) -> Part:
    """A language model in a folder, and the part that names it; the tower is a real one's, at random."""
    words = tokenizer()
    text = LlamaConfig(**TEXT, vocab_size=len(words), tie_word_embeddings=False)
    LlamaForCausalLM(text).save_pretrained(folder)
    words.save_pretrained(folder)
    towers = ["vit_tiny_patch16_224"]
    options = {"towers": towers, "weights": "random", "image_size": 64, "pool": 2, "language": str(folder)}
    return Part(name="timm_lm", options=options)


def prismatic(folder: Path, shards: int = 2) -> Part:
    """A released Prismatic model, with random weights in several files and an index."""
    folder.mkdir(exist_ok=True)
    words = tokenizer("▁")
    text = LlamaConfig(**TEXT, vocab_size=len(words) + 40).to_dict()
    names = ["vit_small_patch14_reg4_dinov2.lvd142m", "vit_base_patch16_siglip_224.webli"]
    own = [{**TOWER, "reg_tokens": 4}, {**TOWER, "patch_size": 14}]
    form = {"timm_model_ids": names, "image_sizes": [SIDE, SIDE], "tower_options": own}
    (folder / "config.json").write_text(json.dumps({"model_type": "openvla", "text_config": text, **form}))
    words.save_pretrained(folder)
    towers = [timm.create_model(n, num_classes=0, img_size=SIDE, **o) for n, o in zip(names, own, strict=True)]
    language = LlamaForCausalLM(LlamaConfig(**text))
    width = 2 * TOWER["embed_dim"]
    hidden = (width, 4 * width, TEXT["hidden_size"], TEXT["hidden_size"])
    tensors = {f"language_model.{name}": tensor for name, tensor in language.state_dict().items()}
    for place, layer in enumerate(("fc1", "fc2", "fc3")):
        tensors[f"projector.{layer}.weight"] = 0.1 * torch.randn(hidden[place + 1], hidden[place])
        tensors[f"projector.{layer}.bias"] = torch.zeros(hidden[place + 1])
    for theirs, tower in zip(list(NAMES)[:2], towers, strict=True):
        for name, tensor in tower.state_dict().items():
            tensors[f"{theirs}{name}".replace(".gamma", ".scale_factor")] = tensor
    where = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name].clone().contiguous() for name in sorted(tensors)[shard::shards]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return Part(name="prismatic", options={"path": str(folder)})


def hub(family: str, folder: Path) -> Part:
    """A small model of a family and its processor."""
    torch.manual_seed(0)
    config, processor = {
        "smolvlm": _smolvlm,
        "paligemma": _paligemma,
        "llava": _llava,
        "qwen2_5_vl": _qwen,
        "qwen3_vl": _qwen,
    }[family](family)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Part(name=f"hub:{folder}", options={"image_size": 56})


def _ids(words) -> dict:
    return {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}


def _pictures(side: int) -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": side, "width": side})


def _smolvlm(family: str):
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    ids = _ids(words) | {"vocab_size": len(words)}
    config = AutoConfig.for_model(
        family,
        vision_config=SIGHT | {"image_size": 56, "patch_size": 14, "model_type": "smolvlm_vision"},
        text_config=TEXT | ids | {"model_type": "llama", "num_key_value_heads": 2},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    sides = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False}
    images = SmolVLMImageProcessor(**sides)
    return config, SmolVLMProcessor(images, words, SmolVLMVideoProcessor(**sides), image_seq_len=4)


def _paligemma(family: str):
    words = tokenizer("<image>")
    ids = _ids(words) | {"vocab_size": len(words)}
    config = AutoConfig.for_model(
        family,
        vision_config=SIGHT
        | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        text_config=TEXT | ids | {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
    )
    images = _pictures(56)
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, words)
    config.text_config.vocab_size = len(processor.tokenizer)  # it adds words for places
    return config, processor


def _llava(family: str):
    words = tokenizer("<image>")
    ids = _ids(words) | {"vocab_size": len(words)}
    config = AutoConfig.for_model(
        family,
        vision_config=SIGHT
        | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        text_config=TEXT | ids | {"model_type": "llama", "num_key_value_heads": 2},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )
    return config, LlavaProcessor(_pictures(56), words, patch_size=14, vision_feature_select_strategy="full")


def _qwen(family: str):
    words = tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = _ids(words) | {"vocab_size": len(words)}
    patch = 14 if family == "qwen2_5_vl" else 16
    sight = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": patch}
    sight |= {"spatial_merge_size": 2, "out_hidden_size": TEXT["hidden_size"]}
    if family == "qwen2_5_vl":
        sight |= {"window_size": 4 * patch, "fullatt_block_indexes": [1]}
    else:
        sight |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = TEXT | ids | {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": rope}
    if family == "qwen3_vl":
        text["rope_parameters"] = rope | {"mrope_interleaved": True}
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    special = {key: words.convert_tokens_to_ids(name) for key, name in names.items()}
    config = AutoConfig.for_model(family, vision_config=sight, text_config=text, **special)
    sizes = {"patch_size": patch, "merge_size": 2, "min_pixels": 56 * 56, "max_pixels": 64 * 64}
    kind = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen3VLProcessor
    return config, kind(Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes))


def fresh(part: Part, setting: Setting = SEES) -> Backbone:
    kind, options = find(part, BACKBONES)
    return kind.fresh(options, setting, [prompt(sentence) for sentence in SENTENCES])
