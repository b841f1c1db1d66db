from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from core.checkpoint import CheckpointError
from lam.config import LamConfig
from lam.model import LatentActionModel
from lam.objectives.by_name import OBJECTIVES
from lam.objectives.interface import DataFacts, Terms, Transitions
from lam.reference import all_pairs, differences, from_published, to_published

GOLDEN = Path(__file__).parents[1] / ".." / "shared" / "golden" / "lam_small.safetensors"


def small(**changes) -> LatentActionModel:
    values = {"width": 32, "heads": 4, "encoder_blocks": 1, "decoder_blocks": 1, "code_dim": 8}
    return LatentActionModel(LamConfig(**(values | changes)), feature_dim=12, patches=9)


def terms_of(objective: str, model: LatentActionModel, batch: Transitions) -> Terms:
    return OBJECTIVES[objective](model, DataFacts(cameras=4, action_dims=3, senses=5)).terms(batch)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"reference tensors of the published model are not at {GOLDEN}")
    with safe_open(str(GOLDEN), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata()


def test_the_published_layout_gives_the_published_encodings_codes_reconstructions_loss_and_gradients(golden):
    found = differences(*golden)
    assert {name.partition(".")[2] for name in found if name.startswith("output.")} == {
        "encoding",
        "indices",
        "reconstruction",
        "loss",
    }
    assert sum(name.startswith("grad.") for name in found) == 5
    assert found["output.indices"] == 0
    assert max(found.values()) < 1e-4


def test_one_changed_weight_is_a_difference(golden):
    tensors, metadata = golden
    changed = tensors | {"weight.to_codebook.bias": tensors["weight.to_codebook.bias"] + 0.01}
    assert differences(changed, metadata)["output.encoding"] == pytest.approx(0.01, rel=1e-3)


def test_a_released_file_with_prefix_and_frozen_encoder_comes_back_as_it_was(golden):
    tensors, _ = golden
    weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    released = {f"lam.{name}": t for name, t in weights.items()} | {
        "lam.dino_encoder.blocks.0.norm1.weight": torch.zeros(3)
    }
    again = to_published(from_published(released, heads=4, patches=16))
    assert set(again) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize(("views", "encoder", "decoder", "tokens"), [(1, 1, 3, 2), (3, 2, 1, 5)])
def test_every_size_of_a_reference_is_read_off_the_file(views, encoder, decoder, tokens):
    torch.manual_seed(0)
    model = small(encoder_blocks=encoder, decoder_blocks=decoder, num_tokens=tokens, beta=0.5, num_codes=7)
    features = torch.randn(views, 2, 2, 9, 12)
    loss = terms_of("published", model, all_pairs(features))["loss"]
    loss.backward()
    tensors = {f"weight.{name}": tensor.detach() for name, tensor in to_published(model).items()} | {
        "input.features": features,
        "output.loss": loss.detach(),
        "grad.decoder.transformer_blocks.0.norm2.bias": model.decoder.blocks[0].feed_forward_norm.bias.grad,
        "grad.encoder.transformer_blocks.0.norm3.bias": model.encoder.blocks[0].feed_forward_norm.bias.grad,
    }
    found = differences(tensors, {"heads": "4", "beta": "0.5"})
    assert len(found) == 3
    assert max(found.values()) < 1e-6


def test_foreign_files_and_forms_without_a_place_in_the_layout_are_refused():
    with pytest.raises(CheckpointError, match="conv1"):
        from_published({"conv1.weight": torch.zeros(3)}, 4, 16)
    with pytest.raises(CheckpointError, match="lacks \\['beta', 'heads'\\]"):
        differences({"input.features": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"no place for a model with \{'network': 'perceptron'\}"):
        to_published(small(network="perceptron"))


def test_the_encoding_depends_on_both_frames_and_the_first_frame_does_not_see_the_second():
    model = small().eval()
    features = torch.randn(2, 2, 9, 12)
    changed_later, changed_first = features.clone(), features.clone()
    changed_later[:, 1] += torch.randn(2, 9, 12)
    changed_first[:, 0] += torch.randn(2, 9, 12)
    base = model.encode(features)
    assert not torch.allclose(base, model.encode(changed_later))
    assert not torch.allclose(base, model.encode(changed_first))
    tokens = model.encoder.embed(features)
    for block in model.encoder.blocks:
        seen = block(tokens)[:, 0]
        blind = block(model.encoder.embed(changed_later))[:, 0]
    torch.testing.assert_close(seen, blind)


@pytest.mark.parametrize("network", ["transformer", "perceptron"])
def test_a_latent_of_change_is_nothing_at_rest_its_own_opposite_backwards_and_adds_up(network):
    model = small(network=network, latent="of_change").eval()
    frames = torch.randn(3, 2, 9, 12)[:, 0]
    first, second, both = (model.describe(frames[None, pair]) for pair in ([0, 1], [1, 2], [0, 2]))
    assert first.abs().max() > 1e-3
    torch.testing.assert_close(first + second, both)
    torch.testing.assert_close(model.describe(frames[None, [1, 0]]), -first)
    assert not model.describe(frames[None, [1, 1]]).any()
    with pytest.raises(CheckpointError, match="of_change"):
        to_published(model)


def test_heads_have_to_divide_the_width_of_a_transformer_only():
    with pytest.raises(ValueError, match="width 30 is not a multiple of heads 4"):
        LamConfig(width=30, heads=4)
    assert LamConfig(network="perceptron", width=30, heads=4).width == 30


def test_a_perceptron_sees_every_patch_of_both_frames_and_decodes_from_frame_and_action():
    model = small(network="perceptron").eval()
    features = torch.randn(1, 2, 9, 12)
    base = model.encode(features)
    assert base.shape == (1, 4, 8)
    for frame in range(2):
        for patch in range(9):
            changed = features.clone()
            changed[0, frame, patch] += torch.randn(12)
            assert not torch.allclose(base, model.encode(changed))
    still = model.encode(features[:, [0, 0]])
    assert not torch.allclose(base, still)
    first, action = features[:, 0], torch.randn(1, 4, 8)
    predicted = model.decode(first, action)
    assert predicted.shape == first.shape
    for token in range(4):
        other = action.clone()
        other[0, token] += 1
        assert not torch.allclose(predicted, model.decode(first, other))
