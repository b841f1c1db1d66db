"""What is measured of the vision-language-action model is the same computation on both sides of each comparison."""

import json
import subprocess
import sys
from copy import copy, deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from core.benchmark.arithmetic import operations
from core.benchmark.data_sets import make_store, pictures
from core.frame_cache import FramesConfig
from core.labels import LatentLabels
from vla.benchmark.decoding import Regenerating
from vla.benchmark.instructions import LONGEST, instructions
from vla.benchmark.latency import observed, policies
from vla.benchmark.loading import GAP, PUBLISHED, SINGLE, labelled_now, random_labels
from vla.benchmark.memory import FULL, WAYS, cost_of
from vla.benchmark.overhead import BARE, OURS, step_against_bare
from vla.benchmark.padding import FIXED, NONE, SORTED, by_length, gradients, positions, widened
from vla.benchmark.padding import OURS as LONGEST_OF_BATCH
from vla.benchmark.sizes import QUICK, SETTING
from vla.benchmark.steps import BareStep, OurStep
from vla.dataset import LatentDataset, Source
from vla.images import Frames
from vla.parts import HEADS

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
EXACT = {"atol": 2e-5, "rtol": 2e-4}


def our_step(bf16: bool = False) -> OurStep:
    model = QUICK.new_model()
    return OurStep(model, QUICK.batch_of(model.backbone, instructions(QUICK.batch)), bf16)


def trained(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]


def test_the_bare_step_computes_our_loss_and_the_same_new_weights():
    ours, backbone = our_step(), QUICK.new_model().backbone
    bare = BareStep(backbone, QUICK.batch_of(backbone, instructions(QUICK.batch)), False)
    before = [weights.clone() for weights in trained(backbone)]
    losses = [(ours(), bare()) for _ in range(3)]
    assert losses[2][0] < losses[0][0]
    for own, other in losses:
        assert own == pytest.approx(other, abs=1e-5)
    for own, other in zip(trained(ours.objective), trained(backbone), strict=True):
        torch.testing.assert_close(own, other, **EXACT)
    assert any(not torch.equal(old, new) for old, new in zip(before, trained(backbone), strict=True))


def test_a_step_has_one_gradient_of_the_size_of_the_vocabulary_from_looking_words_up():
    step, looked_up = our_step(), []
    embed = step.objective.model.backbone.language.get_input_embeddings()
    embed.register_forward_hook(lambda *_: looked_up.append(1))
    step.gradients()
    assert len(looked_up) == 1
    assert embed.weight.grad.abs().sum() > 0


def test_the_bare_step_pools_patches_as_ours_does():
    sizes = QUICK._replace(pool=2, frame_side=40)
    ours, theirs = sizes.new_model(), sizes.new_model().backbone
    batch = sizes.batch_of(theirs, instructions(2))
    assert ours.backbone.image_tokens == 1
    found = BareStep(theirs, batch, False).loss()
    assert found.item() == pytest.approx(ours.latent_loss(batch, batch["codes"])["loss"].item(), abs=1e-4)


def test_the_training_loop_takes_the_steps_that_the_bare_loops_take():
    numbers = {}
    lines = list(step_against_bare(QUICK, CPU, numbers))
    losses, seconds = numbers["losses"], numbers["seconds"]
    assert len(losses[OURS]) == len(losses[BARE]) == QUICK.rounds + 1
    assert len(seconds[OURS]) == len(seconds[BARE]) == QUICK.rounds
    np.testing.assert_allclose(losses[BARE], losses[OURS], atol=5e-3)
    assert losses[OURS][-1] < losses[OURS][0]
    assert f"{numbers['ours / bare']['median']:9.3f}" in "\n".join(lines)


def average_colours(frames: np.ndarray) -> np.ndarray:
    """Stands for a latent action model: its codes depend on both frames of a transition."""
    sums = frames.astype(int).sum((2, 3))
    return np.concatenate([sums[:, 0], sums[:, 1, :1]], axis=1) % SETTING.num_codes


