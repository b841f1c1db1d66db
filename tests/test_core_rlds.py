"""RLDS data sets read without TensorFlow: what is read, and what is said where something is wrong."""

import io
import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_core_tfrecord import delimited, record, varint

from core.config import load_config
from core.formats.interface import EpisodeError, Reader, SourceError, episodes_of
from core.formats.mapping import Mapping
from core.formats.rlds import Rlds, recognises
from core.formats.tfrecord import list_records

CONFIGS = Path(__file__).parents[1] / "configs/data"
SAMPLE = Path(__file__).parents[2] / "shared/data/bridge_toysink_rlds"
STEPS, HEIGHT, WIDTH = 5, 24, 32
NAME = "made-{}.tfrecord-{:05d}-of-{:05d}"


def feature(value: list | np.ndarray) -> bytes:
    """A tf.train.Feature: bytes, floats or integers by the type of the values."""
    if isinstance(value, list):
        return delimited(1, b"".join(delimited(1, entry) for entry in value))
    flat = value.reshape(-1)
    if value.dtype.kind == "f":
        return delimited(2, delimited(1, flat.astype("<f4").tobytes()))
    return delimited(3, delimited(1, b"".join(varint(int(number)) for number in flat)))


def example(features: dict[str, list | np.ndarray]) -> bytes:
    entries = [delimited(1, delimited(1, name.encode()) + delimited(2, feature(v))) for name, v in features.items()]
    return delimited(1, b"".join(entries))


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    Image.fromarray(pixels).save(stream := io.BytesIO(), kind)
    return stream.getvalue()


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict:
    return {"tensor": {"dtype": dtype, "shape": {"dimensions": [str(n) for n in shape]}, "encoding": encoding}}


def image(*shape: int, dtype: str = "uint8") -> dict:
    return {"image": {"dtype": dtype, "shape": {"dimensions": [str(n) for n in shape]}, "encodingFormat": "png"}}


def group(**features: dict) -> dict:
    return {"featuresDict": {"features": features}}


TEXT = {"text": {}}
FEATURES = {
    "action": tensor("float32", 7),
    "observation": group(image=image(HEIGHT, WIDTH, 3), wrist=image(HEIGHT, WIDTH, 3), state=tensor("float64", 4)),
    "language_instruction": TEXT,
    "is_last": tensor("bool"),
}
METADATA = {"file_path": TEXT, "episode_id": tensor("int32"), "has_image_0": tensor("bool")}


def frames_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 256, (STEPS, HEIGHT, WIDTH, 3)).astype(np.uint8)


def episode(seed: int, **changes: list | np.ndarray) -> dict[str, list | np.ndarray]:
    numbers = np.random.default_rng(seed).normal(size=(STEPS, 11)).astype(np.float32)
    return {
        "steps/action": numbers[:, :7],
        "steps/observation/image": [picture(frame) for frame in frames_of(seed)],
        "steps/observation/wrist": [picture(frame) for frame in frames_of(seed + 100)],
        "steps/observation/state": numbers[:, 7:],
        "steps/language_instruction": ["Öffne die Tür".encode()] * STEPS,
        "steps/is_last": np.arange(STEPS) == STEPS - 1,
        "episode_metadata/file_path": [f"clip_{seed}".encode()],
        "episode_metadata/episode_id": np.array([seed - 3]),
        "episode_metadata/has_image_0": np.array([0]),
    } | changes


