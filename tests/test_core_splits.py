"""Splits tear neither recordings nor scenes, are the same for one seed, and are refused when they are damaged."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_episodes import INFO, make_episode, moving_picture

from core.duplicates import (
    TIMES,
    Traits,
    hash_of_actions,
    kept_together,
    same_recordings,
    sampled,
    samples,
    signature,
)
from core.splits import SplitError, SplitRule, hash_of, manifest_of, read_manifest, split_by_rule, straddling
from core.store import Store, StoreError, finish_store, write_part
from core.video import VideoReader, VideoWriter


def traits(length=10, actions="", scene="", **pictures):
    return Traits(length, pictures, actions, scene)


def unlike(number):
    """A signature that no other number has."""
    return np.random.default_rng(number).integers(0, 256, TIMES * 64, np.uint8).tobytes()


def names(episodes):
    return [f"e{number}" for number in range(len(episodes))]


SINGLE = st.builds(
    lambda length, action, scene, view: traits(length, action, scene, front=unlike(view)),
    st.integers(5, 7),
    st.sampled_from(["", "a", "b", "c"]),
    st.sampled_from(["", "", "kitchen", "desk"]),
    st.integers(0, 30),
)


@settings(max_examples=100)
@given(episodes=st.lists(SINGLE, max_size=40), held_out=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_no_group_is_torn_and_no_more_is_held_out_than_asked_for(episodes, held_out, seed):
    rule = SplitRule(held_out=held_out, seed=seed)
    splits = split_by_rule(names(episodes), episodes, rule)
    turned = split_by_rule(names(episodes)[::-1], episodes[::-1], rule)
    assert splits == turned[::-1]
    sizes = [len(group) for group in kept_together(episodes)]
    smallest = min(sizes) if held_out and len(sizes) > 1 else 0
    assert smallest <= splits.count("held_out") <= max(smallest, round(held_out * len(episodes)))
    assert not straddling(episodes, splits)
    several = len({one.scene for one in episodes}) > 1
    for one, left in zip(episodes, splits, strict=True):
        for other, right in zip(episodes, splits, strict=True):
            is_same = one.length == other.length and (
                one.signatures == other.signatures or (one.action_hash and one.action_hash == other.action_hash)
            )
            assert left == right or not (is_same or (several and one.scene and one.scene == other.scene))
    groups = kept_together(episodes)
    assert sorted(number for group in groups for number in group) == list(range(len(episodes)))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
def test_the_share_is_reached_where_nothing_hangs_together(share):
    episodes = [traits(front=unlike(number)) for number in range(200)]
    splits = {seed: split_by_rule(names(episodes), episodes, SplitRule(held_out=share, seed=seed)) for seed in range(3)}
    assert {split.count("held_out") for split in splits.values()} == {round(share * 200)}
    assert share == 0 or splits[0] != splits[1]


def test_large_scenes_leave_room_that_smaller_ones_fill():
    scenes = ["kitchen"] * 60 + ["desk"] * 30 + [""] * 10
    episodes = [traits(front=unlike(number), scene=scene) for number, scene in enumerate(scenes)]
    for seed in range(8):
        held_out = split_by_rule(names(episodes), episodes, SplitRule(held_out=0.2, seed=seed)).count("held_out")
        assert held_out == 10  # no whole scene fits into 20, the ten without one do


def test_a_scene_is_held_out_even_where_the_share_is_less_than_one():
    sizes = {"kitchen": 20, "desk": 20, "hall": 18, "attic": 20, "cellar": 20}
    scenes = [scene for scene, size in sizes.items() for _ in range(size)]
    episodes = [traits(front=unlike(number), scene=scene) for number, scene in enumerate(scenes)]
    for seed in range(8):
        splits = split_by_rule(names(episodes), episodes, SplitRule(held_out=0.1, seed=seed))
        assert {scene for scene, split in zip(scenes, splits, strict=True) if split == "held_out"} == {"hall"}
    alone = split_by_rule(["a"], episodes[:1], SplitRule(held_out=0.5))
    assert alone == ["train"]
    assert split_by_rule(["a", "b"], episodes[19:21], SplitRule(held_out=0.01)).count("held_out") == 1


def test_the_only_scene_there_is_may_be_split():
    episodes = [traits(front=unlike(number), scene="kitchen") for number in range(20)]
    assert split_by_rule(names(episodes), episodes, SplitRule(held_out=0.1)).count("held_out") == 2


def clip(seed, size=(48, 64), frames=30):
    return moving_picture(seed, frames, *size)


def reencoded(frames, path, codec):
    with VideoWriter(path, frames.shape[1:3], 10.0, codec) as writer:
        writer.append(frames)
        writer.finish()
    return VideoReader().read(path, np.arange(len(frames)) / 10)


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_clip_that_was_encoded_again_is_the_same_recording_and_others_are_not(tmp_path, codec):
    clips = [clip(0), clip(1), reencoded(clip(0), tmp_path / "v.mp4", codec), clip(5), clip(0)[::-1]]
    episodes = [traits(30, front=signature(samples(frames))) for frames in clips]
    assert same_recordings(episodes) == [[0, 2]]
    assert same_recordings([replace_length(trait, 20 + n) for n, trait in enumerate(episodes)]) == []


def replace_length(trait, length):
    return trait._replace(length=length)


def signed(frames, **changes):
    return traits(len(frames), front=signature(samples(frames)), **changes)


def scene_with_a_moving_block(seed, frames, size=(48, 64)):
    """A still background, the same for all seeds, and a block on a way of its own that begins at one place."""
    background = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    clip = np.repeat(background[None], frames, axis=0)
    rng = np.random.default_rng([seed, 1])
    ways = (rng.uniform(-0.7, 0.7, 2) + rng.uniform(-0.3, 0.3, (frames, 2))).cumsum(0)
    for frame, (row, column) in enumerate((ways + np.array([20, 28])).clip(0, (40, 56)).astype(int)):
        clip[frame, row : row + 8, column : column + 8] = 255
    return clip


@pytest.mark.parametrize("length", range(40, 48))
def test_a_copy_without_its_last_frame_is_the_same_recording(tmp_path, length):
    clips = [scene_with_a_moving_block(seed, length) for seed in range(12)]
    copies = [reencoded(clip, tmp_path / f"{seed}.mp4", "h264")[:-1] for seed, clip in enumerate(clips)]
    groups = same_recordings([signed(frames) for frames in [*clips, *copies]])
    assert all(group[1] == group[0] + 12 and len(group) == 2 for group in groups)
    assert len(groups) >= 10  # those that hardly move by a third of the way cannot be told from others of the scene
    torn = split_by_rule(names([0] * 24), [signed(frames) for frames in [*clips, *copies]], SplitRule(held_out=0.3))
    assert all(torn[first] == torn[second] for first, second in groups)


def test_others_of_a_scene_that_are_a_frame_longer_are_other_recordings():
    clips = [scene_with_a_moving_block(seed, 40 + seed % 2) for seed in range(60)]
    assert same_recordings([signed(frames) for frames in clips]) == []
    still = [scene_with_a_moving_block(seed, 1) for seed in range(2)]
    assert same_recordings([signed(np.repeat(still[n % 2], 30 + n, axis=0)) for n in range(4)]) == []


@pytest.mark.parametrize(
    ("levels", "apart", "is_same"),
    [
        ((0, 20, 40, 60, 60), 20, True),
        ((0, 20, 40, 60, 60), 50, False),  # more than a frame changes
        ((0, 0, 5, 60, 60), 20, False),  # what is the same in both hardly moves
        ((0, 0, 0, 60, 60), 0, False),
    ],
)
def test_an_episode_and_one_a_frame_longer_are_compared_where_both_must_be_the_same(levels, apart, is_same):
    """Of 41 and of 40 frames, the first three of the five that are looked at are the same, the last two neighbours."""
    assert [a - b for a, b in zip(sampled(41), sampled(40), strict=True)] == [0, 0, 0, 1, 1]
    cells = np.full((TIMES, 64), 100, np.uint8)
    cells[:, 7] += np.array(levels, np.uint8)
    shifted = cells.copy()
    shifted[3:, 8] += apart
    pair = [traits(41, front=cells.tobytes()), traits(40, front=shifted.tobytes())]
    assert (same_recordings(pair) == [[0, 1]]) == is_same


def test_many_of_one_length_are_compared_in_little_time():
    rng = np.random.default_rng(0)
    episodes = [traits(30 + n % 2, front=rng.integers(0, 256, TIMES * 64, np.uint8).tobytes()) for n in range(6000)]
    started = time.process_time()
    assert same_recordings([*episodes, episodes[7], episodes[8]]) == [[7, 6000], [8, 6001]]
    assert time.process_time() - started < 20


def test_still_pictures_tell_nothing_about_being_the_same():
    still = signature(samples(np.full((30, 48, 64, 3), 77, np.uint8)))
    assert same_recordings([traits(30, front=still), traits(30, front=still)]) == []


def test_equal_actions_are_the_same_recording_and_idle_ones_tell_nothing():
    moving, idle = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.zeros((9, 3), np.float32)
    assert hash_of_actions(moving) == hash_of_actions(moving.copy()) != hash_of_actions(moving + 1)
    assert hash_of_actions(idle) == hash_of_actions(None) == hash_of_actions(moving[:1]) == ""
    done = [moving, idle, moving, idle]
    episodes = [traits(9, hash_of_actions(actions), front=unlike(n)) for n, actions in enumerate(done)]
    assert same_recordings(episodes) == [[0, 2]]


def test_one_like_camera_is_enough_and_what_is_alike_hangs_together():
    alike = unlike(1)
    episodes = [traits(front=alike, side=unlike(2)), traits(side=unlike(3), front=alike), traits(side=unlike(3))]
    assert same_recordings(episodes) == [[0, 1, 2]]


def test_pictures_smaller_than_the_grid_have_a_signature():
    for size in ((1, 1), (3, 50), (7, 7), (8, 8), (9, 9)):
        assert len(signature(samples(np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)))) == TIMES * 64


def written(path, episodes, rule=None):
    write_part(path, 0, episodes, info=INFO)
    finish_store(path, INFO, 1, rule)
    return Store.open(path)


def splits_of(store):
    return {record.episode_id: record.split for record in store.episodes}


def test_a_store_keeps_copies_and_scenes_together(tmp_path):
    def copy(number, name, **changes):
        return make_episode(number, length=20, episode_id=name, split="train", **changes)

    views = make_episode(5, length=20).views
    episodes = [copy(number, f"e{number}", actions=None) for number in range(5, 15)]
    episodes += [copy(3, "again", views=views, actions=None)]
    for seed in range(6):
        found = splits_of(written(tmp_path / f"{seed}", episodes, SplitRule(held_out=0.3, seed=seed)))
        assert found["e5"] == found["again"]
        assert list(found.values()).count("held_out") == 3


def test_given_splits_that_tear_a_recording_are_mended_and_it_is_said(tmp_path):
    first, second = make_episode(0), make_episode(4)
    again = replace(first, episode_id="again", split="held_out", actions=None)
    store = written(tmp_path, [first, again, second])
    assert splits_of(store) == {"reach/seed=0": "train", "again": "train", "reach/seed=4": "held_out"}
    rule = json.loads((tmp_path / "meta/splits.json").read_text())["rule"]
    assert rule == {"as_written": True, "moved_to_train": ["again"]}


def test_scenes_of_given_splits_are_not_torn_either(tmp_path):
    scene = {"scene": "kitchen"}
    episodes = [make_episode(0, extra=scene), make_episode(4, extra=scene), make_episode(2)]
    assert set(splits_of(written(tmp_path, episodes)).values()) == {"train"}


IDS = ["a", "b", "ü", "d"]
SPLITS = ["train", "held_out", "train", "train"]


def manifest(**changes):
    return manifest_of(IDS, SPLITS, {"held_out": 0.25}) | changes


def test_a_manifest_gives_back_the_splits_in_any_order(tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps(manifest()))
    assert read_manifest(tmp_path / "splits.json", IDS) == SPLITS
    assert read_manifest(tmp_path / "splits.json", IDS[::-1]) == SPLITS[::-1]
    assert hash_of(IDS) == hash_of(IDS[::-1]) != hash_of(IDS[1:])
    listed = manifest()["splits"]
    assert not set(listed["train"]["episodes"]) & set(listed["held_out"]["episodes"])


def with_train(episodes, sha256=None):
    split = {"episodes": episodes, "sha256": sha256 or hash_of(episodes)}
    return manifest(splits=manifest()["splits"] | {"train": split})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("7", "is damaged"),
        (json.dumps({"splits": {}}), "is damaged"),
        (json.dumps(manifest(splits={"train": 5, "held_out": 5})), "is damaged"),
        (json.dumps(with_train(["a", "ü"])), "3 ids for 4 episodes"),
        (json.dumps(with_train(["a", "ü", "d", "d"])), "5 ids for 4 episodes"),
        (json.dumps(with_train(["a", "b", "ü", "d"])), "5 ids for 4 episodes"),
        (json.dumps(with_train(["a", "ü", "e"])), "4 ids for 4 episodes"),
        (json.dumps(with_train(["a", "ü", "d"], "0" * 64)), r"the hash of \['train'\] is wrong"),
        (json.dumps(with_train([1, 2, 3], "x")), "is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text, complaint):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(SplitError, match=complaint):
        read_manifest(tmp_path / "splits.json", IDS)


def test_a_store_without_its_manifest_or_with_another_is_refused(tmp_path):
    written(tmp_path, [make_episode(0), make_episode(4)])
    (tmp_path / "meta/splits.json").write_text(json.dumps(manifest()))
    with pytest.raises(StoreError, match="does not fit its episodes"):
        Store.open(tmp_path)
    (tmp_path / "meta/splits.json").unlink()
    with pytest.raises(StoreError, match="splits"):
        Store.open(tmp_path)
