"""Every backbone: what is read at once is what is read token by token, and it is the same after a save."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CODES, FAMILIES, SEES, SENTENCES, SIDE, TOKENS, fresh, hub, nano, prepared, prismatic, timm_lm

from core.checkpoint import CheckpointError
from core.packaged import WeightsError
from vla.backbones.interface import Backbone, Setting
from vla.checkpoint import VlaDescription, load, save
from vla.images import ImageError, ImageForm
from vla.lora import LoraConfig, add_adapters, merge
from vla.model import VisionLanguageActionModel
from vla.parts import BACKBONES, Part, find
from vla.tokens import LegalLatents

KINDS = ("nano", "timm_lm", "prismatic", *FAMILIES)
TWO = SEES.model_copy(update={"views": 2})


@pytest.fixture(scope="module", params=KINDS)
def part(request, tmp_path_factory) -> Part:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    if request.param == "nano":
        sizes = {"width": 48, "feed_forward": 64, "projector_width": 64}
        return Part(name="nano", options=sizes)
    if request.param in FAMILIES:
        return hub(request.param, folder)
    return {"timm_lm": timm_lm, "prismatic": prismatic}[request.param](folder)


@pytest.fixture(scope="module")
def backbone(part) -> Backbone:
    torch.manual_seed(0)
    made = fresh(part).eval()
    for rows in made.vocabulary():  # new tokens are all alike at first
        rows.data.normal_(std=0.3)
    return made


def images(backbone: Backbone, batch: int = 2, views: int = 1, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    if backbone.reads_features:
        return draws.normal(size=(batch, views, 16, 12)).astype(np.float16)
    return draws.integers(0, 256, (batch, views, 40, 48, 3), dtype=np.uint8)


def inputs_of(backbone: Backbone, batch: int = 2, views: int = 1) -> dict:
    return prepared(backbone, images(backbone, batch, views), [SENTENCES[0], f"{SENTENCES[2]} {SENTENCES[1]}"][:batch])


def test_what_is_chosen_token_by_token_is_what_one_pass_over_all_tokens_says(backbone):
    model, inputs = VisionLanguageActionModel(backbone).eval(), inputs_of(backbone)
    thought = model.think(inputs)
    forced = backbone(inputs, model.latents.ids(thought.codes))
    torch.testing.assert_close(thought.seen.hidden, forced.hidden, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(thought.seen.image, forced.image, atol=1e-5, rtol=1e-4)
    assert forced.image.shape == (2, backbone.image_tokens, backbone.width)
    greedy = model.latents.legal(forced.logits[:, :-1]).argmax(-1)
    assert torch.equal(model.latents.codes(greedy), thought.codes)


def test_what_is_written_after_the_latent_action_is_read_as_in_one_pass_and_as_in_training(backbone):
    model, inputs = VisionLanguageActionModel(backbone).eval(), inputs_of(backbone)
    thought = model.think(inputs)
    words, out, hidden = model.latents.ids(torch.tensor([[3, 9, 0], [15, 1, 3]])), thought.seen, []
    for word in words.split(1, dim=1):
        out = backbone(None, word, out.memory, keep=True)
        hidden.append(out.hidden)
    ids = torch.cat([model.latents.ids(thought.codes), words], dim=1)
    forced = backbone(inputs, ids).hidden
    torch.testing.assert_close(torch.cat([thought.seen.hidden, *hidden], dim=1), forced, atol=1e-5, rtol=1e-4)
    drops = [part for part in backbone.modules() if isinstance(part, torch.nn.Dropout) and part.p]
    chances = [part.p for part in drops]
    for part in drops:
        part.p = 0.0
    trained = backbone.train()(inputs, ids).hidden  # some models mask otherwise in training
    backbone.eval()
    for part, chance in zip(drops, chances, strict=True):
        part.p = chance
    torch.testing.assert_close(trained, forced, atol=1e-5, rtol=1e-4)


def test_generate_of_transformers_says_what_our_model_thinks_then_the_end(part, backbone):
    if not part.name.startswith("hub"):
        pytest.skip("generates by our own loop alone")
    inputs = inputs_of(backbone)
    others = {name.removeprefix("vlm_"): value for name, value in inputs.items() if name.startswith("vlm_")}
    length = inputs["ids"].shape[1]
    said = backbone.model.generate(
        input_ids=inputs["ids"],
        attention_mask=inputs["mask"].long(),
        max_new_tokens=TOKENS + 1,
        do_sample=False,
        logits_processor=[LegalLatents(backbone.latents, length)],
        **others,
    )[:, length:]
    thought = VisionLanguageActionModel(backbone).eval().think(inputs)
    assert torch.equal(backbone.latents.codes(said[:, :TOKENS]), thought.codes)
    assert said[:, TOKENS:].tolist() == [[backbone.latents.end_id]] * 2


def test_padding_changes_nothing(backbone):
    both = inputs_of(backbone)
    alone = prepared(backbone, images(backbone)[:1], SENTENCES[:1])
    assert alone["ids"].shape[1] < both["ids"].shape[1]
    ids = torch.full((1, 2), backbone.latents.first_id)
    padded = backbone(both, ids.repeat(2, 1)).hidden[:1]
    torch.testing.assert_close(backbone(alone, ids).hidden, padded, atol=2e-5, rtol=1e-3)


def test_a_latent_token_is_predicted_without_seeing_itself_or_later_ones(backbone):
    inputs = inputs_of(backbone)
    base, changed = (backbone.latents.ids(torch.tensor([codes] * 2)) for codes in ([1, 2, 3, 4], [1, 2, 9, 9]))
    before, after = (backbone(inputs, ids).logits for ids in (base, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_image_and_instruction_matter(backbone):
    none = torch.zeros(1, 0, dtype=torch.long)
    seen = backbone(prepared(backbone, images(backbone, 1), SENTENCES[:1]), none).hidden
    other_image = backbone(prepared(backbone, images(backbone, 1, seed=1), SENTENCES[:1]), none).hidden
    other_words = backbone(prepared(backbone, images(backbone, 1), SENTENCES[1:2]), none).hidden
    assert not torch.allclose(seen, other_image, atol=1e-6)
    assert not torch.allclose(seen, other_words, atol=1e-6)


def test_several_cameras_are_seen_in_order(part):
    torch.manual_seed(0)
    two = fresh(part, TWO).eval()
    shown = images(two, 1, 2)
    none = torch.zeros(1, 0, dtype=torch.long)
    seen = two(prepared(two, shown, SENTENCES[:1]), none)
    assert seen.image.shape[1] == two.image_tokens
    swapped = two(prepared(two, shown[:, ::-1].copy(), SENTENCES[:1]), none)
    assert not torch.allclose(seen.hidden, swapped.hidden, atol=1e-6)


def test_new_tokens_start_from_the_mean_of_the_old_and_are_known_by_name(part):
    torch.manual_seed(0)
    backbone = fresh(part)
    known = len(backbone.tokenizer)
    ids = backbone.add_tokens(["<NEW_0>", "<NEW_1>"])
    assert ids == [known, known + 1]
    for rows in backbone.vocabulary():
        mean = rows[:known].mean(0)
        torch.testing.assert_close(rows[ids], mean.expand(2, -1), atol=1e-6, rtol=1e-5)
    assert backbone.tokenizer("<NEW_1>", add_special_tokens=False)["input_ids"][-1] == known + 1


def description(part: Part, backbone: Backbone, **changes) -> VlaDescription:
    form = {"images": ImageForm(feature_dim=12, grid=(4, 4)), "views": ("front",)}
    return VlaDescription(**form, backbone=part, setting=SEES, **changes)


def test_a_checkpoint_is_read_as_it_was_written(part, backbone, tmp_path):
    save(tmp_path, VisionLanguageActionModel(backbone), description(part, backbone), {"gap_s": 0.4})
    again, _, facts = load(tmp_path)
    assert facts == {"gap_s": 0.4}
    ids = torch.full((2, 1), backbone.latents.first_id)
    torch.testing.assert_close(
        again.backbone(inputs_of(again.backbone), ids).logits, backbone(inputs_of(backbone), ids).logits
    )
    assert again.latents == backbone.latents


def test_adapters_change_nothing_at_first_then_learn_are_saved_alone_and_merge(part, tmp_path):
    if part.name == "nano":
        pytest.skip("a network without pretrained weights has nothing to adapt")
    torch.manual_seed(0)
    backbone = fresh(part).eval()
    model, inputs = VisionLanguageActionModel(backbone), inputs_of(backbone)
    codes = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    plain = model.latent_loss(inputs, codes)["loss"]
    new = list(range(model.latents.first_id, model.latents.first_id + CODES))
    add_adapters(backbone, LoraConfig(rank=2), new)
    torch.testing.assert_close(model.latent_loss(inputs, codes)["loss"], plain)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model.latent_loss(inputs, codes)["loss"].backward()
        optimizer.step()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not [name for name in idle if part.name in ("timm_lm", "prismatic")]
    learned = model.latent_loss(inputs, codes)["loss"].detach()
    assert learned < 0.9 * plain
    form = description(part, backbone, lora=LoraConfig(rank=2))
    save(tmp_path, model, form, {})
    whole = sum(tensor.numel() for tensor in backbone.state_dict().values())
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values()) < whole / 2
    torch.manual_seed(0)  # what has no pretrained weights in this test, a random tower, is drawn as it was
    again, _, _ = load(tmp_path)
    torch.testing.assert_close(again.latent_loss(inputs, codes)["loss"], learned)
    merge(again.backbone)
    torch.testing.assert_close(again.latent_loss(inputs, codes)["loss"], learned, atol=1e-4, rtol=1e-4)
    assert set(again.backbone.state_dict()) == set(fresh(part).state_dict())


def test_gradient_checkpointing_changes_no_gradient(part):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        backbone = fresh(part)
        backbone.train()
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            backbone.use_checkpointing()
        model = VisionLanguageActionModel(backbone)
        model.latent_loss(inputs_of(backbone), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))["loss"].backward()
        found.append(backbone.vocabulary()[0].grad)
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda: np.zeros((1, 1, 3, 40, 40), np.uint8), "the channels come first, move them to the end"),
        (lambda: np.zeros((1, 1, 40, 40, 4), np.uint8), "not \\(batch, views, height, width, 3\\)"),
        (lambda: np.zeros((1, 1, 40, 40, 3), np.float32), "images are float32"),
        (lambda: np.zeros((1, 40, 40, 3), np.uint8), "images are uint8 \\(1, 40, 40, 3\\)"),
    ],
)
def test_wrong_images_are_refused(tmp_path, made, problem):
    for part in (timm_lm(tmp_path / "a"), hub("llava", tmp_path / "b")):
        with pytest.raises(ImageError, match=problem):
            prepared(fresh(part), made(), SENTENCES[:1])


def test_features_of_another_form_are_refused():
    with pytest.raises(ImageError, match="features are uint8"):
        prepared(nano(), np.zeros((1, 1, 40, 40, 3), np.uint8), SENTENCES[:1])


def test_a_model_that_cannot_be_had_is_named(tmp_path):
    for part in (
        Part(name="hub:nobody/nothing"),
        Part(name="timm_lm", options={"weights": "random", "language": str(tmp_path / "x")}),
    ):
        with pytest.raises(WeightsError, match=r"nobody/nothing|no language model"):
            fresh(part)


def test_a_released_model_is_read_with_its_own_tokens_in_place(tmp_path):
    part = prismatic(tmp_path / "released")
    files = [load_file(file) for file in (tmp_path / "released").glob("*.safetensors")]
    rows = (files[0] | files[1])["language_model.model.embed_tokens.weight"]
    knows = Part(name="prismatic", options=part.options | {"knows_latents": True})
    told, learned = fresh(knows), fresh(part)
    first = told.latents.first_id
    assert first == learned.latents.first_id
    torch.testing.assert_close(told.vocabulary()[0][first : first + CODES], rows[first : first + CODES])
    assert not torch.allclose(learned.vocabulary()[0][first : first + CODES], rows[first : first + CODES])
    texts = told.prepare(np.zeros((1, 1, SIDE, SIDE, 3), np.uint8), ["push"])["ids"][0]
    assert told.tokenizer.convert_ids_to_tokens(int(texts[-1])) == "▁"
    assert told.tokenizer.bos_token_id not in texts.tolist()


def test_a_released_folder_that_names_code_is_read_without_asking_for_it(tmp_path):
    """As OpenVLA's and its kin are on the hub; transformers would ask on the terminal whether to run that code."""
    part, file = prismatic(tmp_path), tmp_path / "config.json"
    plain = fresh(part).prepare(np.zeros((1, 1, SIDE, SIDE, 3), np.uint8), ["push"])["ids"]
    code = {"AutoConfig": "configuration_prismatic.OpenVLAConfig"}
    code |= {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}
    form = json.loads(file.read_text()) | {"architectures": ["OpenVLAForActionPrediction"], "auto_map": code}
    form |= {"image_resize_strategy": "resize-naive", "use_fused_vision_backbone": True, "torch_dtype": "bfloat16"}
    form["text_config"] |= {"model_type": "llama", "torch_dtype": "bfloat16"}
    file.write_text(json.dumps(form))
    words = tmp_path / "tokenizer_config.json"
    named = {"tokenizer_class": "LlamaTokenizer", "processor_class": "PrismaticProcessor"}
    named |= {"auto_map": {"AutoProcessor": "processing_prismatic.PrismaticProcessor"}}
    words.write_text(json.dumps(json.loads(words.read_text()) | named))
    for name in ("configuration_prismatic", "modeling_prismatic", "processing_prismatic"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('code of the hub was run')")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.input", lambda *words: asked.append(words) or "n")
        told = fresh(part)
    assert not asked
    assert torch.equal(told.prepare(np.zeros((1, 1, SIDE, SIDE, 3), np.uint8), ["push"])["ids"], plain)
    assert next(told.parameters()).dtype == torch.float32


def test_damaged_released_files_are_named(tmp_path):
    part, folder = prismatic(tmp_path / "released"), tmp_path / "released"
    file = folder / "model-00002-of-00002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{file.name} is not a safetensors file, or is cut off"):
        fresh(part)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {file.name}, which its index names"):
        fresh(part)
    file.write_bytes(whole)
    tensors = load_file(file)
    gone = sorted(name for name in tensors if name.startswith("language_model"))[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file)
    with pytest.raises(CheckpointError, match="lacks 1 tensors of the model"):
        fresh(part)
    save_file(tensors | {gone: torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=f"{gone} has shape"):
        fresh(part)


def test_a_backbone_that_knows_no_latent_tokens_thinks_none(tmp_path):
    torch.manual_seed(0)
    kind, options = find(hub("llava", tmp_path / "model"), BACKBONES)
    backbone = kind.fresh(options, Setting(num_codes=0, num_tokens=0), [])
    thought = VisionLanguageActionModel(backbone).eval().think(inputs_of(backbone))
    assert thought.codes.shape == (2, 0)
    assert thought.seen.hidden.shape == (2, 1, backbone.width)
    assert TOKENS not in thought.codes.shape
