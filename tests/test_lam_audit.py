"""The audit's measurements on codes whose meaning is known: the action, the camera, both, or nothing."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from core.spaces import END_EFFECTOR_DELTA
from lam.audit.mutual_information import code_entropy_bits
from lam.audit.probes import one_hot
from lam.audit.sample import Sample, action_names, describe_action
from lam.audit.sections import codebook, generalisation, hygiene, leakage
from lam.audit.sections.action import action_numbers, of_codes
from lam.audit.sections.decoding import decoding_errors, few_label_error
from lam.audit.sections.leakage import SHIFTS, ShiftedFrames, shift_numbers, shifted, zero_motion_numbers
from lam.audit.sections.nuisances import conditional_bits
from lam.audit.sections.numbers import Null, Number, jackknife_number, mean_number
from lam.audit.sections.regression import components_of, fit_ridge, narrowed
from lam.audit.sections.transplant import donors_of, transplant_numbers
from lam.audit.sections.viewpoint import pair_numbers, view_numbers
from lam.audit.subjects import Said, Subject, references, say_of
from lam.bottlenecks.interface import Quantized
from lam.model import LatentActionModel

EPISODES, LENGTH, VIEWS, CODES = 30, 6, 3, 8


class World:
    """Transitions that three cameras saw, with actions that follow nothing."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        transitions = EPISODES * LENGTH
        each = rng.normal(size=(transitions, 3))
        self.indices = np.repeat(np.arange(transitions), VIEWS)
        self.views = np.tile(np.arange(VIEWS), transitions)
        self.episodes = self.indices // LENGTH
        self.actions = each[self.indices].astype(np.float32)
        self.pose = rng.normal(size=(transitions, 2))[self.indices]
        bins = np.quantile(each, np.arange(1, CODES) / CODES, axis=0)
        of_action = np.stack([np.searchsorted(bins[:, dim], each[:, dim]) for dim in range(3)], axis=1)
        self.of_action = of_action[self.indices]
        self.of_camera = np.stack([self.views, (self.views + 1) % VIEWS, self.views], axis=1)
        self.of_both = np.concatenate([self.of_action[:, :2], self.of_camera[:, :1]], axis=1)
        self.of_pose = np.digitize(self.pose, [-0.7, 0.0, 0.7])
        self.size = len(self.indices)


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def about_action(world):
    """The numbers of the first section by toy encoder."""
    given = (world.actions, world.episodes, ("x", "y", "z"), (1, 5))
    kinds = {"action": world.of_action, "camera": world.of_camera, "both": world.of_both}
    return {name: action_numbers(of_codes(codes, CODES), *given) for name, codes in kinds.items()}


def test_bits_about_the_action_are_there_where_codes_are_actions_and_only_there(about_action):
    bits = {name: row["bits"] for name, row in about_action.items()}
    linear = {name: row["linear_bits"].value for name, row in about_action.items()}
    assert bits["action"].value > 3.0
    assert 2.0 < bits["both"].value < bits["action"].value - 0.2
    assert abs(bits["camera"].value) < 0.05
    assert linear["action"] > 3.5
    assert abs(linear["camera"]) < 0.05
    for one in bits.values():
        assert one.ci95[0] <= one.value <= one.ci95[1]
        assert abs(one.null.value) < 0.1
        assert (one.n, one.episodes, one.null.kind) == (EPISODES * LENGTH * VIEWS, EPISODES, "permutation")


def test_entropy_and_perplexity_stand_beside_their_ceilings(about_action, world):
    camera = about_action["camera"]
    assert camera["entropy"].value == pytest.approx(np.log2(3), abs=0.01)
    assert camera["perplexity"].value == pytest.approx(3.0)
    assert camera["perplexity"].null == Null("ceiling", CODES)
    action = about_action["action"]["entropy"]
    assert action.null.value == pytest.approx(min(9.0, np.log2(world.size)))
    assert action.ci95[0] <= action.value <= action.ci95[1]


def test_probes_decode_the_dimensions_that_codes_hold(about_action):
    both = about_action["both"]
    for kind in ("linear", "mlp"):
        assert about_action["action"][kind].value < 0.15
        assert 0.95 < about_action["camera"][kind].value < 1.1
        assert both[f"{kind} x"].value < 0.15
        assert both[f"{kind} z"].value > 0.9
        assert both[kind].value == pytest.approx(np.mean([both[f"{kind} {dim}"].value for dim in "xyz"]), rel=1e-6)
        assert both[kind].null == Null("chance", 1.0)


