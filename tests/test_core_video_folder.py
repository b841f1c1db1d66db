"""Folders of clips become episodes: the right frame at each control step, upright, with its row of the table."""

import random
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_clips import CLIP_90, numbers_seen, write_actions, write_clip

from core.config import load_config
from core.formats.by_name import open_source
from core.formats.interface import EpisodeError, Reader, SourceError
from core.formats.mapping import Mapping
from core.formats.video_folder import VideoFolder, mapping_of, recognises
from core.spaces import ActionSpace

ROOT = Path(__file__).resolve().parents[1]


def space(kind: str) -> ActionSpace:
    return ActionSpace(names=("x", "gripper"), units=("rad", "open"), kind=kind)


def only(path: Path, mapping: Mapping = Mapping()):
    reader = VideoFolder(path, mapping)
    return reader.read(reader.keys[0])


def test_an_episode_of_two_views_with_actions_is_read(tmp_path):
    for view in ("front", "side"):
        write_clip(tmp_path / "pick" / f"{view}.mp4", audio=view == "front")
    write_actions(tmp_path / "pick", 12)
    (tmp_path / "pick" / "instruction.txt").write_text("pick the\ncup\n")
    reader = VideoFolder(tmp_path, Mapping())
    assert isinstance(reader, Reader)
    assert recognises(tmp_path)
    episode = reader.read("pick")
    assert numbers_seen(episode.views["side"].frames[:]) == list(range(12))
    assert episode.actions.tolist() == [[row, -row] for row in range(12)]
    assert episode.action_space.names == ("x", "gripper")
    assert (episode.instruction, episode.control_hz, episode.task) == ("pick the cup", 10, "pick_the_cup")
    assert reader.info.views == {"front": (32, 48), "side": (32, 48)}
    assert reader.info.proprioception_dims == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.m4v", "a.mov", "a.mkv", "a.avi", "a.3gp", "a.MP4"])
def test_every_container_is_read_in_any_order_of_stretches(tmp_path, name):
    write_clip(tmp_path / name)
    frames = only(tmp_path).views["video"].frames
    assert numbers_seen(np.concatenate([frames[0:5], frames[5:12]])) == list(range(12))
    assert numbers_seen(np.concatenate([frames[8:11], frames[2:3], frames[10:12]])) == [8, 9, 10, 2, 10, 11]


def test_a_clock_that_is_a_little_fast_repeats_a_frame(tmp_path):
    write_clip(tmp_path / "a.mp4", frames=40)
    frames = only(tmp_path, Mapping(control_hz=10.3)).views["video"].frames
    wanted = [round(step / 1.03) for step in range(len(frames))]
    one_by_one = np.concatenate([frames[step : step + 1] for step in range(len(frames))])
    assert numbers_seen(one_by_one) == wanted
    assert len(set(wanted)) < len(wanted)


@pytest.mark.parametrize(("codec", "name"), [("libx265", "a.mp4"), ("libvpx-vp9", "a.webm"), ("mpeg4", "a.avi")])
def test_usual_codecs_are_read(tmp_path, codec, name):
    write_clip(tmp_path / name, codec=codec, size=(64, 64))
    assert numbers_seen(only(tmp_path).views["video"].frames[:]) == list(range(12))


def test_the_frame_nearest_to_each_control_step_is_taken(tmp_path):
    times = [0, 90, 205, 290, 405, 500, 590, 710, 800, 895, 1010, 1100]
    write_clip(tmp_path / "a" / "front.mp4", times_ms=times)
    episode = only(tmp_path, Mapping(control_hz=4))
    wanted = [min(range(12), key=lambda n: abs(times[n] - 250 * step)) for step in range(episode.length)]
    assert numbers_seen(episode.views["front"].frames[:]) == wanted
    assert episode.length == 4  # 1.2 s, and a step of which more than a tenth lacks


def test_a_rate_that_varies_or_is_lower_than_control_hz_is_refused(tmp_path):
    write_clip(tmp_path / "a.mp4", times_ms=[0, 100, 200, 600, 700, 800, 900, 1000, 1100, 1200, 1300, 1400])
    with pytest.raises(SourceError, match=r"a\.mp4 varies; set control_hz"):
        VideoFolder(tmp_path, Mapping())
    with pytest.raises(SourceError, match=r"no frame within a control step of 0\.400 s"):
        VideoFolder(tmp_path, Mapping(control_hz=10))
    write_clip(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="frames would repeat; set control_hz"):
        VideoFolder(tmp_path, Mapping(control_hz=20))


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        (CLIP_90, (0, -1)),
        ((-1, 0, 0, -1), (-1, -1)),
        ((0, -1, 1, 0), (-1, 0)),
        ((-1, 0, 0, 1), (0, -1)),  # mirrored, as of selfies
    ],
)
def test_a_phones_turn_is_honoured(tmp_path, matrix, corner):
    write_clip(tmp_path / "a.mp4", matrix=matrix)
    reader = VideoFolder(tmp_path, Mapping())
    frames = reader.read("a.mp4").views["video"].frames[:]
    shape = (48, 32) if not matrix[0] else (32, 48)
    assert reader.info.views == {"video": shape}
    assert frames.shape == (12, *shape, 3)
    corners = {(y, x): frames[0, y, x].mean() for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=corners.get) == corner


