"""The model's one way of reading: what is learned is what acts, whatever the backbone and the head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CODES, SENTENCES, TOKENS, nano, prepared

from core.config import ConfigError, parse_command_line
from core.statistics import Statistics, StatisticsError
from vla.backbones.interface import Setting
from vla.finetune import FinetuneVlaConfig
from vla.heads.interface import HeadSizes
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, HEADS, Part, find
from vla.prompt import PromptError, prompt
from vla.tokens import LatentTokens, LegalLatents, TokenError, add_tokens, start_from_mean, train_tokenizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs/vla"
SENSES = torch.zeros(1, 3)


@pytest.fixture
def model() -> VisionLanguageActionModel:
    torch.manual_seed(0)
    backbone = nano()
    sizes = HeadSizes(backbone.width, backbone.image_tokens, TOKENS, 5, 7, 3)
    kind, options = find(Part(name="l1_chunk", options={"hidden": 32}), HEADS)
    return VisionLanguageActionModel(backbone, kind(options, sizes)).eval()


def test_any_text_survives_the_tokenizer_and_known_words_are_single_tokens(model):
    tokenizer = model.backbone.tokenizer
    for text in [*SENTENCES, "Schiebe den Würfel nach links!", "推"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text
    assert len(tokenizer("push the cube")["input_ids"]) == 3


def test_latent_ids_and_codes_are_inverse_and_only_latent_ids_are_legal(model):
    latents, tokenizer = model.latents, model.backbone.tokenizer
    codes = torch.randint(0, CODES, (5, TOKENS))
    ids = latents.ids(codes)
    assert torch.equal(latents.codes(ids), codes)
    assert tokenizer.convert_ids_to_tokens(int(ids[0, 0])) == f"<ACT_{int(codes[0, 0])}>"
    legal = latents.legal(torch.zeros(1, len(tokenizer)))
    assert torch.isfinite(legal).sum() == CODES
    assert torch.isfinite(legal[0, latents.ids(torch.arange(CODES))]).all()


def test_codes_and_tokens_that_do_not_exist_are_named(model):
    with pytest.raises(TokenError, match=r"code indices span 3\.\.16, the model's are 0\.\.15"):
        model.latents.ids(torch.tensor([3, 16]))
    with pytest.raises(TokenError, match="token ids span"):
        model.latents.codes(torch.tensor([0]))


def test_generation_is_kept_to_latent_tokens_and_then_the_end():
    latents = LatentTokens(first_id=10, num_codes=4, num_tokens=2, end_id=1)
    legal = LegalLatents(latents, prompt_length=3)
    for length, allowed in ((3, [10, 11, 12, 13]), (4, [10, 11, 12, 13]), (5, [1])):
        scores = legal(torch.zeros(2, length, dtype=torch.long), torch.randn(2, 20))
        assert [torch.isfinite(row).nonzero().flatten().tolist() for row in scores] == [allowed, allowed]


def test_tokens_are_added_once_in_a_row_and_start_from_the_mean():
    tokenizer = train_tokenizer(SENTENCES, 0)
    size = len(tokenizer)
    assert add_tokens(tokenizer, ["<A>", "<B>"]) == [size, size + 1] == add_tokens(tokenizer, ["<A>", "<B>"])
    with pytest.raises(TokenError, match="do not follow one another"):
        add_tokens(tokenizer, ["<B>", "<A>"])
    rows = torch.arange(12.0).reshape(6, 2)
    start_from_mean(rows, 4, [4, 5])
    assert rows[4].tolist() == rows[5].tolist() == [3.0, 4.0]


def test_padding_changes_nothing(model):
    features = np.random.default_rng(0).normal(size=(2, 1, 16, 12)).astype(np.float32)
    alone = prepared(model.backbone, features[:1], SENTENCES[:1])
    both = prepared(model.backbone, features, [SENTENCES[0], f"{SENTENCES[2]} {SENTENCES[1]}"])
    padded = {name: value[:1] for name, value in both.items()}
    assert padded["ids"].shape[1] > alone["ids"].shape[1]
    torch.testing.assert_close(model.act(alone, SENSES), model.act(padded, SENSES), atol=1e-5, rtol=1e-4)


def test_an_unknown_backbone_or_option_is_named():
    with pytest.raises(ConfigError, match="unknown name 'huge'; the known ones are nano"):
        find(Part(name="huge"), BACKBONES)
    with pytest.raises(ConfigError, match="Did you mean width"):
        find(Part(name="nano", options={"widht": 5}), BACKBONES)
    assert find(Part(name="hub:some/model"), BACKBONES).options.path == "some/model"


def test_a_head_can_be_given_by_its_name_alone():
    words = ["--config", str(CONFIGS / "finetune_quickstart.yaml"), "--out", "a", "--policy.path", "b"]
    words += ["--data.path", "c", "--head"]
    for head in ("l1_pool", "{name: l1_pool}"):
        assert parse_command_line(FinetuneVlaConfig, "", [*words, head]).head == Part(name="l1_pool")


@pytest.mark.parametrize(
    ("instruction", "problem"), [("", "is empty"), (" . ", "is empty"), ("push " * 800, "has 3[0-9]{3} characters")]
)
def test_an_empty_or_endless_instruction_is_refused(instruction, problem):
    with pytest.raises(PromptError, match=problem):
        prompt(instruction)


def test_a_history_stands_before_the_question():
    told = prompt("Push the cube.", [[1, 2], [3, 0]])
    assert told == "So far: <ACT_1><ACT_2><ACT_3><ACT_0> In: What action should the robot take to push the cube?\nOut:"


def test_one_batch_of_latents_can_be_overfitted_and_depends_on_image_and_instruction(model):
    model.train()
    features = np.random.default_rng(0).normal(size=(2, 1, 16, 12)).astype(np.float32).repeat(2, axis=0)
    inputs = prepared(model.backbone, features, SENTENCES[:2] * 2)
    codes = torch.randint(0, CODES, (4, TOKENS))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        terms = model.latent_loss(inputs, codes)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert terms["accuracy"] == 1
    assert torch.equal(model.eval().think(inputs).codes, codes)


def test_codes_chosen_for_training_do_not_depend_on_dropout(model):
    features = np.random.default_rng(0).normal(size=(2, 1, 16, 12)).astype(np.float32)
    inputs = prepared(model.backbone, features, SENTENCES[:2])
    chosen = model.think(inputs).codes
    model.train()
    assert all(torch.equal(model.think_undisturbed(inputs), chosen) for _ in range(3))
    assert model.training
    assert model.backbone.training


def test_several_cameras_are_seen_and_each_matters():
    torch.manual_seed(0)
    backbone = nano(Setting(num_codes=CODES, num_tokens=TOKENS, views=2, feature_dim=12, grid=(4, 4))).eval()
    features = np.random.default_rng(0).normal(size=(1, 2, 16, 12)).astype(np.float32)
    none = torch.zeros(1, 0, dtype=torch.long)
    seen = backbone(prepared(backbone, features, SENTENCES[:1]), none).hidden
    for camera in (0, 1):
        changed = features.copy()
        changed[:, camera] = changed[:, camera, ::-1]
        assert not torch.allclose(backbone(prepared(backbone, changed, SENTENCES[:1]), none).hidden, seen)


def test_statistics_are_those_of_numpy_and_their_transforms_are_invertible():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (n, 4)).astype(np.float32) for n in (5, 1, 60)]
    whole = np.concatenate(parts)
    statistics = Statistics.of(parts)
    np.testing.assert_allclose(statistics.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.std, whole.std(0), rtol=1e-5)
    np.testing.assert_array_equal(statistics.high, whole.max(0))
    np.testing.assert_allclose(statistics.denormalise(statistics.normalise(whole)), whole, atol=1e-5)
    np.testing.assert_allclose(statistics.from_unit(statistics.to_unit(whole)), whole, atol=1e-5)
    outer = np.quantile(whole, [0.01, 0.99], axis=0)
    np.testing.assert_allclose(statistics.to_unit(outer), [[-1] * 4, [1] * 4], atol=1e-5)
    assert Statistics.from_json(statistics.to_json()) == statistics


def test_a_constant_dimension_is_named_and_does_not_blow_up():
    values = np.stack([np.linspace(-1, 1, 50), np.full(50, -1.0), np.zeros(50)], axis=1).astype(np.float32)
    statistics = Statistics.of([values])
    assert statistics.constant == [1, 2]
    assert np.abs(statistics.normalise(values)).max() < 5
    np.testing.assert_allclose(statistics.denormalise(statistics.normalise(values)), values, atol=1e-6)
    assert np.abs(statistics.to_unit(values)).max() < 1.1
    np.testing.assert_allclose(statistics.from_unit(statistics.to_unit(values)), values, atol=1e-6)


def test_a_gripper_that_moves_once_is_mapped_by_its_range():
    values = np.full((1000, 1), 1.0, np.float32)
    values[5] = -1.0
    np.testing.assert_allclose(Statistics.of([values]).to_unit(values), values)
    values[10::2] = 0.999  # its sensor flickers
    np.testing.assert_allclose(Statistics.of([values]).to_unit(values), values)


def test_absent_or_broken_statistics_are_refused():
    with pytest.raises(StatisticsError, match="no action statistics"):
        Statistics.from_json(None)
    with pytest.raises(StatisticsError, match="not finite"):
        Statistics.of([np.array([[1.0, np.nan]], np.float32)])
    with pytest.raises(StatisticsError, match="no labelled episode"):
        Statistics.of([])
