from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import core.inspection.values
from core.duplicates import LARGEST_DIFFERENCE, sampled
from core.episode import Episode, View
from core.inspection.inspection import inspect_store
from core.inspection.page import write_page
from core.inspection.pictures import LOOKED_AT, chosen_episodes
from core.inspection.values import action_values
from core.run import write_json
from core.spaces import END_EFFECTOR_DELTA, ActionSpace
from core.splits import SplitRule, manifest_of
from core.store import Store, StoreError, StoreInfo, finish_store, write_part

ROOT = Path(__file__).resolve().parents[1]
HZ, COUNT, SIZE = 10.0, 6, (48, 64)
VIEWS = ("front", "side")
RULE = SplitRule(held_out=0.2)
JOINTS = ActionSpace(names=("a", "b"), units=("rad", "rad"), kind="joint_position")
INFO = StoreInfo(
    control_hz=HZ,
    views=dict.fromkeys(VIEWS, SIZE),
    action_space=END_EFFECTOR_DELTA,
    proprioception_dims=3,
    robot_type="panda",
)


def length_of(number):
    return 32 + 2 * number


@lru_cache
def picture(number, view, frames):
    """A scene that differs from episode to episode and from camera to camera, and in which something moves."""
    time, row, column, colour = np.ogrid[:frames, : SIZE[0], : SIZE[1], :3]
    phase = 1.7 * number + 2.9 * VIEWS.index(view)
    waves = 128 + 80 * np.sin(phase + (column * (1 + number % 3) + (1 + colour) * row + 5 * time) / 14)
    return waves.astype(np.uint8)


def motion(number, frames):
    """Increments as a person makes them, and a gripper that starts open and closes."""
    rng, time = np.random.default_rng(number), np.arange(frames)
    actions = 0.04 * np.sin(0.3 * time[:, None] + rng.uniform(0, 6, 7)) + 0.005 * rng.normal(size=(frames, 7))
    actions[:, 6] = np.where(time < frames // 2, 1, -1)
    return actions.astype(np.float32)


def episode(number, **changes):
    frames = changes.pop("frames", length_of(number))
    actions = motion(number, frames)
    parts = {
        "episode_id": f"lift/seed={number}",
        "task": "lift",
        "instruction": "lift the cup" if number % 2 else "put it down",
        "control_hz": HZ,
        "views": {view: View(frames=picture(number, view, frames)) for view in VIEWS},
        "actions": actions,
        "action_space": END_EFFECTOR_DELTA,
        "proprioception": np.cumsum(actions[:, :3], 0),
    }
    return Episode(**(parts | changes))


def write_store(path, episodes, info=INFO, rule=RULE, skipped=()):
    write_part(path, 0, episodes, info=info, skipped=skipped)
    finish_store(path, info, 1, rule)
    return path


def write_changed(path, change, numbers=range(COUNT), **settings):
    """A store in which `change` of their numbers is laid over some episodes."""
    return write_store(path, [episode(n, **(change(n) if n in numbers else {})) for n in range(COUNT)], **settings)


def problems_of(path, **settings):
    return {one.name: one for one in inspect_store(path, **settings).problems}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "healthy", (episode(n) for n in range(COUNT)))


def test_a_healthy_store_has_no_problem(healthy):
    found = inspect_store(healthy)
    assert found.problems == []
    assert not found.is_fatal
    assert len(found.looks.found) == COUNT * len(VIEWS)


def views_of(number, **others):
    """The views of an episode, some of them shown as something else."""
    frames = length_of(number)
    shown = {view: picture(number, view, frames) for view in VIEWS}
    shown |= {view: other(frames) if callable(other) else shown[other] for view, other in others.items()}
    return {"views": {view: View(frames=pixels) for view, pixels in shown.items()}}


def still(number, until=0):
    """The side camera, which stands still from some frame on."""

    def frames_of(frames):
        return picture(number, "side", frames)[np.minimum(np.arange(frames), until)]

    return frames_of


def dark(frames):
    return np.random.default_rng(0).integers(0, 4, (frames, *SIZE, 3)).astype(np.uint8)


def partly_dark(number):
    def frames_of(frames):
        return picture(number, "front", frames) * (np.arange(frames) > frames // 3)[:, None, None, None].astype(
            np.uint8
        )

    return frames_of