def test_a_mapping_turns_further_and_resizes(tmp_path):
    write_clip(tmp_path / "a.mp4", matrix=CLIP_90)
    mapping = Mapping(views={"front": {"source": "video", "rotate_deg": 270, "size": (16, 24)}})
    frames = only(tmp_path, mapping).views["front"].frames[:]
    assert frames.shape == (12, 16, 24, 3)
    assert frames[0, 0, 0].mean() > 250


def test_a_table_with_times_gives_the_nearest_row(tmp_path):
    write_clip(tmp_path / "a" / "front.mp4")
    times = [row * 0.04 + 0.011 for row in range(30)]
    write_actions(tmp_path / "a", 30, times)
    write_actions(tmp_path / "a", 30, times, name="proprioception")
    episode = only(tmp_path, Mapping(action_space=space("joint_position")))
    wanted = [min(range(30), key=lambda row: abs(times[row] - step / 10)) for step in range(12)]
    assert episode.actions[:, 0].tolist() == wanted
    assert episode.proprioception[:, 0].tolist() == wanted


@pytest.mark.parametrize(("rate", "harm"), [(50, "would be lost"), (5, "would count twice")])
@pytest.mark.parametrize("kind", ["delta_joint_position", "unspecified", None])
def test_increments_at_another_rate_than_control_steps_are_refused(tmp_path, rate, harm, kind):
    write_clip(tmp_path / "a" / "front.mp4")
    write_actions(tmp_path / "a", rate * 12 // 10, [row / rate for row in range(rate * 12 // 10)])
    mapping = Mapping(action_space=space(kind) if kind else None)
    with pytest.raises(SourceError, match=rf"{rate} rows a second, control_hz is 10: increments .*{harm}.* to {rate},"):
        VideoFolder(tmp_path, mapping)
    assert only(tmp_path, Mapping(actions=[])).actions is None


def test_increments_at_about_the_rate_of_control_steps_are_read(tmp_path):
    write_clip(tmp_path / "a" / "front.mp4", frames=24, rate=20)
    write_actions(tmp_path / "a", 12, [row / 9.7 for row in range(12)])
    mapping = Mapping(action_space=space("delta_joint_position"), control_hz=10)
    assert only(tmp_path, mapping).actions[:, 0].tolist() == list(range(12))
    write_actions(tmp_path / "a", 1, [0.0])
    write_clip(tmp_path / "a" / "front.mp4", frames=2, rate=20)
    assert only(tmp_path, mapping).length == 1


@pytest.mark.parametrize(("rows", "length"), [(12, 12), (11, 11)])
def test_the_frame_after_the_last_action_is_dropped(tmp_path, rows, length):
    write_clip(tmp_path / "a" / "front.mp4")
    write_actions(tmp_path / "a", rows)
    write_actions(tmp_path / "a", 12, name="proprioception")
    reader = VideoFolder(tmp_path, Mapping())
    episode = reader.read("a")
    assert (episode.length, len(episode.proprioception)) == (length, length)
    assert numbers_seen(episode.views["front"].frames[:]) == list(range(length))
    assert any("dropped" in note for note in reader.notes) == (rows < 12)


def broken(folder: Path, what: str) -> None:
    clip, table = folder / "front.mp4", folder / "actions.csv"
    match what:
        case "13 rows":
            write_actions(folder, 13)
        case "a text":
            table.write_text(table.read_text().replace("3,-3", "3,open"))
        case "nan":
            table.write_text(table.read_text().replace("3,-3", "3,nan"))
        case "times end":
            write_actions(folder, 6, [row / 10 for row in range(6)])
        case "no header":
            table.write_text("1,2\n" * 12)
        case "short row":
            table.write_text(table.read_text().replace("3,-3", "3"))
        case "latin-1":
            (folder / "instruction.txt").write_bytes("Öffne die Tür".encode("latin-1"))
        case "longer view":
            write_clip(folder / "side.mp4", frames=16)
        case "another size":
            write_clip(clip, size=(48, 48))
        case "empty":
            clip.write_bytes(b"")
        case "no video":
            clip.write_bytes(b"RIFF" + bytes(1000))
        case "cut":
            clip.write_bytes(clip.read_bytes()[:-1200])
        case "other columns":
            table.write_text(table.read_text().replace("gripper", "grip"))
        case "two clips":
            write_clip(folder / "front.mov")
        case "two tables":
            pq.write_table(pa.table({"x": range(12)}), folder / "actions.parquet")
        case "parquet":
            table.unlink()
            (folder / "actions.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")


BROKEN = {
    "13 rows": r"13 rows, the clips 12 frames",
    "a text": r"column gripper, row 3: 'open'",
    "nan": r"actions of frame 3",
    "times end": r"no row within a control step \(0\.100 s\) of 0\.700 s",
    "no header": r"first row must name",
    "short row": r"row 3 has 1 values",
    "latin-1": r"instruction\.txt is not UTF-8",
    "longer view": r"front 1\.200 s, side 1\.600 s; trim",
    "another size": r"set views\.front\.size",
    "empty": r"front\.mp4 is empty",
    "no video": r"Invalid data",
    "cut": r"front\.mp4|damaged",
    "other columns": r"action_space is",
    "two clips": r"differ only in their endings",
    "two tables": r"keep one",
    "parquet": r"actions\.parquet is no parquet file, or damaged",
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_episode_that_cannot_be_read_right_is_refused_by_name(tmp_path, what):
    for name in ("a", "b"):
        write_clip(tmp_path / name / "front.mp4")
        write_actions(tmp_path / name, 12)
    broken(tmp_path / "b", what)
    reader = VideoFolder(tmp_path, Mapping())
    with pytest.raises(EpisodeError, match=BROKEN[what]) as caught:
        reader.read("b").views["front"].frames[:]
    assert "episode b:" in str(caught.value)
    assert reader.read("a").length == 12


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("missing", [1, 30, 400])
def test_a_clip_that_was_cut_is_refused(tmp_path, name, missing):
    file = write_clip(tmp_path / name, key_every=1)
    file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises((SourceError, EpisodeError), match=f"{name}|damaged"):
        only(tmp_path).views["video"].frames[:]


@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mp4"), ("libx265", "a.mp4"), ("mjpeg", "a.mov")])
def test_damage_that_is_met_while_decoding_is_refused(tmp_path, codec, name):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    file = write_clip(tmp_path / name, frames=30, size=(96, 96), key_every=1, codec=codec, pixels=pixels)
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat")
    middle = start + (content.index(b"moov") - start) // 2
    content[middle : middle + 60] = random.Random(0).randbytes(60)
    file.write_bytes(content)
    frames = only(tmp_path).views["video"].frames
    with pytest.raises(EpisodeError, match=name):
        frames[:]


def test_what_a_screen_cannot_show_is_refused_and_ten_bits_are_read(tmp_path):
    write_clip(tmp_path / "a.mp4", codec="libx265", pixels="yuv420p10le", size=(64, 64))
    assert numbers_seen(only(tmp_path).views["video"].frames[:]) == list(range(12))
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.color_trc = 18
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match="high dynamic range"):
        VideoFolder(tmp_path, Mapping())


def test_odd_sizes_are_read(tmp_path):
    write_clip(tmp_path / "a.mp4", size=(33, 47), pixels="yuv444p")
    assert only(tmp_path).views["video"].frames[:].shape == (12, 33, 47, 3)


def test_the_users_mapping_goes_before_the_sources_key_by_key(tmp_path):
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "source.yaml").write_text("control_hz: 5\ndefault_instruction: wave\nviews: {front: video}\n")
    mapping = mapping_of(tmp_path, Mapping(control_hz=2))
    assert (mapping.control_hz, mapping.default_instruction, list(mapping.views)) == (2, "wave", ["front"])
    assert only(tmp_path).length == 6
    (tmp_path / "source.yaml").write_text("control_herz: 5\n")
    with pytest.raises(SourceError, match="Did you mean control_hz"):
        VideoFolder(tmp_path, Mapping())


