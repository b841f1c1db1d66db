import numpy as np
import pytest
import torch

from core.config import ConfigError
from core.statistics import Statistics, StatisticsError
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, HEADS, Part, build
from vla.prompt import prompt
from vla.tokens import LatentTokenizer

SENSES = torch.zeros(1, 3)
SENTENCES = ["push the cube to the left", "push the cube to the right", "stack the red cube on the green cube"]


@pytest.fixture
def tokenizer():
    return LatentTokenizer.trained_on([prompt(s) for s in SENTENCES], num_codes=16, num_tokens=4)


def model_with_head(tokenizer) -> VisionLanguageActionModel:
    torch.manual_seed(0)
    options = {"width": 48, "layers": 2, "heads": 4, "feed_forward": 64, "image_tokens": 4}
    backbone = build(Part(name="nano", options=options), BACKBONES, 12, (4, 4), tokenizer.size)
    head = build(Part(name="l1_chunk", options={"hidden": 32}), HEADS, backbone.width, 4 + 4, 5, 7, 3)
    return VisionLanguageActionModel(backbone, tokenizer, head).eval()


def test_any_text_survives_the_tokenizer_and_known_words_are_single_tokens(tokenizer):
    for text in [*SENTENCES, "Schiebe den Würfel nach links!", "推"]:
        ids = tokenizer.encode([text])[0].tolist()
        assert tokenizer.tokenizer.decode(ids).strip() == text
    assert len(tokenizer.encode(["push the cube"])[0]) == 3


def test_latent_ids_and_codes_are_inverse_and_only_latent_ids_are_legal(tokenizer):
    codes = torch.randint(0, 16, (5, 4))
    ids = tokenizer.latent_ids(codes)
    assert torch.equal(tokenizer.codes(ids), codes)
    assert tokenizer.tokenizer.id_to_token(int(ids[0, 0])) == f"<ACT_{int(codes[0, 0])}>"
    legal = tokenizer.legal(torch.zeros(1, tokenizer.size))
    assert torch.isfinite(legal).sum() == 16
    assert torch.isfinite(legal[0, tokenizer.latent_ids(torch.arange(16))]).all()


def test_a_tokenizer_survives_its_json(tokenizer):
    again = LatentTokenizer.from_json(tokenizer.to_json(), 16, 4)
    assert torch.equal(again.encode(SENTENCES), tokenizer.encode(SENTENCES))


def test_padding_changes_nothing(tokenizer):
    model = model_with_head(tokenizer)
    features = torch.randn(1, 16, 12)
    alone = tokenizer.encode([prompt(SENTENCES[0])])
    padded = tokenizer.encode([prompt(SENTENCES[0]), prompt(SENTENCES[2] + " " + SENTENCES[1])])[:1]
    assert padded.shape[1] > alone.shape[1]
    torch.testing.assert_close(
        model.act(features, alone, SENSES), model.act(features, padded, SENSES), atol=1e-5, rtol=1e-4
    )