def test_labels_made_in_the_loader_are_those_that_the_store_would_hold(tmp_path):
    store = make_store(tmp_path / "store", pictures(None, 32), 2, "h264")
    images, labels = Frames(store, FramesConfig(), (32, 32)), random_labels(store)
    pairs = [images("front", labels.episodes, labels.frames + later) for later in (0, GAP)]
    columns = {name: getattr(labels, name) for name in ("episodes", "frames", "views")}
    labels = LatentLabels(info=labels.info, **columns, codes=average_colours(np.stack(pairs, axis=1)))
    source = Source(store, images, QUICK.new_backbone().prepare)
    dataset, indices = LatentDataset(source, labels, "train"), np.array([3, 60, 11, 5, 100])
    stored = dataset.batch(indices, np.random.default_rng(0))
    assert len(torch.unique(stored["codes"])) > 3
    for at_once in (1, 2, 5):
        made = labelled_now(dataset, indices, average_colours, at_once)
        assert set(made) == set(stored)
        assert all(torch.equal(made[name], stored[name]) for name in made)


def test_instructions_are_of_many_lengths_and_the_same_each_time():
    counts = [len(text.split()) for text in instructions(2000)]
    assert instructions(2000) == instructions(2000) != instructions(2000, seed=1)
    assert 7 <= np.median(counts) <= 9
    assert max(counts) <= LONGEST
    assert np.quantile(counts, 0.9) > 12


def test_wider_padding_changes_no_loss_and_sorting_changes_no_mean():
    step, texts = our_step(), instructions(3 * QUICK.batch)
    backbone = step.objective.model.backbone
    plain = [QUICK.batch_of(backbone, texts[at : at + QUICK.batch]) for at in range(0, len(texts), QUICK.batch)]
    pad = backbone.tokenizer.pad_token_id
    losses = gradients(step, plain)
    assert gradients(step, [widened(batch, 60, pad) for batch in plain]) == pytest.approx(losses, abs=1e-4)
    assert widened(plain[0], 60, pad)["ids"].shape == (QUICK.batch, 60)
    assert int(widened(plain[0], 60, pad)["mask"].sum()) == int(plain[0]["mask"].sum())


def test_positions_are_counted_by_hand():
    lengths = np.array([1, 5, 2, 6, 3, 4, 9, 9])
    found = positions(lengths, 2, 2, others=10)
    assert found[NONE] == 39 + 80
    assert found[FIXED] == 72 + 80
    assert found[LONGEST_OF_BATCH] == 2 * (5 + 6 + 4 + 9) + 80
    assert found[SORTED] == 2 * (2 + 6 + 4 + 9) + 80
    order = by_length(lengths, 2, 2)
    assert sorted(order[:4]) == [0, 1, 2, 3]
    assert lengths[order].tolist() == [1, 2, 5, 6, 3, 4, 9, 9]


@pytest.mark.timeout(900)
def test_computing_activations_again_takes_less_memory_and_adapters_train_fewer_weights():
    sizes = QUICK._replace(layers=8, width=64, feed_forward=256, image_size=128, batch=16)
    costs = {name: cost_of(sizes, CPU, way) for name, way in WAYS.items()}
    kept, again, adapters, adapters_again = costs.values()
    assert 0 < again.memory < 0.9 * kept.memory
    assert 0 < adapters_again.memory < 0.9 * adapters.memory
    assert adapters.trained == adapters_again.trained < kept.trained / 2
    assert costs[FULL].losses == pytest.approx(again.losses, abs=2e-2)
    assert adapters.losses == pytest.approx(adapters_again.losses, abs=2e-2)
    assert kept.losses[-1] < kept.losses[0]


@pytest.fixture(scope="module")
def acting():
    cases, published = policies(QUICK)
    for policy in [published, *(policy for case in cases.values() for policy in case)]:
        policy.use_bf16 = False
        policy.model.float()
    # New tokens begin alike, and small weights repeat the last token: which one is chosen would say nothing.
    torch.manual_seed(0)
    language = published.model.backbone.language
    for weights in (language.model.embed_tokens.weight, language.lm_head.weight):
        torch.nn.init.normal_(weights)
    for weights in language.model.layers.parameters():
        torch.nn.init.normal_(weights, std=0.3 if weights.ndim == 2 else 0.0, mean=float(weights.ndim == 1))
    return cases, published