def test_what_is_left_out_is_said_and_mixed_layouts_are_refused(tmp_path):
    write_clip(tmp_path / "a" / "front.mp4")
    write_clip(tmp_path / "a" / "side.mp4")
    (tmp_path / "photos").mkdir()
    reader = VideoFolder(tmp_path, Mapping(views={"front": "front"}))
    assert any("photos" in note for note in reader.notes)
    assert any("side" in note for note in reader.notes)
    write_clip(tmp_path / "b.mp4")
    with pytest.raises(SourceError, match="one layout"):
        VideoFolder(tmp_path, Mapping())
    with pytest.raises(SourceError, match="has no clips"):
        VideoFolder(tmp_path / "photos", Mapping())


def test_files_that_nothing_reads_are_noted_and_slips_are_told(tmp_path):
    for name in ("a", "b", "c"):
        write_clip(tmp_path / name / "front.mp4")
    write_actions(tmp_path / "a", 12)
    for name in ("actions_raw.csv", "instruction.txt", "room.txt", ".DS_Store"):
        (tmp_path / "a" / name).write_text("kitchen")
    for name in ("Action.CSV", "actions.tsv", "proprio.parquet", "wrist.mts"):
        (tmp_path / "b" / name).write_text("?")
    (tmp_path / "c" / "depth").mkdir()
    write_actions(tmp_path / "c", 12, name="action")
    slips = [note for note in VideoFolder(tmp_path, Mapping(scene="room.txt")).notes if "not read" in note]
    assert slips == [
        "Action.CSV is not read, in 1 episodes, the first b: is actions.csv meant?",
        "action.csv is not read, in 1 episodes, the first c: is actions.csv meant?",
        "actions.tsv is not read, in 1 episodes, the first b: is actions.csv meant?",
        "proprio.parquet is not read, in 1 episodes, the first b: is proprioception.parquet meant?",
    ]
    (others,) = [note for note in VideoFolder(tmp_path, Mapping(scene="room.txt")).notes if "left out" in note]
    assert others.startswith("['actions_raw.csv', 'depth', 'wrist.mts'] in folders of episodes")
    assert any("room.txt" in note for note in VideoFolder(tmp_path, Mapping()).notes)