def write(folder: Path, shards: dict[str, list[list[dict]]], steps: dict = FEATURES, info: bool = True) -> Path:
    """A folder as tensorflow_datasets writes it: splits of shards of episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    top = group(steps={"sequence": {"feature": group(**steps), "length": "-1"}}, episode_metadata=group(**METADATA))
    (folder / "features.json").write_text(json.dumps(top))
    for split, parts in shards.items():
        for number, episodes in enumerate(parts):
            file = folder / NAME.format(split, number, len(parts))
            file.write_bytes(b"".join(record(example(features)) for features in episodes))
    if info:
        splits = [{"name": split, "shardLengths": [str(len(p)) for p in parts]} for split, parts in shards.items()]
        described = {"name": "made", "fileFormat": "tfrecord", "splits": splits}
        (folder / "dataset_info.json").write_text(json.dumps(described))
    return folder


def read(folder: Path, **mapping: object) -> Rlds:
    return Rlds(folder, Mapping.model_validate({"control_hz": 5} | mapping))


def one(folder: Path, features: dict, steps: dict = FEATURES, **mapping: object):
    return next(episodes_of(read(write(folder, {"train": [[features]]}, steps), **mapping)))


def test_an_episode_is_read_as_it_was_written(tmp_path):
    reader = read(write(tmp_path / "1.0.0", {"train": [[episode(0), episode(1)], [episode(2)]], "val": [[episode(3)]]}))
    assert isinstance(reader, Reader)
    assert reader.keys == ["train/00000/000000", "train/00000/000001", "train/00001/000000", "val/00000/000000"]
    assert not reader.notes
    assert reader.info.views == {"image": (HEIGHT, WIDTH), "wrist": (HEIGHT, WIDTH)}
    assert (reader.info.control_hz, reader.info.action_space.dims, reader.info.proprioception_dims) == (5, 7, 4)
    found = list(episodes_of(reader))
    for seed, got in enumerate(found):
        sent = episode(seed)
        np.testing.assert_array_equal(got.views["image"].frames[0:STEPS], frames_of(seed))
        np.testing.assert_array_equal(got.views["wrist"].frames[2:4], frames_of(seed + 100)[2:4])
        np.testing.assert_array_equal(got.actions, sent["steps/action"])
        np.testing.assert_array_equal(got.proprioception, sent["steps/observation/state"])
        assert (got.instruction, got.task) == ("Öffne die Tür", "öffne_die_tür")
        assert got.extra["file_path"] == f"clip_{seed}"
        assert got.extra["episode_id"] == seed - 3
        assert "has_image_0" not in got.extra
    assert [(got.extra["source_split"], got.split) for got in found] == [("train",) * 2] * 3 + [("val", "held_out")]
    assert len({got.episode_id for got in found}) == 4
    assert found[2].episode_id == "made/train/00001/000000"


def test_a_folder_is_recognised_with_or_without_its_version(tmp_path):
    folder = write(tmp_path / "made" / "1.0.0", {"train": [[episode(0)]]})
    assert recognises(folder)
    assert recognises(tmp_path / "made")
    assert not recognises(tmp_path)
    assert not recognises(folder / "features.json")
    assert read(tmp_path / "made").keys == read(folder).keys
    write(tmp_path / "made" / "2.0.0", {"train": [[episode(0)]]})
    with pytest.raises(SourceError, match=r"'1.0.0', '2.0.0'"):
        read(tmp_path / "made")


ENCODED = np.arange(STEPS * 6, dtype=np.float64).reshape(STEPS, 2, 3) / 7
WIDE = np.array([[-1, 2**62], [300, -(2**63)], [0, 127], [128, 16384], [1, 5]])
WORDS = ["a", "bb", "ccc", "", "ü"]
TYPES = {
    "zlib": (tensor("float64", 2, 3, encoding="zlib"), [zlib.compress(row.tobytes()) for row in ENCODED], ENCODED),
    "bytes": (tensor("float64", 2, 3, encoding="bytes"), [row.tobytes() for row in ENCODED], ENCODED),
    "large integers": (tensor("int64", 2), WIDE, WIDE),
    "small integers": (tensor("int8"), small := np.array([-128, 127, 0, 1, -1]), small.astype(np.int8)),
    "unsigned integers": (tensor("uint64"), large := np.array([0, 2**62, 2**63 - 1, 1, 2]), large),
    "flags": (tensor("bool", 2), flags := np.arange(STEPS * 2).reshape(STEPS, 2) % 3 == 0, flags),
    "texts": (TEXT, [word.encode() for word in WORDS], np.array(WORDS, object)),
}


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_flags_and_texts_of_all_encodings_are_read(tmp_path, kind):
    described, stored, expected = TYPES[kind]
    steps = FEATURES | {"more": group(it=described)}
    folder = write(tmp_path, {"train": [[episode(0, **{"steps/more/it": stored})]]}, steps)
    reader = read(folder, columns=["more/it"])
    got = reader.read(reader.keys[0]).columns["more.it"]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    column = reader.info.columns["more.it"]
    assert column.shape == (expected.shape[1:] or (1,))
    assert column.dtype == ("string" if kind == "texts" else expected.dtype.name)


def test_a_mapping_chooses_turns_and_scales(tmp_path):
    action = group(move=tensor("float32", 3), close=tensor("float32"))
    steps = FEATURES | {"action": action, "told": tensor("int32", 16)}
    move, close = np.arange(STEPS * 3, dtype=np.float32).reshape(STEPS, 3), np.arange(STEPS, dtype=np.float32) % 2
    told = np.array([[*map(ord, "pick ü"), 0, 7, *[0] * 8]] * STEPS)
    features = episode(0, **{"steps/action/move": move, "steps/action/close": close, "steps/told": told})
    space = {"names": ["z", "x", "gripper"], "units": ["m", "m", "open"], "kind": "delta_end_effector"}
    got = one(
        tmp_path,
        features,
        steps,
        views={"hand": {"source": "observation/wrist", "rotate_deg": 90}},
        actions=[{"source": "action/move", "columns": [2, 0]}, {"source": "action/close", "scale": -2, "offset": 1}],
        action_space=space,
        proprioception=[],
        instruction="told",
        scene="episode_metadata/file_path",
        robot_type="arm",
    )
    assert list(got.views) == ["hand"]
    np.testing.assert_array_equal(got.views["hand"].frames[1:2][0], np.rot90(frames_of(100)[1], -1))
    np.testing.assert_array_equal(got.actions, np.stack([move[:, 2], move[:, 0], 1 - 2 * close], axis=1))
    assert got.action_space.names == ("z", "x", "gripper")
    assert got.proprioception is None
    assert (got.instruction, got.extra["scene"]) == ("pick ü", "clip_0")


def test_pictures_kept_as_numbers_are_views_too(tmp_path):
    frames = frames_of(7)
    size = (HEIGHT, WIDTH, 3)
    steps = FEATURES | {"raw": tensor("uint8", *size), "packed": tensor("uint8", *size, encoding="zlib")}
    features = episode(0, **{"steps/raw": frames, "steps/packed": [zlib.compress(f.tobytes()) for f in frames]})
    got = one(tmp_path, features, steps, views={"raw": "raw", "packed": "packed"})
    np.testing.assert_array_equal(got.views["raw"].frames[0:STEPS], frames)
    np.testing.assert_array_equal(got.views["packed"].frames[0:STEPS], frames)


def test_a_picture_tells_its_size_where_the_description_does_not(tmp_path):
    steps = FEATURES | {"observation": group(image=image(-1, -1, 3), depth=image(HEIGHT, WIDTH, 1, dtype="uint16"))}
    damaged = episode(0, **{"steps/observation/image": [b"?"] * STEPS})
    reader = read(write(tmp_path, {"train": [[damaged, episode(1)]]}, steps))
    assert reader.info.views == {"image": (HEIGHT, WIDTH)}
    assert any("left out: observation/depth" in note for note in reader.notes)
    with pytest.raises(EpisodeError, match="cannot be decoded"):
        reader.read(reader.keys[0])
    assert reader.read(reader.keys[1]).length == STEPS


def test_a_camera_that_is_black_throughout_is_left_out_of_its_episode(tmp_path):
    black = [picture(np.full((HEIGHT, WIDTH, 3), 2, np.uint8), "JPEG")] * STEPS
    seen_once = [*black[:3], picture(frames_of(0)[0]), black[0]]
    features = [
        episode(0, **{"steps/observation/wrist": black}),
        episode(1, **{"steps/observation/wrist": seen_once}),
        episode(2, **{"steps/observation/wrist": black, "steps/observation/image": black}),
    ]
    reader = read(write(tmp_path, {"train": [features]}))
    first, second = (reader.read(key) for key in reader.keys[:2])
    assert list(first.views) == ["image"]
    assert first.extra["black_views"] == "wrist"
    assert list(second.views) == ["image", "wrist"]
    assert "black_views" not in second.extra
    with pytest.raises(EpisodeError, match="all of its views are black: image, wrist"):
        reader.read(reader.keys[2])


def test_what_is_promised_and_absent_is_said(tmp_path):
    folder = write(tmp_path, {"train": [[episode(0)], [episode(1)], [episode(2), episode(3)]]})
    (folder / NAME.format("train", 1, 3)).unlink()
    shard = folder / NAME.format("train", 2, 3)
    shard.write_bytes(shard.read_bytes()[: list_records(shard).offsets[1]])
    reader = read(folder)
    assert any(NAME.format("train", 1, 3) in note and "missing" in note for note in reader.notes)
    assert any("holds 1 records, dataset_info.json promises 2" in note for note in reader.notes)
    assert reader.keys == ["train/00000/000000", "train/00002/000000", "train/00002/000001"]
    assert reader.read(reader.keys[1]).extra["file_path"] == "clip_2"
    with pytest.raises(EpisodeError, match=rf"{shard.name}, episode train/00002/000001: .*cut short"):
        reader.read(reader.keys[2])


def test_without_a_list_of_shards_the_names_of_files_tell_what_is_missing(tmp_path):
    folder = write(tmp_path, {"train": [[episode(0)], [episode(1)]]}, info=False)
    (folder / NAME.format("train", 0, 2)).unlink()
    reader = read(folder)
    assert reader.keys == ["train/00001/000000"]
    assert any("cannot be known" in note for note in reader.notes)
    assert any(NAME.format("train", 0, 2) in note for note in reader.notes)


def test_later_instructions_are_kept_beside_the_first(tmp_path):
    said = [b"open"] * 2 + [b"close"] * (STEPS - 2)
    got = one(tmp_path / "two", episode(0, **{"steps/language_instruction": said}))
    assert (got.instruction, got.extra["later_instructions"]) == ("open", "close")
    silent = episode(0, **{"steps/language_instruction": [b""] * STEPS})
    assert one(tmp_path / "none", silent, default_instruction="do it").instruction == "do it"


CHANGES = {
    "not finite: action of a frame": ({"steps/action": np.full((STEPS, 7), np.nan, np.float32)}, "actions of frame 0"),
    "too few states": ({"steps/observation/state": np.zeros((STEPS - 1, 4))}, r"observation/state: it holds 16 values"),
    "too few pictures": ({"steps/observation/wrist": [picture(frames_of(0)[0])]}, "synchronised"),
    "no steps": ({"steps/observation/image": []}, "no steps"),
    "not text": ({"steps/language_instruction": [b"\xff\xfe"] * STEPS}, "not UTF-8"),
    "another list": ({"steps/action": [b"0"] * STEPS}, "a list of floats is expected, the record holds bytes"),
    "another size": ({"steps/observation/image": [picture(frames_of(0)[0][1:])] * STEPS}, r"\(23, 32\) pixels"),
    "no picture": ({"steps/observation/image": [b"GIF89a"] * STEPS}, "cannot be decoded"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_damaged_episode_is_named_with_its_file(tmp_path, kind):
    changes, message = CHANGES[kind]
    reader = read(write(tmp_path, {"train": [[episode(0, **changes), episode(1)]]}))
    with pytest.raises(EpisodeError, match=message) as raised:
        reader.read(reader.keys[0])
    assert f"{NAME.format('train', 0, 1)}, episode train/00000/000000: " in str(raised.value)
    assert reader.read(reader.keys[1]).length == STEPS


def test_damaged_frames_name_their_episode_when_they_are_looked_at(tmp_path):
    pictures = [picture(frame) for frame in frames_of(0)]
    got = one(tmp_path, episode(0, **{"steps/observation/image": [*pictures[:3], pictures[3][:-200], pictures[4]]}))
    np.testing.assert_array_equal(got.views["image"].frames[0:3], frames_of(0)[:3])
    with pytest.raises(
        EpisodeError, match=r"tfrecord-00000-of-00001, episode train/00000/000000: view image, frames 3"
    ):
        got.views["image"].frames[3:5]


MAPPINGS = {
    "no rate": ({"control_hz": None}, "set the mapping's control_hz"),
    "unknown camera": ({"views": {"front": "observation/front"}}, "views.front names observation/front"),
    "no camera": ({"views": {"front": "action"}}, "float32 .* no RGB pictures"),
    "depth": ({"views": {"front": "observation/depth"}}, "uint16 .* no RGB pictures"),
    "no single scene": ({"scene": "observation/state"}, "scene names observation/state, which holds number float64"),
    "a group": ({"actions": "observation"}, "a group, name one of .*'observation/state'"),
    "too many columns": ({"actions": [{"source": "action", "columns": [7]}]}, r"action has 7 numbers .* columns \[7\]"),
    "another space": ({"actions": "observation/state", "action_space": "end_effector_delta"}, "actions have 4 numbers"),
    "unknown text": ({"instruction": "said"}, "instruction names said"),
    "unknown column": ({"columns": ["reward"]}, "columns names reward"),
}


@pytest.mark.parametrize("kind", MAPPINGS)
def test_a_mapping_that_does_not_fit_is_told_its_key(tmp_path, kind):
    mapping, message = MAPPINGS[kind]
    depth = {"depth": image(HEIGHT, WIDTH, 1, dtype="uint16")}
    observation = group(**FEATURES["observation"]["featuresDict"]["features"] | depth)
    folder = write(tmp_path, {"train": [[episode(0)]]}, FEATURES | {"observation": observation})
    with pytest.raises(SourceError, match=message):
        read(folder, **mapping)


def test_a_dictionary_of_actions_has_to_be_mapped_or_left_out(tmp_path):
    steps = FEATURES | {"action": group(move=tensor("float32", 3))}
    folder = write(tmp_path, {"train": [[episode(0, **{"steps/action/move": np.zeros((STEPS, 3))})]]}, steps)
    with pytest.raises(SourceError, match=r"actions \(or \[\] for none\)|'action/move'"):
        read(folder)
    reader = read(folder, actions=[])
    assert reader.info.action_space is None
    assert reader.read(reader.keys[0]).actions is None


def test_sources_of_another_kind_are_refused_with_the_reason(tmp_path):
    folder = write(tmp_path, {"train": [[episode(0)]]})
    shard, features, info = folder / NAME.format("train", 0, 1), folder / "features.json", folder / "dataset_info.json"
    kept = {file: file.read_bytes() for file in (shard, features, info)}
    changes = {
        "compressed with gzip": (shard, b"\x1f\x8b\x08\x00" + bytes(60)),
        "only tfrecord can be read": (
            info,
            kept[info].replace(b'"fileFormat": "tfrecord"', b'"fileFormat": "riegeli"'),
        ),
        "names a shard twice": (info, kept[info].replace(b"[{", b"[%s, {" % kept[info].split(b"[", 1)[1][:-2])),
        "in '../made-": (info, kept[info].replace(b'"name": "made"', b'"name": "../made"')),
        "none of its 1 shards": (info, kept[info].replace(b'"made"', b'"other"')),
        "cannot be read as JSON": (features, kept[features][:-5]),
        "stands twice": (features, b'{"featuresDict": {}, "featuresDict": {}}'),
        "cannot be told from each other": (features, json.dumps(group(action=tensor("float32", 7))).encode()),
        "tensorflow_datasets 4": (features, b'{"type": "FeaturesDict", "content": {}}'),
        "maximum recursion": (features, b"[" * 100_000),
    }
    for message, (file, content) in changes.items():
        file.write_bytes(content)
        with pytest.raises(SourceError, match=message):
            read(folder)
        file.write_bytes(kept[file])
    with pytest.raises(SourceError, match=r"no folder|holds no features.json"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("seed", range(8))
def test_messages_of_random_bytes_end_in_an_episode_or_an_error_that_names_it(tmp_path, seed):
    """Checksums are right here: the damage was done before the file was written."""
    generator = random.Random(seed)
    message = bytearray(example(episode(0)))
    for _ in range(generator.choice((1, 3, 50))):
        start = generator.choice((generator.randrange(300), generator.randrange(len(message))))
        message[start : start + generator.choice((1, 4, 64))] = generator.randbytes(generator.choice((0, 1, 4, 64)))
    folder = write(tmp_path, {"train": [[{}]]})
    (folder / NAME.format("train", 0, 1)).write_bytes(record(bytes(message)))
    reader = read(folder)
    problem = ""
    try:
        got = reader.read(reader.keys[0])
        assert all(view.frames[0 : got.length].shape == (got.length, HEIGHT, WIDTH, 3) for view in got.views.values())
    except EpisodeError as error:
        problem = str(error)
    assert not problem or "episode train/00000/000000: " in problem


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of BridgeData is not on this machine")
def test_the_sample_of_bridge_data_is_read_with_its_configuration():
    reader = Rlds(SAMPLE, load_config(Mapping, CONFIGS / "bridge.yaml"))
    assert len(reader.keys) == 25
    assert any("bridge_dataset-val.tfrecord-00000-of-00001" in note for note in reader.notes)
    found = list(episodes_of(reader))
    assert {got.length for got in found} == {10}
    assert {tuple(sorted(got.views)) for got in found} == {("image_0", "image_1", "image_2")}
    assert {got.extra["black_views"] for got in found} == {"image_3"}
    assert len({got.instruction for got in found}) == 4
    assert all(np.abs(got.actions[0, :6]).max() < 1e-6 for got in found)
    gripper = np.concatenate([got.actions[:, 6] for got in found])
    assert (gripper.min(), gripper.max()) == (-1, 1)
    assert all(30 < view.frames[0:10].mean() < 220 for view in found[3].views.values())