def test_a_network_reads_what_a_line_cannot():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(1500, 2))
    actions = np.abs(latents[:, :1]) + 0.1 * rng.normal(size=(1500, 1))
    found = decoding_errors(latents, actions, np.arange(1500) // 10, ["x"])
    assert found["linear"].value > 0.9
    assert found["mlp"].value < 0.3


def test_more_labels_decode_better_and_too_few_are_left_out(world):
    other = World(seed=1)
    codes, known = (one_hot(one.of_action, CODES) for one in (world, other))
    labelled = (known, other.actions, other.episodes)
    given = (codes, world.actions, world.episodes, labelled)
    few, many = (few_label_error(*given, labels, draws=4) for labels in (30, 450))
    assert many.value < 0.15
    assert few.value > 1.5 * many.value
    assert few.ci95[0] < few.value < few.ci95[1]
    assert np.ptp(few.ci95) > np.ptp(many.ci95)
    assert few_label_error(*given, len(known) + 1, draws=1) is None
    nothing = one_hot(other.of_camera, CODES)
    assert few_label_error(one_hot(world.of_camera, CODES), *given[1:3], (nothing, *labelled[1:]), 450, 4).value > 0.95


def test_the_viewpoint_is_told_by_codes_of_the_camera_and_not_by_codes_of_the_action(world):
    given = (CODES, world.indices, world.views, world.episodes, 5)
    action, camera, both = (view_numbers(codes, *given) for codes in (world.of_action, world.of_camera, world.of_both))
    assert action["view_bits"].value == pytest.approx(0.0)
    assert action["view_bits"].null.value > 3.0
    assert (action["kappa"].value, action["agreement"].value) == (1.0, 1.0)
    assert action["camera_accuracy"].value < 0.45
    assert camera["view_bits_share"].value == pytest.approx(1.0)
    assert camera["camera_accuracy"].value == 1.0
    assert camera["kappa"].value < 0
    assert both["view_bits_share"].value == pytest.approx(1 / 3)
    assert both["camera_accuracy"].value == 1.0
    assert both["camera_accuracy"].null.value == pytest.approx(1 / 3)
    assert both["agreement"].value == pytest.approx(2 / 3)


def test_transitions_that_one_camera_saw_say_nothing_about_viewpoints(world):
    alone = np.flatnonzero(world.views == 0)
    given = (world.of_action[alone], CODES, world.indices[alone], world.views[alone], world.episodes[alone], 2)
    assert view_numbers(*given) == {}
    mixed = np.flatnonzero((world.views < 2) | (world.indices % 2 == 0))
    columns = (world.indices[mixed], world.views[mixed], world.episodes[mixed])
    found = view_numbers(world.of_camera[mixed], CODES, *columns, 2)
    assert found["view_bits_share"].value == pytest.approx(1.0)
    assert found["view_bits"].n == EPISODES * LENGTH


def test_each_pair_of_cameras_has_its_own_agreement(world):
    codes = world.of_action.copy()
    codes[world.views == 2] = np.random.default_rng(0).integers(CODES, size=(world.size // VIEWS, 3))
    found = pair_numbers(codes, world.indices, world.views, world.episodes, ["a", "b", "c"])
    assert found["a and b"].value == 1.0
    assert abs(found["a and c"].value) < 0.1
    assert found["b and c"].ci95[0] < 0.05


def test_bits_about_a_nuisance_are_those_that_the_action_does_not_tell(world):
    given = (world.actions, world.episodes, 5)
    of_pose = conditional_bits(world.of_pose, world.pose, *given)
    assert of_pose.value > 1.5
    assert of_pose.ci95[0] > of_pose.null.p95
    assert abs(conditional_bits(world.of_action, world.pose, *given).value) < 0.1
    # What the action itself tells is no leak: the nuisance follows from it, and so do the codes.
    follows = world.actions[:, :2] + 0.3 * world.pose
    assert abs(conditional_bits(world.of_action, follows, *given).value) < 0.1


class Toy(LatentActionModel):
    """One token of two numbers: how far a blob moved, or where it first stood; codes are cells of a grid."""

    def __init__(self, says):
        nn.Module.__init__(self)
        self.says, self.nothing = says, nn.Parameter(torch.zeros(1))

    def encode(self, features):
        first, later = features[:, 0, :1, :2], features[:, 1, :1, :2]
        return later - first if self.says == "motion" else first

    def quantize(self, encodings):
        cells = (encodings / 0.5).round().clamp(-4, 3) + 4
        return Quantized(encodings, (8 * cells[..., 0] + cells[..., 1]).long(), torch.zeros(()))

    def decode(self, first, vectors):
        return first + vectors


def blobs_of(world) -> Sample:
    """Features that are where a blob stands."""
    first = np.random.default_rng(3).normal(size=(world.size, 2)).astype(np.float32)
    pairs = np.stack([first, first + world.actions[:, :2]], axis=1)[:, :, None]
    return Sample(None, world.indices, world.views, world.episodes, world.actions[:, :2], pairs)


def test_inverse_dynamics_reads_both_frames_of_other_episodes_and_the_difference_needs_no_actions(world):
    rng = np.random.default_rng(0)
    mix, place = rng.normal(size=(3, 40)), rng.normal(size=(40,))

    def seen(of_world):
        first = rng.normal(size=(of_world.size, 1)) * place
        later = first + of_world.actions @ mix * (1 + 0.5 * np.sign(first[:, :1]))
        pairs = np.stack([first, later], axis=1)[:, :, None].astype(np.float32)
        return Sample(None, of_world.indices, of_world.views, of_world.episodes, of_world.actions, pairs)

    sample, training = seen(world), seen(World(seed=1))
    found = references(sample, training, seed=0)
    assert list(found) == ["frozen_features", "inverse_dynamics_linear", "inverse_dynamics_mlp"]
    errors = {
        name: np.square(one.held_out.values - world.actions).mean() for name, one in found.items() if "inverse" in name
    }
    assert errors["inverse_dynamics_mlp"] < errors["inverse_dynamics_linear"] < 0.4
    assert found["frozen_features"].held_out.values.shape == (world.size, 40)
    assert found["frozen_features"].training.shape == (training.size, 40)
    assert list(references(sample, None, seed=0)) == ["frozen_features"]


def test_equal_frames_tell_a_model_of_motion_from_a_model_of_place(world):
    blobs = blobs_of(world)
    found = {}
    for says in ("motion", "place"):
        model = Toy(says)
        real, still = (say_of(model, pairs) for pairs in (blobs.known, blobs.known[:, [0, 0]]))
        found[says] = zero_motion_numbers(real, still, world.episodes)
    motion, place = found["motion"], found["place"]
    assert (motion["entropy"].value, motion["commonest"].value, motion["spread"].value) == (0.0, 1.0, 0.0)
    assert motion["commonest"].null.value < 0.2
    assert place["spread"].value == pytest.approx(1.0)
    assert place["entropy"].value == place["entropy"].null.value
    assert place["commonest"].value < 0.2


def test_a_shift_moves_the_encoding_of_a_model_that_looks_at_place(world):
    blobs = blobs_of(world)
    rows = np.arange(50)
    first = blobs.known[rows, 0]
    pairs = {pixels: np.stack([first, first + 0.1 * pixels], axis=1) for pixels in (0, *SHIFTS)}
    frames = ShiftedFrames(rows, pairs, (32, 32))
    model = Toy("motion")
    found = shift_numbers(model, say_of(model, blobs.known), frames, world.episodes)
    expected = 2 * 0.8**2 / np.square(blobs.actions[rows]).sum(1).mean()
    assert found["8"].value == pytest.approx(expected, rel=1e-4)
    assert found["1"].value < found["8"].value
    assert found["codes 8"].value == 1.0

    class Blind(Toy):
        def encode(self, features):
            return 0 * features[:, 0, :1, :2]

    blind = shift_numbers(Blind("motion"), say_of(model, blobs.known), frames, world.episodes)
    assert (blind["8"].value, blind["codes 8"].value) == (0.0, 0.0)


@pytest.mark.parametrize(("direction", "place"), [(0, (2, 5)), (1, (2, 1)), (2, (4, 3)), (3, (0, 3))])
def test_a_picture_moves_by_pixels_in_four_directions_and_repeats_its_edge(direction, place):
    image = np.zeros((6, 7, 3), np.uint8)
    image[2, 3] = 255
    moved = shifted(image, 2, direction)
    assert np.argwhere(moved[..., 0]).tolist() == [list(place)]
    edge = shifted(np.arange(42, dtype=np.uint8).reshape(6, 7, 1).repeat(3, 2), 2, 0)
    np.testing.assert_array_equal(edge[:, 0], edge[:, 2])


def test_codes_of_motion_can_be_transplanted_and_codes_of_place_cannot(world):
    blobs = blobs_of(world)
    donors = donors_of(blobs, seed=0)
    assert set(donors) == {"own", "camera", "nearest", "random"}
    assert (blobs.indices[donors["camera"]] == blobs.indices).all()
    assert (blobs.views[donors["camera"]] != blobs.views).all()
    for name in ("nearest", "random"):
        assert (blobs.episodes[donors[name]] != blobs.episodes).all()
        assert (blobs.views[donors[name]] == blobs.views).all()
    found = {}
    for says in ("motion", "place"):
        real = say_of(Toy(says), blobs.known)
        found[says] = transplant_numbers(Subject(says, Toy(says), real, real, None), blobs, donors)
    motion = {name: number.value for name, number in found["motion"].items()}
    assert motion["own"] == pytest.approx(0.0, abs=1e-9)
    assert motion["camera"] == pytest.approx(0.0, abs=1e-9)
    assert motion["nearest"] < 0.2
    assert motion["random"] > 1.5
    place = found["place"]
    assert place["nearest"].value > 0.7 * place["random"].value


def test_tokens_that_repeat_each_other_share_their_entropy():
    rng = np.random.default_rng(0)
    one, other = rng.integers(4, size=(2, 2000))
    episodes = np.arange(2000) // 20
    found = codebook.redundancy_numbers(np.stack([one, one, other], axis=1), episodes, permutations=10)
    assert found["0 and 1"].value == pytest.approx(2.0, abs=0.02)
    assert found["0 and 1"].null.p95 < 0.02
    assert abs(found["0 and 2"].value) < 0.02
    numbers = codebook.token_numbers(np.stack([one, np.minimum(one, 1)], axis=1), 8, episodes)
    assert numbers["perplexity 0"].value == pytest.approx(4.0, abs=0.02)
    assert (numbers["used 0"].value, numbers["used 1"].value) == (0.5, 0.25)
    assert codebook.usage(one[:, None], 8)["dead_codes"] == [4]


def test_a_code_that_means_something_else_in_one_task_is_found_out(world):
    codes, tasks = one_hot(world.of_action, CODES), np.where(world.episodes % 2 == 0, "push", "pull")
    same = generalisation.by_task(codes, world.actions, world.episodes, tasks, 2)
    assert same["push"]["bits"].value > 3
    assert same["push"]["nmse"].value < 0.2
    assert abs(same["push"]["bits"].null.value) < 0.1
    turned = np.where((tasks == "pull")[:, None], -world.actions, world.actions)
    other = generalisation.by_task(codes, turned, world.episodes, tasks, 5)
    assert other["push"]["bits"].ci95[1] < 0
    assert other["push"]["nmse"].value > 2
    # Actions that are merely elsewhere must not look like information.
    moved = np.where((tasks == "pull")[:, None], world.actions + 5, world.actions)
    nothing = generalisation.by_task(one_hot(world.of_camera, CODES), moved, world.episodes, tasks, 5)
    assert abs(nothing["push"]["bits"].value) < 0.05


def test_probes_of_some_cameras_are_scored_at_each(world):
    codes = world.of_action.copy()
    codes[world.views == 2] = CODES - 1 - codes[world.views == 2]
    given = (one_hot(codes, CODES), world.actions, world.episodes, world.views)
    found = generalisation.by_camera(*given, [0, 1], 3)
    assert found[0]["nmse"].value < 0.2
    assert found[2]["nmse"].value > 2
    assert generalisation.by_camera(*(column[:20] for column in given), [0], 3) == {}


def test_random_frames_inflate_what_remembers_the_episode():
    rng = np.random.default_rng(0)
    episodes = np.arange(1000) // 20
    signature, action = rng.normal(size=(50, 20))[episodes], rng.normal(size=(50, 2))[episodes]
    found = hygiene.inflation_numbers(signature, action + 0.1 * rng.normal(size=action.shape), episodes)
    assert found["nmse_inflation"].ci95[1] < -0.2
    assert found["bits_inflation"].ci95[0] > 0.1
    honest = hygiene.inflation_numbers(rng.normal(size=(1000, 5)), rng.normal(size=(1000, 2)), episodes)
    assert abs(honest["nmse_inflation"].value) < 0.02


def test_the_interval_of_an_entropy_is_not_biased_by_repeated_samples():
    rng = np.random.default_rng(0)
    codes = rng.integers(16, size=(400, 1))
    number = jackknife_number(lambda rows: code_entropy_bits(codes[rows]), np.arange(400), Null("ceiling", 4.0))
    assert number.ci95[0] < 4.0 < number.ci95[1]
    assert np.ptp(number.ci95) < 0.2
    coin = (rng.random((2000, 1)) < 0.2).astype(int)
    number = jackknife_number(lambda rows: code_entropy_bits(coin[rows]), np.arange(2000), Null("ceiling", 1.0))
    deviation = np.sqrt(0.2 * 0.8) * np.log2(0.8 / 0.2) / np.sqrt(2000)  # by the delta method
    assert np.ptp(number.ci95) == pytest.approx(2 * 1.96 * deviation, rel=0.5)
    single = jackknife_number(lambda rows: 1.0, np.zeros(9, int), Null("chance", 0.0))
    assert json.loads(json.dumps(single.as_json(), allow_nan=False))["ci95"] == [None, None]


def test_intervals_rest_on_episodes():
    values = np.repeat(np.random.default_rng(0).normal(size=30), 40)
    wide = mean_number(values, np.arange(1200) // 40, Null("chance", 0.0))
    narrow = mean_number(values, np.arange(1200), Null("chance", 0.0))
    assert np.ptp(wide.ci95) > 4 * np.ptp(narrow.ci95)
    assert isinstance(wide, Number)
    assert not math.isnan(wide.ci95[0])


def test_a_ridge_and_components_recover_what_is_linear():
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(300, 5)), rng.normal(size=(5, 2))
    fitted = fit_ridge(inputs, inputs @ weights + 3, np.arange(300) // 10)
    np.testing.assert_allclose(fitted.predict(inputs[:9]), inputs[:9] @ weights + 3, atol=0.02)
    wide = (inputs @ rng.normal(size=(5, 400))).astype(np.float32)
    coordinates = components_of(wide, 20).of(wide)
    again = fit_ridge(coordinates[:, :5], inputs, np.arange(300)).predict(coordinates[:, :5])
    np.testing.assert_allclose(again, inputs, atol=0.05)
    apart = rng.normal(size=(6, 20_000))
    squeezed = narrowed(apart)
    assert squeezed.shape == (6, 8192)
    distances = [np.linalg.norm(one[:3] - one[3:], axis=1) for one in (apart, squeezed)]
    np.testing.assert_allclose(distances[1], distances[0], rtol=0.1)


def test_what_has_to_be_explained_is_said_in_words():
    words = describe_action(END_EFFECTOR_DELTA, [0, 2, 6], 2, 5.0, "gap")
    assert words == "sum of x (m), z (m) and last gripper (open) commanded over 0.4 s (2 steps)"
    assert describe_action(END_EFFECTOR_DELTA, [0], 2, 5.0, "step") == "x (m) commanded in the first step (0.2 s)"
    assert "at each step over 0.4 s" in describe_action(END_EFFECTOR_DELTA, [0], 2, 5.0, "chunk")
    assert action_names(END_EFFECTOR_DELTA, [0, 1], 2, "chunk") == [
        "x of step 0", "y of step 0", "x of step 1", "y of step 1",
    ]  # fmt: skip


def test_what_a_model_says_comes_in_the_order_of_its_pairs():
    pairs = np.random.default_rng(0).normal(size=(150, 2, 1, 2)).astype(np.float32)
    said = say_of(Toy("motion"), pairs)
    assert isinstance(said, Said)
    np.testing.assert_allclose(said.encodings[:, 0], pairs[:, 1, 0] - pairs[:, 0, 0], atol=1e-6)
    assert leakage.zero_motion_table({"m": {}}).rows == {"m": {}}