@pytest.mark.parametrize("name", HEADS)
def test_actions_are_the_same_with_a_memory_and_all_read_again(name, acting):
    case, observation = acting[0][name], observed(QUICK)
    kept, again = case.kept.act(observation), case.again.act(observation)
    assert isinstance(case.again.model, Regenerating)
    assert kept.actions.shape == (QUICK.horizon, 7)
    assert kept.actions.std(axis=0).max() > 0
    np.testing.assert_allclose(again.actions, kept.actions, atol=1e-4)


def test_weights_that_are_rounded_once_act_as_those_that_are_rounded_for_every_token(acting):
    for name in HEADS:
        policy = copy(acting[0][name].kept)
        policy.use_bf16 = True
        policy.reset(instructions(1)[0], seed=0)
        before = policy.act(observed(QUICK)).actions
        policy.model = deepcopy(policy.model)
        policy.model.round_products()
        policy.reset(instructions(1)[0], seed=0)
        kinds = {parameter.dtype for parameter in policy.model.backbone.language.model.layers.parameters()}
        assert kinds == {torch.bfloat16, torch.float32}
        assert policy.model.backbone.language.model.embed_tokens.weight.dtype == torch.float32
        np.testing.assert_array_equal(policy.act(observed(QUICK)).actions, before)


def test_the_policy_without_a_memory_reads_the_prompt_for_each_token(acting):
    for name, words in (
        ("l1_pool", 0),
        ("bins", QUICK.horizon * 7),
        ("fast", len(acting[0]["fast"].kept.model.head.words)),
    ):
        policy, read = acting[0][name].again, []
        hook = policy.model.backbone.vision.register_forward_hook(lambda *_, read=read: read.append(1))
        policy.act(observed(QUICK))
        assert len(read) == SETTING.num_tokens + 1 + words
        read.clear()
        acting[0][name].kept.act(observed(QUICK))
        hook.remove()
        assert len(read) == 1


def test_fast_writes_as_many_words_as_a_learned_model_would(acting):
    head = acting[0]["fast"].kept.model.head
    assert 1 < len(head.words) < QUICK.horizon * 7
    error = head.actions(torch.tensor([head.words])) - head.chunk
    assert error.abs().mean() < 0.1


def test_the_published_way_chooses_our_latent_action_and_reads_states_one_earlier(acting):
    cases, published = acting
    ours = cases["l1_pool"].kept
    inputs = ours.model.backbone.prepare(observed(QUICK).images["front"][None, None], ["Push it"])
    theirs, own = published.model.think(inputs), ours.model.think(inputs)
    assert torch.equal(theirs.codes, own.codes)
    assert len(own.codes.unique()) > 1
    torch.testing.assert_close(theirs.seen.image, own.seen.image, **EXACT)
    torch.testing.assert_close(theirs.seen.hidden[:, 1:], own.seen.hidden[:, :-1], **EXACT)


def test_operations_of_a_step_can_be_counted():
    assert operations(our_step().gradients) > 0


@pytest.mark.timeout(900)
def test_the_command_prints_its_tables_and_keeps_the_numbers(tmp_path):
    out = tmp_path / "numbers.json"
    command = [sys.executable, "scripts/benchmark.py", "vla", "--quick", "--only", "2,3,6", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())
    found = numbers["labels_in_the_loader"][f"with the step, {SINGLE} / stored"]["median"]
    assert f"{found:9.3f}" in done.stdout
    assert found > 1
    assert numbers["labels_in_the_loader"][f"loading, {PUBLISHED} / stored"]["median"] > 1
    of_peak = numbers["share_of_peak"]
    assert 0 < of_peak["share of the best rate, float32"]["median"] < 1
    shares = numbers["padding"]["positions, of those without padding"]["64 image tokens, batch 32"]
    assert 1 < shares[SORTED] < shares[LONGEST_OF_BATCH] < shares[FIXED]
    refused = subprocess.run([*command[:4], "--only", "9"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "there are no measurements [9]" in refused.stderr