ALL = list(range(COUNT))
MOTION, GRIPPER = slice(6), slice(6, 7)


def changed(number, **changes):
    """An episode with its actions changed, by the names of dimensions."""
    actions = motion(number, length_of(number))
    for name, change in changes.items():
        dims = {"motion": MOTION, "gripper": GRIPPER}.get(name) or [END_EFFECTOR_DELTA.names.index(name)]
        actions[:, dims] = change(actions[:, dims])
    return {"actions": actions}


def without_start(values):
    return np.where(np.arange(len(values))[:, None] < 12, 0, values)


def jump(values):
    return np.where(np.arange(len(values))[:, None] == 5, 0.09, 0.01 * values)


def jitter(values):
    return 1e-9 * np.sign(values)


def once(values):
    return np.where(np.arange(len(values))[:, None] == 9, -1, 1)


STORES = {
    "odd episodes": (
        {
            0: {"proprioception": None},
            1: {"frames": 7},
            2: {"instruction": " ", "actions": None},
            3: {"instruction": ""},
            4: {"views": {"side": views_of(4)["views"]["side"]}},
            5: {"frames": 200},
        },
        {
            "labelled_without_actions": ("fatal", [2]),
            "no_instruction": ("warning", [2, 3]),
            "short_episodes": ("warning", [1]),
            "long_episodes": ("note", [5]),
            "missing_view": ("note", [4]),
            "missing_proprioception": ("note", [0]),
        },
    ),
    "odd cameras": (
        {
            1: views_of(1, side=dark),
            2: views_of(2, side=still(2)),
            3: views_of(3, side=still(3, 9)),
            4: views_of(4, side="front"),
            5: views_of(5, front=partly_dark(5)),
        },
        {
            "black_camera": ("warning", [1]),
            "frozen_camera": ("warning", [2]),
            "camera_stopped": ("warning", [3]),
            "same_view_twice": ("warning", [4]),
            "black_frames": ("warning", [5]),
        },
    ),
    "a black camera": ({n: views_of(n, side=dark) for n in ALL}, {"black_camera": ("fatal", ALL)}),
    "a frozen camera": ({n: views_of(n, side=still(n)) for n in ALL}, {"frozen_camera": ("fatal", ALL)}),
    "one camera under two names": ({n: views_of(n, side="front") for n in ALL}, {"same_view_twice": ("fatal", ALL)}),
    "odd actions": (
        {
            n: changed(
                n,
                x=(lambda a: 3 * a) if n == 3 else (lambda a: a),
                z=lambda a: 0 * a + 0.01,
                gripper=lambda a: -a,
            )
            for n in ALL
        },
        {
            "outside_of_range": ("warning", [3]),
            "constant_action": ("warning", []),
            "gripper_sign": ("warning", ALL),
        },
    ),
    "actions in millimetres, gripper from 0 to 1": (
        {
            n: changed(n, motion=lambda a: 100 * a, gripper=lambda a: (a + 1) / 2)
            | {"proprioception": np.ones((length_of(n), 3), np.float32)}
            for n in ALL
        },
        {
            "outside_of_range": ("fatal", ALL),
            "gripper_range": ("fatal", []),
            "constant_proprioception": ("warning", []),
        },
    ),
    "gripper in metres, idle starts": (
        {n: changed(n, motion=without_start, gripper=lambda a: (a + 1) / 25) for n in ALL[:5]}
        | {5: {"actions": None, "is_labelled": False}},
        {"gripper_range": ("fatal", []), "idle_start": ("warning", ALL[:5]), "missing_actions": ("note", [5])},
    ),
    "gripper from 0 to 100, a few outliers": (
        {n: changed(n, x=jump if n == 3 else (lambda a: 0.01 * a), gripper=lambda a: 50 * (a + 1)) for n in ALL},
        {"gripper_range": ("fatal", ALL), "outliers": ("warning", [3])},
    ),
    "a gripper that is all but still, and rounding": (
        {n: changed(n, z=jitter, gripper=(lambda a: once(a)) if n == 3 else (lambda a: 0 * a + 1)) for n in ALL},
        {"near_constant_action": ("warning", [3])},
    ),
    "one that starts late, one that does nothing": (
        {0: changed(0, motion=lambda a: 0 * a), 5: changed(5, motion=without_start)},
        {"zero_actions": ("warning", [0]), "idle_start": ("note", [5])},
    ),
}


