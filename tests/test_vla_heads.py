"""Every head: learns a chunk, ignores what lies beyond the end, acts on what it was trained on, survives a save."""

import json

import numpy as np
import pytest
import torch
from scipy.fft import dct
from tiny_models import SEES, SENTENCES, TOKENS, nano, prepared
from tokenizers import ByteLevelBPETokenizer
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from core.checkpoint import CheckpointError
from vla.checkpoint import VlaDescription, load, make_head, save
from vla.heads.fast import FastError, FastHead
from vla.heads.interface import HeadSizes, Seen, TokenHead, Words
from vla.images import ImageForm
from vla.model import VisionLanguageActionModel
from vla.parts import HEADS, Part, find

HORIZON, DIMS, SENSES = 5, 3, 2
OPTIONS = {
    "l1_chunk": {"hidden": 64, "dropout": 0.0},
    "l1_pool": {"hidden": 32, "heads": 4},
    "flow": {"hidden": 64, "dropout": 0.0},
    "bins": {"bins": 32},
    "fast": {"words": 200},
}


def chunks(number: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth chunks between -1 and 1."""
    draws = np.random.default_rng(seed)
    steps = np.linspace(0, 1, HORIZON)[None, :, None]
    phase, rate = draws.uniform(-3, 3, (2, number, 1, DIMS))
    return (0.9 * np.sin(phase + rate * steps)).astype(np.float32)


def described(name: str) -> VlaDescription:
    return VlaDescription(
        images=ImageForm(feature_dim=12, grid=(4, 4)),
        views=("front",),
        backbone=Part(name="nano", options={"width": 48, "feed_forward": 64, "projector_width": 64, "dropout": 0.0}),
        setting=SEES,
        head=Part(name=name, options=OPTIONS[name]),
        horizon=HORIZON,
        action_dims=DIMS,
        proprioception_dims=SENSES if find(Part(name=name), HEADS).kind.reads_senses else 0,
    )


@pytest.fixture(params=HEADS)
def model(request) -> VisionLanguageActionModel:
    torch.manual_seed(0)
    form = described(request.param)
    backbone = nano().eval()
    backbone.project[0].p = backbone.project[3].p = 0.0
    head = make_head(form, backbone)
    if isinstance(head, TokenHead):
        head.fit(chunks())
        head.first_id = backbone.add_tokens(head.names)[0]
    backbone.vocabulary()[0].data.normal_(std=0.3)  # new tokens are all alike at first
    made = VisionLanguageActionModel(backbone, head)
    made.form = form
    return made


def batch(model: VisionLanguageActionModel, size: int = 3) -> tuple[dict, torch.Tensor]:
    draws = np.random.default_rng(1)
    features = draws.normal(size=(size, 1, 16, 12)).astype(np.float32)
    senses = torch.from_numpy(draws.normal(size=(size, model.form.proprioception_dims)).astype(np.float32))
    return prepared(model.backbone, features, SENTENCES[:size]), senses


def losses_of(model: VisionLanguageActionModel, inputs: dict, senses: torch.Tensor, actions: torch.Tensor):
    """The loss as often as it is asked for; of a head that reads hidden states, on many copies of them."""
    mask = torch.ones(len(actions), HORIZON, dtype=torch.bool)
    if isinstance(model.head, TokenHead):
        while True:
            yield model.action_loss(inputs, senses, actions, mask)["loss"]
    seen = model.think(inputs).seen
    copies = Seen(*(tensor.repeat_interleave(32, 0) for tensor in (seen.image, seen.hidden, senses)))
    while True:
        yield model.head.loss(copies, actions.repeat_interleave(32, 0), mask.repeat_interleave(32, 0))["loss"]


def test_a_batch_of_chunks_is_learned_and_then_acted(model):
    inputs, senses = batch(model)
    actions = torch.from_numpy(chunks(3, seed=2))
    of_words = isinstance(model.head, TokenHead)
    optimizer = torch.optim.Adam(model.parameters() if of_words else model.head.parameters(), 3e-3)
    torch.manual_seed(0)
    losses = losses_of(model.train(), inputs, senses, actions)
    for _ in range(200 if of_words else 300):
        optimizer.zero_grad()
        next(losses).backward()
        optimizer.step()
    acted = model.eval().act(inputs, senses, torch.Generator().manual_seed(0))
    assert acted.shape == actions.shape
    errors = (acted[:, None] - actions[None]).abs().mean((2, 3))
    assert errors.argmin(1).tolist() == [0, 1, 2]
    assert errors.diagonal().max() < 0.25


def test_steps_beyond_the_end_of_an_episode_do_not_count(model):
    inputs, senses = batch(model)
    actions, mask = torch.from_numpy(chunks(3)), torch.ones(3, HORIZON, dtype=torch.bool)
    mask[:, 3:] = False
    found = []
    for beyond in (0.0, 0.8):
        actions[:, 3:] = beyond
        torch.manual_seed(0)
        found.append(model.action_loss(inputs, senses, actions, mask)["loss"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    actions[:, 0] += 0.3
    torch.manual_seed(0)
    assert model.action_loss(inputs, senses, actions, mask)["loss"].item() != pytest.approx(found[0], rel=1e-3)


def test_a_policy_is_read_as_it_was_written(model, tmp_path):
    inputs, senses = batch(model)
    save(tmp_path, model, model.form, {})
    again, form, _ = load(tmp_path)
    assert form == model.form
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    torch.testing.assert_close(again.act(inputs, senses, seeds[0]), model.eval().act(inputs, senses, seeds[1]))


def test_labelled_latent_actions_are_learned_beside_the_actions(model):
    inputs, senses = batch(model)
    actions, mask = torch.from_numpy(chunks(3)), torch.ones(3, HORIZON, dtype=torch.bool)
    codes = torch.tensor([[1, 2, 3, 4]] * 3)
    model.eval()
    terms = model.action_loss(inputs, senses, actions, mask, codes)
    ids = model.latents.ids(codes)
    logits = model.backbone(inputs, ids).logits
    if isinstance(model.head, TokenHead):  # words of the actions follow, not the end
        logits = logits[:, :-1]
    else:
        ids = torch.cat([ids, torch.full_like(ids[:, :1], model.latents.end_id)], dim=1)
    torch.testing.assert_close(terms["latent_loss"], torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids))
    assert "latent_loss" not in model.action_loss(inputs, senses, actions, mask)


def test_the_states_that_are_trained_on_are_those_that_are_acted_on(model):
    """The published code trains on one position and acts on the one before."""
    if isinstance(model.head, TokenHead):
        pytest.skip("its words follow the latent tokens in both")
    inputs, senses = batch(model)
    seen = []
    for name in ("loss", "act"):
        method = getattr(model.head, name)
        setattr(model.head, name, lambda given, *words, method=method: seen.append(given) or method(given, *words))
    actions, mask = torch.from_numpy(chunks(3)), torch.ones(3, HORIZON, dtype=torch.bool)
    model.eval().action_loss(inputs, senses, actions, mask)
    trained = seen[0]
    model.act(inputs, senses, torch.Generator())
    acted = seen[-1]
    assert trained.states.shape == (3, TOKENS + 1, model.backbone.width)
    torch.testing.assert_close(trained.states, acted.states, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trained.image, acted.image, atol=1e-5, rtol=1e-4)


def test_words_are_read_at_the_positions_at_which_they_are_written(model):
    if not isinstance(model.head, TokenHead):
        pytest.skip("writes no words")
    inputs, senses = batch(model)
    steps, chosen = [], []
    legal, actions = model.head.legal, model.head.actions
    model.head.legal = lambda logits, written: steps.append(logits) or legal(logits, written)
    model.head.actions = lambda written: chosen.append(written) or actions(written)
    acted = model.eval().act(inputs, senses)
    assert acted.shape == (3, HORIZON, DIMS)
    ids = torch.cat([model.latents.ids(model.think(inputs).codes), chosen[0][:, :-1]], dim=1)
    forced = model.backbone(inputs, ids).logits[:, TOKENS:]
    torch.testing.assert_close(torch.stack(steps, dim=1), forced, atol=1e-5, rtol=1e-4)
    learned, loss = [], model.head.loss
    model.head.tokens = lambda *_: Words(chosen[0], torch.ones_like(chosen[0], dtype=torch.bool))
    model.head.loss = lambda logits, words: learned.append(logits) or loss(logits, words)
    model.action_loss(inputs, senses, acted, torch.ones(3, HORIZON, dtype=torch.bool))
    torch.testing.assert_close(learned[0], forced, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bins", "fast"])
def test_words_are_inverse_to_chunks_and_nothing_else_can_be_written(name):
    kind, options = find(Part(name=name, options=OPTIONS[name]), HEADS)
    head = kind(options, HeadSizes(8, 1, TOKENS, HORIZON, DIMS, 0))
    head.fit(chunks(400))
    head.first_id = 100
    actions = torch.from_numpy(chunks(9, seed=3))
    words = head.tokens(actions, torch.ones(9, HORIZON, dtype=torch.bool))
    torch.testing.assert_close(head.actions(words.ids), actions, atol=0.12, rtol=0)
    torch.manual_seed(0)
    for _ in range(5):
        written = torch.zeros(4, 0, dtype=torch.long)
        while not head.is_complete(written):
            logits = head.legal(torch.randn(4, 100 + len(head.names) + 50), written)
            written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
            assert 100 <= int(written.min()) <= int(written.max()) < 100 + len(head.names)
        assert head.actions(written).shape == (4, HORIZON, DIMS)


def test_words_of_frequencies_are_fewer_than_numbers_and_too_few_words_are_refused():
    sizes = HeadSizes(8, 1, TOKENS, HORIZON, DIMS, 0)
    kind, options = find(Part(name="fast", options={"words": 400}), HEADS)
    head = kind(options, sizes)
    head.fit(chunks(2000))
    words = head.tokens(torch.from_numpy(chunks(50)), torch.ones(50, HORIZON, dtype=torch.bool))
    assert words.counts.sum(1).float().mean() - 1 < 0.7 * HORIZON * DIMS
    kind, options = find(Part(name="fast", options={"words": 8}), HEADS)
    with pytest.raises(FastError, match=r"whole numbers occur, and head.options.words is 8; raise it"):
        FastHead(options, sizes).fit(chunks())


def published_fast(folder, data: np.ndarray, least: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of actions made and saved as the published code does: BPE over UTF-8 of shifted frequencies."""
    numbers = np.around(dct(data.astype(float), axis=1, norm="ortho") * 10).astype(int).reshape(len(data), -1)
    least = int(numbers.min()) if least is None else least
    texts = ["".join(map(chr, row - least)) for row in numbers]
    letters = [chr(letter) for letter in range(numbers.max() - least + 1)]
    bpe = ByteLevelBPETokenizer()
    options = {"vocab_size": 600, "min_frequency": 2, "special_tokens": [], "max_token_length": 10000}
    trainer = BpeTrainer(**options, initial_alphabet=letters, show_progress=False)
    bpe._tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False)
    made.save_pretrained(folder)
    form = {"processor_class": "UniversalActionProcessor", "scale": 10, "min_token": least, "vocab_size": 600}
    code = {"auto_map": {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(form | code | {"time_horizon": None, "action_dim": None}))
    (folder / "processing_action_tokenizer.py").write_text("raise RuntimeError('code of the hub was run')")
    return made


def fast_head(horizon: int = HORIZON, **options) -> FastHead:
    kind, found = find(Part(name="fast", options=options), HEADS)
    return kind(found, HeadSizes(8, 1, TOKENS, horizon, DIMS, 0))


# The published one has -354: no movement is a letter of two bytes, and so is nearly every other number.
@pytest.mark.parametrize("least", [None, -354])
def test_a_published_tokenizer_of_actions_is_read_without_its_code(tmp_path, least):
    theirs = published_fast(tmp_path, chunks(2000), least)
    head = fast_head(path=str(tmp_path), scale=3.0)
    head.fit(chunks(200))
    actions = torch.from_numpy(chunks(20, seed=5))
    words = head.tokens(actions, torch.ones(20, HORIZON, dtype=torch.bool))
    shift = json.loads((tmp_path / "processor_config.json").read_text())["min_token"]
    for row, counts, chunk in zip(words.ids, words.counts, actions.double().numpy(), strict=True):
        frequencies = np.around(dct(chunk, axis=0, norm="ortho") * 10).astype(int).flatten()
        expected = theirs("".join(map(chr, frequencies - shift)))["input_ids"]
        assert row[counts].tolist() == [*expected, len(head.names) - 1]
        assert theirs.decode(expected) == "".join(map(chr, frequencies - shift))
    torch.testing.assert_close(head.actions(words.ids), actions, atol=0.12, rtol=0)
    assert len(head.names) == len(theirs) + 1


@pytest.mark.parametrize("least", [-354, -118])
def test_words_of_bytes_never_end_within_a_letter(tmp_path, least):
    theirs = published_fast(tmp_path, chunks(2000), least)
    head = fast_head(path=str(tmp_path))
    head.fit(chunks(200))
    head.first_id = 7
    torch.manual_seed(0)
    split = 0
    for _ in range(20):
        written = torch.zeros(4, 0, dtype=torch.long)
        while not head.is_complete(written):
            allowed = head.legal(torch.randn(4, 7 + len(head.names) + 3), written)
            written = torch.cat([written, allowed.argmax(-1, keepdim=True)], dim=1)
        assert head.actions(written).shape == (4, HORIZON, DIMS)
        for row in (written - 7).tolist():
            kept = [word for word in row if word < len(theirs)]
            assert len(theirs.decode(kept)) == HORIZON * DIMS
            assert "\ufffd" not in theirs.decode(kept)
            split += sum("\ufffd" in theirs.decode([word]) for word in kept)
    assert split > 0  # words that are no whole letters by themselves were among them


def test_words_that_were_read_are_saved_with_the_policy(tmp_path):
    published_fast(tmp_path, chunks(2000))
    head, saved = fast_head(path=str(tmp_path)), tmp_path / "saved"
    head.fit(chunks(200))
    saved.mkdir()
    head.save_form(saved)
    again = fast_head(path="a folder of another machine")
    again.load_form(saved)
    actions, mask = torch.from_numpy(chunks(5)), torch.ones(5, HORIZON, dtype=torch.bool)
    torch.testing.assert_close(again.tokens(actions, mask).ids, head.tokens(actions, mask).ids)
    torch.testing.assert_close(
        again.actions(head.tokens(actions, mask).ids), head.actions(head.tokens(actions, mask).ids)
    )


def test_a_tokenizer_that_cannot_spell_the_demonstrations_or_is_none_is_refused(tmp_path):
    published_fast(tmp_path, chunks(2000))
    with pytest.raises(
        FastError, match=r"have the whole numbers .*, the tokenizer .* spells .*leave head.options.path"
    ):
        fast_head(path=str(tmp_path)).fit(chunks(200) - 9)
    with pytest.raises(FastError, match="has no words for some of the whole numbers"):
        fast_head(path=str(tmp_path)).fit(chunks(200) + 40)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:500])
    with pytest.raises(FastError, match=r"tokenizer.json is missing, damaged or cut off"):
        fast_head(path=str(tmp_path)).fit(chunks(200))
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(FastError, match=r"is missing, damaged|has no \['min_token', 'scale'\]"):
        fast_head(path=str(tmp_path)).fit(chunks(200))
    with pytest.raises(CheckpointError, match="there is no folder nobody/nothing"):
        fast_head(path="nobody/nothing").fit(chunks(200))


def test_the_end_of_flow_does_not_depend_on_who_draws(model):
    if type(model.head).__name__ != "FlowHead":
        pytest.skip("draws nothing")
    inputs, senses = batch(model)
    first, second, other = (model.eval().act(inputs, senses, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, other)


def test_the_published_head_reads_the_latent_tokens_themselves():
    kind, options = find(Part(name="l1_pool", options=OPTIONS["l1_pool"]), HEADS)
    head = kind(options, HeadSizes(16, 4, TOKENS, HORIZON, DIMS, 0)).eval()
    image, states, none = torch.randn(2, 4, 16), torch.randn(2, TOKENS + 1, 16), torch.zeros(2, 0)
    acted = head.act(Seen(image, states, none))
    changed = states.clone()
    changed[:, 0] = 0
    torch.testing.assert_close(head.act(Seen(image, changed, none)), acted)
    changed[:, -1] = 0
    assert not torch.allclose(head.act(Seen(image, changed, none)), acted)
    assert acted.abs().max() <= 1