def test_notes_on_files_that_nothing_reads_are_few(tmp_path):
    write_clip(tmp_path / "a" / "front.mp4")
    for number in range(300):
        (tmp_path / "a" / f"IMG_{number}.jpg").write_bytes(b"")
        (tmp_path / "a" / f"action_{number}.csv").write_bytes(b"")
    assert len(VideoFolder(tmp_path, Mapping()).notes) < 20


def test_an_episode_without_actions_beside_others_is_not_labelled(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / name / "front.mp4")
    write_actions(tmp_path / "b", 12)
    reader = VideoFolder(tmp_path, Mapping())
    assert reader.info.action_space.names == ("x", "gripper")
    assert (reader.read("a").actions, reader.read("a").is_labelled) == (None, False)
    assert reader.read("b").is_labelled


def test_parquet_tables_scenes_and_further_columns_are_read(tmp_path):
    write_clip(tmp_path / "a" / "front.mp4")
    pq.write_table(pa.table({"x": np.arange(12), "phase": ["reach"] * 12}), tmp_path / "a" / "actions.parquet")
    (tmp_path / "a" / "room.txt").write_text("kitchen")
    episode = only(tmp_path, Mapping(columns=("phase",), scene="room.txt"))
    assert episode.actions.tolist() == [[row] for row in range(12)]
    assert episode.columns["phase"].tolist() == ["reach"] * 12
    assert episode.extra == {"scene": "kitchen"}


def test_the_mapping_for_phones_takes_ten_frames_a_second(tmp_path):
    write_clip(tmp_path / "a" / "front.mp4", frames=30, rate=30)
    episode = only(tmp_path, load_config(Mapping, ROOT / "configs/data/video_folder.yaml"))
    assert numbers_seen(episode.views["front"].frames[:]) == list(range(0, 30, 3))


def test_changed_bytes_end_in_frames_or_typed_errors(tmp_path):
    """A few of the mutations; hundreds were tried by hand in processes of their own."""
    whole, chance, outcomes = write_clip(tmp_path / "a.mp4").read_bytes(), random.Random(0), []
    for _ in range(30):
        content = bytearray(whole)
        for _ in range(3):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (tmp_path / "a.mp4").write_bytes(content)
        try:
            outcomes.append(only(tmp_path).views["video"].frames[:].shape)
        except (SourceError, EpisodeError) as error:
            outcomes.append(type(error))
    assert {SourceError, EpisodeError} <= set(outcomes)
    assert (12, 32, 48, 3) in outcomes


def test_a_format_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    with pytest.raises(SourceError, match="'zarr'; there are auto, lerobot_v3, lerobot_v2, rlds"):
        open_source(tmp_path, Mapping(format="zarr"))