@pytest.mark.parametrize("name", STORES)
def test_each_problem_is_found_with_its_episodes_and_nothing_else(tmp_path, name):
    changes, expected = STORES[name]
    found = problems_of(write_changed(tmp_path / "store", lambda n: changes[n], changes))
    assert {one.name: (one.level, list(one.episodes)) for one in found.values()} == expected


def test_a_gripper_that_stays_open_is_constant_and_nothing_worse(tmp_path):
    path = write_changed(tmp_path / "store", lambda n: changed(n, gripper=lambda a: 0 * a + 1))
    assert list(problems_of(path)) == ["constant_action"]


def test_what_is_all_but_constant_is_told_of_one_short_episode_and_not_when_it_moves_in_a_few_frames(tmp_path):
    short = [episode(0, **changed(0, z=jitter, gripper=once))]
    found = problems_of(write_store(tmp_path / "short", short, rule=None))["near_constant_action"]
    assert "Of 7 action dimensions, 1 hardly ever change: z is" in found.what
    path = write_changed(tmp_path / "store", lambda n: changed(n, gripper=once))
    assert "near_constant_action" not in problems_of(path)


def test_a_still_camera_is_fine_where_nothing_happens(tmp_path):
    def waiting(number):
        zero = np.zeros((length_of(number), 7), np.float32)
        zero[:, 6] = 1
        still_views = {
            view: View(frames=picture(number, view, length_of(number))[np.zeros(length_of(number), int)])
            for view in VIEWS
        }
        return {"views": still_views, "actions": zero, "proprioception": np.zeros((length_of(number), 3), np.float32)}

    assert "frozen_camera" not in problems_of(write_changed(tmp_path / "store", waiting, [2]))


def test_copies_are_found_and_a_split_that_tears_them_is_fatal(tmp_path):
    copies = [episode(n) for n in range(COUNT)] + [episode(1, episode_id="copy")]
    found = problems_of(write_store(tmp_path / "store", copies))
    assert (list(found), found["duplicates"].episodes) == (["duplicates"], (1, COUNT))
    path = tmp_path / "store/meta/splits.json"
    ids = [one.episode_id for one in copies]
    write_json(path, manifest_of(ids, ["train"] * COUNT + ["held_out"], {}))
    found = problems_of(tmp_path / "store")
    assert list(found) == ["held_out_is_trained_on", "duplicates"]
    assert found["held_out_is_trained_on"].episodes == (COUNT,)


@pytest.mark.parametrize(
    ("held_out", "name", "level"),
    [((), "nothing_held_out", "fatal"), (ALL, "nothing_to_train_on", "fatal"), (ALL[1:], "most_held_out", "warning")],
)
def test_splits_that_cannot_be_trained_with_are_told(tmp_path, held_out, name, level):
    path = write_changed(tmp_path / "store", lambda n: {"split": "held_out"}, held_out, rule=None)
    assert [(one.name, one.level) for one in inspect_store(path).problems] == [(name, level)]


def test_an_action_space_that_says_nothing_and_one_without_actions_are_told(tmp_path):
    vague = ActionSpace(names=("a", "b"), units=("unspecified",) * 2, kind="unspecified")
    for name, space in (("vague", vague), ("joints", JOINTS)):
        info = INFO.__class__(**(vars(INFO) | {"action_space": space}))
        write_changed(
            tmp_path / name,
            lambda n, space=space: {"actions": motion(n, length_of(n))[:, :2], "action_space": space},
            info=info,
        )
    assert list(problems_of(tmp_path / "vague")) == ["unspecified_action_space"]
    assert list(problems_of(tmp_path / "joints")) == []
    info = INFO.__class__(**(vars(INFO) | {"action_space": None, "proprioception_dims": 0}))
    nothing = {"actions": None, "action_space": None, "proprioception": None}
    write_changed(tmp_path / "video", lambda n: nothing, info=info)
    assert [(one.name, one.level) for one in inspect_store(tmp_path / "video").problems] == [("no_actions", "note")]