def test_tokens_chosen_with_a_cache_are_those_of_the_full_forward_pass(tokenizer):
    model = model_with_head(tokenizer)
    features, ids = torch.randn(3, 16, 12), tokenizer.encode([prompt(s) for s in SENTENCES])
    chosen = model.think(features, ids).codes
    naive = ids
    for _ in range(4):
        logits = model.backbone(features, naive, naive != tokenizer.pad_id).logits[:, -1]
        naive = torch.cat([naive, tokenizer.legal(logits).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(tokenizer.latent_ids(chosen), naive[:, -4:])


def test_hidden_states_in_acting_are_those_of_the_teacher_forced_pass_with_the_chosen_tokens(tokenizer):
    model = model_with_head(tokenizer)
    features, ids = torch.randn(2, 16, 12), tokenizer.encode([prompt(s) for s in SENTENCES[:2]])
    thought = model.think(features, ids)
    whole = torch.cat([ids, tokenizer.latent_ids(thought.codes)], dim=1)
    forced = model.backbone(features, whole, whole != tokenizer.pad_id)
    torch.testing.assert_close(thought.image, forced.image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(thought.latent, forced.hidden[:, -5:-1], atol=1e-5, rtol=1e-4)


def test_the_loss_of_the_head_reaches_the_backbone_through_the_chosen_tokens(tokenizer):
    model = model_with_head(tokenizer).train()
    features, ids = torch.randn(2, 16, 12), tokenizer.encode([prompt(s) for s in SENTENCES[:2]])
    model.think(features, ids).latent[:, -1].sum().backward()
    assert model.backbone.project[1].weight.grad.abs().sum() > 0
    assert model.backbone.embeddings.weight.grad.abs().sum() > 0


def test_a_latent_token_is_predicted_without_seeing_itself_or_later_ones(tokenizer):
    model = model_with_head(tokenizer)
    features, ids = torch.randn(1, 16, 12), tokenizer.encode([prompt(SENTENCES[0])])
    base = torch.cat([ids, tokenizer.latent_ids(torch.tensor([[1, 2, 3, 4]]))], dim=1)
    changed = torch.cat([ids, tokenizer.latent_ids(torch.tensor([[1, 2, 9, 9]]))], dim=1)
    before, after = (model.backbone(features, x, x != tokenizer.pad_id).logits for x in (base, changed))
    end = ids.shape[1]
    torch.testing.assert_close(before[:, : end + 2], after[:, : end + 2])
    assert not torch.allclose(before[:, end + 2], after[:, end + 2])


def test_one_batch_of_latents_can_be_overfitted_and_depends_on_image_and_instruction(tokenizer):
    model = model_with_head(tokenizer).train()
    features = torch.randn(2, 16, 12).repeat_interleave(2, 0)
    ids = tokenizer.encode([prompt(SENTENCES[0]), prompt(SENTENCES[1])] * 2)
    codes = torch.randint(0, 16, (4, 4))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        terms = model.latent_loss(features, ids, codes)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert terms["accuracy"] == 1
    assert torch.equal(model.eval().think(features, ids).codes, codes)


def test_steps_beyond_the_end_of_an_episode_do_not_count():
    head = build(Part(name="l1_chunk"), HEADS, 48, 4 + 4, 5, 7, 3)
    predicted, actions = torch.zeros(1, 5, 7), torch.ones(1, 5, 7)
    actions[:, 3:] = 100
    mask = torch.tensor([[True, True, True, False, False]])
    assert head.loss(predicted, actions, mask).item() == pytest.approx(1.0)


def test_an_unknown_backbone_or_option_is_named():
    with pytest.raises(ConfigError, match="unknown name 'huge'; the known ones are nano"):
        build(Part(name="huge"), BACKBONES, 12, (4, 4), 300)
    with pytest.raises(ConfigError, match="Did you mean width"):
        build(Part(name="nano", options={"widht": 5}), BACKBONES, 12, (4, 4), 300)


def test_statistics_are_those_of_numpy_and_their_transform_is_invertible():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (n, 4)).astype(np.float32) for n in (5, 1, 60)]
    whole = np.concatenate(parts)
    statistics = Statistics.of(parts)
    np.testing.assert_allclose(statistics.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, whole.std(0), rtol=1e-5)
    np.testing.assert_array_equal(statistics.high, whole.max(0))
    np.testing.assert_allclose(statistics.denormalise(statistics.normalise(whole)), whole, atol=1e-5)
    assert Statistics.from_json(statistics.to_json()) == statistics


def test_a_constant_dimension_is_named_and_does_not_blow_up():
    values = np.stack([np.linspace(-1, 1, 50), np.full(50, -1.0), np.zeros(50)], axis=1).astype(np.float32)
    statistics = Statistics.of([values])
    assert statistics.constant == [1, 2]
    assert np.abs(statistics.normalise(values)).max() < 5
    np.testing.assert_allclose(statistics.denormalise(statistics.normalise(values)), values, atol=1e-6)


def test_absent_or_broken_statistics_are_refused():
    with pytest.raises(StatisticsError, match="no action statistics"):
        Statistics.from_json(None)
    with pytest.raises(StatisticsError, match="not finite in dimensions"):
        Statistics.of([np.array([[1.0, np.nan]], dtype=np.float32)])
