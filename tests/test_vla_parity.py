"""`scripts/check_parity.py` on reference tensors of any size, made here by formulas that share no code with ours."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange, repeat
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared/golden"

DINO = {"img_size": 42, "patch_size": 14, "embed_dim": 24, "depth": 4, "num_heads": 3, "init_values": 1e-5}
DINO |= {"reg_tokens": 2, "no_embed_class": True}
SIGLIP = {"img_size": 42, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": False}
SIGLIP |= {"global_pool": "map"}
TEXT = {"vocab_size": 90, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 128}


def attend(q, k, v, heads, mask=None):
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    return rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)")


def linear(w, name, x):
    return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def tower(w, name, pixels, sizes):
    """Patch tokens of the last block but one, without the final norm."""
    w = {key.removeprefix(f"{name}."): value for key, value in w.items() if key.startswith(f"{name}.")}
    x = functional.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    x = rearrange(x, "b c h w -> b (h w) c") + w["pos_embed"]
    first = [w[key].expand(len(x), -1, -1) for key in ("cls_token", "reg_token") if key in w]
    x = torch.cat([*first, x], dim=1)
    for block in range(sizes["depth"] - 1):
        own = f"blocks.{block}"
        for norm, scale, part in (("norm1", "ls1", "attn"), ("norm2", "ls2", "mlp")):
            weights = w[f"{own}.{norm}.weight"], w[f"{own}.{norm}.bias"]
            y = functional.layer_norm(x, x.shape[-1:], *weights, eps=1e-6)
            if part == "attn":
                y = attend(*linear(w, f"{own}.attn.qkv", y).chunk(3, -1), sizes["num_heads"])
                y = linear(w, f"{own}.attn.proj", y)
            else:
                y = linear(w, f"{own}.mlp.fc2", functional.gelu(linear(w, f"{own}.mlp.fc1", y)))
            x = x + y * w.get(f"{own}.{scale}.scale_factor", torch.ones(()))
    return x[:, sum(part.shape[1] for part in first) :]


def root_mean_square(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def turned(x, heads):
    """Rotary positions: the halves of each head are the two coordinates."""
    x = rearrange(x, "b n (h d) -> b h n d", h=heads)
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    left, right = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    x = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
    return rearrange(x, "b h n d -> b n (h d)")


def llama(w, x, present):
    """Last hidden states and logits."""
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & present[:, None, None, :]
    heads, groups = TEXT["num_attention_heads"], TEXT["num_key_value_heads"]
    for layer in range(TEXT["num_hidden_layers"]):
        own = f"language_model.model.layers.{layer}"
        y = root_mean_square(x, w[f"{own}.input_layernorm.weight"])
        q, k, v = (linear(w, f"{own}.self_attn.{part}_proj", y) for part in "qkv")
        k, v = turned(k, groups), v
        times = {"h": groups, "times": heads // groups}
        k, v = (repeat(each, "b n (h d) -> b n (h times d)", **times) for each in (k, v))
        x = x + linear(w, f"{own}.self_attn.o_proj", attend(turned(q, heads), k, v, heads, mask))
        y = root_mean_square(x, w[f"{own}.post_attention_layernorm.weight"])
        gated = functional.silu(linear(w, f"{own}.mlp.gate_proj", y)) * linear(w, f"{own}.mlp.up_proj", y)
        x = x + linear(w, f"{own}.mlp.down_proj", gated)
    x = root_mean_square(x, w["language_model.model.norm.weight"])
    return x, linear(w, "language_model.lm_head", x)


def prismatic_reference() -> tuple[dict, dict]:
    """Tensors and metadata; three rows of different lengths."""
    weights = {f"language_model.{n}": t for n, t in LlamaForCausalLM(LlamaConfig(**TEXT)).state_dict().items()}
    for name, sizes in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        state = VisionTransformer(num_classes=0, **sizes).state_dict()
        weights |= {f"vision_backbone.{name}.{n.replace('.gamma', '.scale_factor')}": t for n, t in state.items()}
    width, out = DINO["embed_dim"] + SIGLIP["embed_dim"], TEXT["hidden_size"]
    for layer, (rows, columns) in {"fc1": (4 * width, width), "fc2": (out, 4 * width), "fc3": (out, out)}.items():
        weights |= {
            f"projector.{layer}.weight": torch.zeros(rows, columns),
            f"projector.{layer}.bias": torch.zeros(rows),
        }
    weights = {n: torch.randn(t.shape) * 0.2 + (t.ndim == 1 and n.endswith("norm.weight")) for n, t in weights.items()}
    mask = torch.arange(7)[None] < torch.tensor([[7], [4], [5]])
    ids = torch.randint(0, TEXT["vocab_size"], (3, 7))
    labels = ids.masked_fill(~mask | (torch.arange(7) < 2), -100)
    pixels = torch.randn(3, 6, 42, 42)
    w = weights
    patches = [
        tower(w, f"vision_backbone.{name}", part, sizes)
        for name, part, sizes in zip(
            ("featurizer", "fused_featurizer"), pixels.chunk(2, dim=1), (DINO, SIGLIP), strict=True
        )
    ]
    image = functional.gelu(linear(w, "projector.fc1", torch.cat(patches, -1)))
    image = linear(w, "projector.fc3", functional.gelu(linear(w, "projector.fc2", image)))
    words = w["language_model.model.embed_tokens.weight"][ids]
    seen = torch.ones(image.shape[:2], dtype=torch.bool)
    between = lambda text, middle: torch.cat([text[:, :1], middle, text[:, 1:]], dim=1)  # noqa: E731
    hidden, logits = llama(w, between(words, image), between(mask, seen))
    targets = between(labels, torch.full(image.shape[:2], -100))
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    tensors = {f"weight.{name}": tensor for name, tensor in weights.items()}
    tensors |= {"input.input_ids": ids, "input.attention_mask": mask.long(), "input.labels": labels}
    tensors |= {"input.pixel_values": pixels, "output.last_hidden_state": hidden, "output.logits": logits}
    sizes = {"text_config": TEXT, "dino": DINO, "siglip": SIGLIP}
    return tensors | {"output.loss": loss[None]}, {name: json.dumps(value) for name, value in sizes.items()}


def pooled(w, name, tokens, query, heads):
    x = w[f"{name}.latents"][None].expand(len(tokens), -1, -1) + query[:, None]
    tokens = linear(w, f"{name}.projection", tokens)
    keys, values = linear(w, f"{name}.attn.kv", tokens).chunk(2, -1)
    y = attend(linear(w, f"{name}.attn.q", x), keys, values, heads)
    x = divided(x + linear(w, f"{name}.attn.proj", y), w[f"{name}.attn_norm.g"])
    value, gate = linear(w, f"{name}.mlp.0.project", x).chunk(2, -1)
    return divided(x + linear(w, f"{name}.mlp.1", value * functional.silu(gate)), w[f"{name}.mlp_norm.g"])[:, 0]


def divided(x, weight):
    return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5).clamp_min(1e-8) * weight


def head_reference() -> tuple[dict, dict]:
    """Another width, number of heads, of latent tokens, window and number of dimensions than the golden file's."""
    hidden, width, window, dims, heads = 48, 36, 9, 3, 6
    shapes = {"proj.0.weight": (window * dims, hidden), "proj.0.bias": (window * dims,)}
    for name in ("latent_action_pool", "visual_pool"):
        own = {"latents": (1, hidden), "projection.weight": (hidden, width), "projection.bias": (hidden,)}
        own |= {"attn.q.weight": (hidden, hidden), "attn.kv.weight": (2 * hidden, hidden), "attn_norm.g": (hidden,)}
        own |= {"attn.proj.weight": (hidden, hidden), "attn.proj.bias": (hidden,), "mlp_norm.g": (hidden,)}
        own |= {"mlp.0.project.weight": (8 * hidden, hidden), "mlp.0.project.bias": (8 * hidden,)}
        own |= {"mlp.1.weight": (hidden, 4 * hidden), "mlp.1.bias": (hidden,)}
        shapes |= {f"{name}.{key}": shape for key, shape in own.items()}
    w = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    image, latent = torch.randn(5, 11, width), torch.randn(5, 2, width)
    seen = pooled(w, "visual_pool", image, torch.zeros(5, hidden), heads)
    chunk = linear(w, "proj.0", pooled(w, "latent_action_pool", latent, seen, heads)).tanh()
    tensors = {f"weight.{name}": tensor for name, tensor in w.items()}
    tensors |= {"input.visual_tokens": image, "input.latent_tokens": latent}
    sizes = {"token_dim": width, "window": window, "hidden": hidden, "heads": heads}
    return tensors | {"output.action_chunk": rearrange(chunk, "b (t d) -> b t d", t=window)}, {
        name: str(value) for name, value in sizes.items()
    }