def test_what_the_conversion_left_out_and_said_is_told(tmp_path, healthy):
    skipped = [{"key": "7", "reason": "file seven is cut off"}]
    path = write_store(tmp_path / "store", [episode(n) for n in range(COUNT)], skipped=skipped)
    write_json(path / "manifest.json", {"summary": {"notes": ["it promises 9 episodes"]}})
    found = problems_of(path)
    assert list(found) == ["skipped", "source_note"]
    assert "1 of 7 episodes" in found["skipped"].what
    assert "file seven is cut off" in found["skipped"].what
    assert "it promises 9 episodes" in found["source_note"].what


def test_damaged_frames_are_fatal_and_name_the_episode(tmp_path, healthy):
    path = write_store(tmp_path / "store", [episode(n) for n in range(COUNT)])
    video = next(path.rglob("videos/*front/*/*.mp4"))
    content = bytearray(video.read_bytes())
    fifth = len(content) // 5
    content[2 * fifth : 3 * fifth] = bytes(fifth)
    video.write_bytes(content)
    found = problems_of(path)["unreadable_frames"]
    assert found.level == "fatal"
    assert 1 <= len(found.episodes) < COUNT
    assert "front" in found.what
    write_page(inspect_store(path), tmp_path / "page.html")
    assert "unreadable frames" in (tmp_path / "page.html").read_text()


def test_signatures_are_those_that_the_store_was_written_with(healthy):
    for length in (1, 2, 5, 24, 97, 1000):
        places = np.linspace(0, length - 1, LOOKED_AT).round().astype(int)
        assert places[::2].tolist() == sampled(length)
    written = pq.read_table(next((healthy / "meta/episodes").rglob("*.parquet")))
    for look in inspect_store(healthy).looks.found:
        signed = written[f"signature/{look.view}"][look.episode].as_py()
        cells = [np.frombuffer(one, np.uint8).astype(int) for one in (signed, look.signature)]
        assert np.abs(cells[0] - cells[1]).max() <= LARGEST_DIFFERENCE


def test_frames_of_as_many_episodes_are_looked_at_as_were_asked_for(healthy):
    found = inspect_store(healthy, most_episodes=2, seed=3)
    assert len(found.looks.episodes) == len({look.episode for look in found.looks.found}) == 2
    assert found.looks.episodes.tolist() == inspect_store(healthy, most_episodes=2, seed=3).looks.episodes.tolist()
    assert chosen_episodes(9, None, 0).tolist() == list(range(9))
    assert len({tuple(chosen_episodes(50, 5, seed)) for seed in range(9)}) > 1
    assert len(found.actions.episodes) == COUNT


def test_numbers_of_many_frames_are_thinned_but_their_extremes_are_not(healthy, monkeypatch):
    whole = action_values(Store.open(healthy))
    monkeypatch.setattr(core.inspection.values, "MOST_ROWS", 80)
    thinned = action_values(Store.open(healthy))
    assert (whole.step, thinned.step) == (1, 3)
    assert len(whole.rows) == sum(map(length_of, range(COUNT)))
    assert len(thinned.rows) == pytest.approx(len(whole.rows) / 3, abs=COUNT)
    every = np.concatenate([motion(n, length_of(n)) for n in range(COUNT)])
    for values in (whole, thinned):
        np.testing.assert_array_equal(values.high.max(0), every.max(0))
        np.testing.assert_allclose(values.mean, every.mean(0), atol=1e-6)
        np.testing.assert_allclose(values.q99, np.quantile(every, 0.99, axis=0), atol=0.01)


def test_actions_of_unlabelled_episodes_are_described(tmp_path):
    path = write_changed(tmp_path / "store", lambda n: {"is_labelled": False})
    assert len(inspect_store(path).actions.episodes) == COUNT


def test_what_is_no_store_is_to_be_converted_first(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/features.json").write_text("{}")
    with pytest.raises(StoreError, match=r"is not a store.*scripts/convert_episodes\.py"):
        inspect_store(tmp_path / "source")
    with pytest.raises(StoreError, match="does not exist"):
        inspect_store(tmp_path / "nothing")
