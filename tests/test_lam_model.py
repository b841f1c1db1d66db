from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from core.checkpoint import CheckpointError
from lam.bottlenecks.interface import codebook_health
from lam.bottlenecks.vq import VectorQuantizer
from lam.codebook_watch import CodebookWatch
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
    with pytest.raises(CheckpointError, match="network perceptron"):
        to_published(small(network="perceptron"))


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_quantizer_agrees_with_a_naive_loop(is_shared):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(num_codes=5, dim=3, num_tokens=4, beta=0.25, is_shared=is_shared)
    torch.nn.init.normal_(quantizer.codebook)
    encodings = torch.randn(7, 4, 3)
    answer = quantizer(encodings)
    total = 0.0
    for b in range(7):
        for t in range(4):
            book = quantizer.codebook[0 if is_shared else t]
            distances = [float(((encodings[b, t] - code) ** 2).sum()) for code in book]
            best = distances.index(min(distances))
            assert answer.indices[b, t] == best
            torch.testing.assert_close(answer.codes[b, t], book[best].detach(), atol=1e-6, rtol=0)
            total += min(distances) / 3
    assert answer.loss.item() == pytest.approx(1.25 * total / 28, rel=1e-5)
    assert quantizer.counts.sum() == 28


def test_gradients_pass_straight_through_the_quantizer():
    quantizer = VectorQuantizer(num_codes=5, dim=3, num_tokens=2, beta=0.0, is_shared=True)
    encodings = torch.randn(4, 2, 3, requires_grad=True)
    (2 * quantizer(encodings).codes).sum().backward()
    torch.testing.assert_close(encodings.grad, torch.full_like(encodings, 2.0))


@pytest.mark.parametrize("is_shared", [True, False])
def test_dead_codes_are_replaced_by_encodings_and_live_ones_stay(is_shared):
    quantizer = VectorQuantizer(num_codes=4, dim=3, num_tokens=2, beta=0.25, is_shared=is_shared)
    quantizer.counts[:] = torch.tensor([10.0, 10.0, 10.0, 0.0])
    before = quantizer.codebook.detach().clone()
    encodings = torch.randn(50, 2, 3) + 100
    assert quantizer.revive(encodings, torch.Generator().manual_seed(0)) == (1 if is_shared else 2)
    assert torch.equal(quantizer.codebook[:, :3], before[:, :3])
    assert (quantizer.codebook[:, 3] > 50).all()
    assert not quantizer.counts.any()


def test_perplexity_is_that_of_the_counts():
    even = codebook_health(torch.full((4, 16), 3))
    assert even["perplexity"] == pytest.approx(16)
    one = codebook_health(torch.nn.functional.one_hot(torch.zeros(4, dtype=torch.long), 16))
    assert one["perplexity"] == pytest.approx(1)
    assert one["usage"] == pytest.approx(1 / 16)


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


def test_a_collapsed_codebook_is_said_once_with_what_to_try(capsys):
    model = small(codebook="per_token")
    watch = CodebookWatch(model, Accelerator(cpu=True), revive_every=10, steps=10, seed=0)
    for check in range(1, 7):
        model.bottleneck.counts.zero_()
        model.bottleneck.counts[:, 3] = 100
        assert watch(10 * check * 100 - 1)["perplexity"] == pytest.approx(1)
        said = capsys.readouterr().err
        assert ("collapsed" in said) == (check == 4)
        assert ("normalise_encodings" in said) == (check == 4)