REFERENCES = {"prismatic": prismatic_reference, "head": head_reference}


@pytest.fixture
def checked(monkeypatch, capsys):
    """What the script prints of a file, and its exit status."""

    def run(file: Path) -> tuple[str, int]:
        monkeypatch.setattr(sys, "argv", ["check_parity.py", str(file)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts/check_parity.py"), run_name="__main__")
        return "".join(capsys.readouterr()), int(ended.value.code)

    return run


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("seed", [0, 1])
def test_files_of_other_sizes_agree(kind, seed, checked, tmp_path):
    torch.manual_seed(seed)
    tensors, metadata = REFERENCES[kind]()
    file = tmp_path / "reference.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=metadata)
    said, status = checked(file)
    assert status == 0, said
    assert sum(name.startswith("output.") for name in tensors) == said.count("output.")


@pytest.mark.parametrize("kind", REFERENCES)
def test_what_differs_or_is_not_compared_fails(kind, checked, tmp_path):
    torch.manual_seed(0)
    tensors, metadata = REFERENCES[kind]()
    tensors, file = {name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "reference.safetensors"
    name = next(name for name in tensors if name.startswith("output."))
    save_file(tensors | {name: tensors[name] + 2e-4}, file, metadata=metadata)
    assert checked(file)[1] == 1
    save_file(tensors | {"output.attention": torch.zeros(3)}, file, metadata=metadata)
    said, status = checked(file)
    assert status == 1
    assert "output.attention" in said.split("not compared")[0]


@pytest.mark.parametrize("name", ["prismatic_tiny", "action_head_small"])
def test_the_golden_files_agree_with_us_and_with_these_formulas(name, checked):
    file = GOLDEN / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    said, status = checked(file)
    assert status == 0, said
    if name == "action_head_small":
        tensors = load_file(file)
        w = {key.removeprefix("weight."): tensor for key, tensor in tensors.items() if key.startswith("weight.")}
        seen = pooled(w, "visual_pool", tensors["input.visual_tokens"], torch.zeros(3, 64), 4)
        chunk = linear(w, "proj.0", pooled(w, "latent_action_pool", tensors["input.latent_tokens"], seen, 4)).tanh()
        torch.testing.assert_close(chunk, tensors["output.action_chunk"].flatten(1), atol=1e-5, rtol=1e-4)
