"""What makes a conversion another one: what is in a source, not where it lies; and what conversions say of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from synthetic_clips import write_actions, write_clip

from core.conversion import ConversionConfig, convert, convert_part, parts_of
from core.formats.by_name import open_source
from core.formats.interface import SourceError
from core.store import Store

BAD = 9


def write_takes(path: Path, takes: int = 2, rows: int = 12) -> Path:
    for number in range(takes):
        write_clip(path / f"take_{number:02d}" / "front.mp4")
        write_actions(path / f"take_{number:02d}", rows)
        (path / f"take_{number:02d}" / "instruction.txt").write_text("push")
    return path


def settings(source: Path, out: Path, **changes) -> ConversionConfig:
    return ConversionConfig(source=str(source), out=out, **({"workers": 1} | changes))


def edited(file: Path, old: str, new: str) -> None:
    """Change a file and neither its size nor its times."""
    times, text = file.stat(), file.read_text()
    assert old in text
    assert len(old) == len(new)
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("source.yaml", "robot_type: left", "robot_type: twin"),
        ("take_01/instruction.txt", "push", "pull"),
        ("take_01/actions.csv", "3,-3", "4,-4"),
    ],
)
def test_a_change_that_keeps_the_size_of_a_text_is_noticed(tmp_path, capfd, name, old, new):
    source, out = write_takes(tmp_path / "takes"), tmp_path / "store"
    (source / "source.yaml").write_text("robot_type: left\n")
    before = convert(settings(source, out)).fingerprint
    edited(source / name, old, new)
    after = convert(settings(source, out))
    said = capfd.readouterr().err
    assert "already done" not in said
    assert ("config.mapping.robot_type: left -> twin" in said) == (name == "source.yaml")
    (old_run,) = tmp_path.glob("store.old-*")
    assert (Store.open(old_run).fingerprint, after.fingerprint != before) == (before, True)


def test_a_clip_that_was_written_again_is_noticed_also_where_folders_are_links(tmp_path, capfd):
    write_takes(tmp_path / "elsewhere")
    (tmp_path / "takes").mkdir()
    for take in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "takes" / take.name).symlink_to(take)
    convert(settings(tmp_path / "takes", tmp_path / "store"))
    clip = tmp_path / "elsewhere/take_01/front.mp4"
    os.utime(clip, ns=(clip.stat().st_atime_ns, clip.stat().st_mtime_ns + 1))
    convert(settings(tmp_path / "takes", tmp_path / "store"))
    assert "runs again because inputs.source" in capfd.readouterr().err


def test_a_copy_of_a_source_is_the_same_source(tmp_path, capfd):
    source = write_takes(tmp_path / "takes")
    fingerprint = convert(settings(source, tmp_path / "store")).fingerprint
    shutil.copytree(source, tmp_path / "disk/copy")
    shutil.rmtree(source)
    assert convert(settings(tmp_path / "disk/copy", tmp_path / "store")).fingerprint == fingerprint
    assert "already done" in capfd.readouterr().err
    assert json.loads((tmp_path / "store/manifest.json").read_text())["summary"]["source"] == str(source)


@pytest.fixture
def damaged(tmp_path):
    """Each take has a row less than frames, which is noted; the last but two cannot be read."""
    source = write_takes(tmp_path / "takes", takes=12, rows=11)
    clip = source / f"take_{BAD:02d}/front.mp4"
    clip.write_bytes(clip.read_bytes()[:-1200])
    return source


def notes_of(out: Path) -> list[str]:
    return json.loads((out / "manifest.json").read_text())["summary"]["notes"]


def test_notes_on_episodes_are_kept_and_said_whichever_process_read_them(damaged, tmp_path, capfd):
    for workers in (1, 2):
        convert(settings(damaged, tmp_path / f"{workers}", skip_bad=True, workers=workers))
        said = capfd.readouterr().err
        assert "note: take_05: the last frame has no row in actions and is dropped" in said
        assert f"2 more notes, see {tmp_path / f'{workers}' / 'meta/notes.json'}" in said
    notes = notes_of(tmp_path / "1")
    takes = [note.partition(":")[0] for note in notes if "dropped" in note]
    assert takes == [f"take_{number:02d}" for number in range(12) if number != BAD]
    assert notes_of(tmp_path / "2") == notes


def test_notes_of_a_part_do_not_depend_on_what_its_reader_read_before(damaged, tmp_path):
    config = settings(damaged, tmp_path / "store")
    reader, notes = open_source(damaged), tmp_path / "store/parts/part-00002/notes.json"
    known, parts = tuple(reader.notes), parts_of(reader.keys)
    convert_part(config, reader, parts[2], known)
    alone = notes.read_text()
    for part in parts[1:3]:
        convert_part(config, reader, part, known)
    assert ("take_05" in alone, notes.read_text()) == (True, alone)


def test_leaving_out_what_is_bad_goes_on_from_where_it_was_met(damaged, tmp_path, capfd):
    convert(settings(damaged, tmp_path / "whole", skip_bad=True))
    out = tmp_path / "store"
    with pytest.raises(SourceError, match=r"take_09.*--skip-bad, which goes on from here"):
        convert(settings(damaged, out))
    capfd.readouterr()
    before = {part.name: (part / "front.mp4").stat().st_ino for part in (out / "parts").glob("part-*[0-9]")}
    assert len(before) == 4
    store = convert(settings(damaged, out, skip_bad=True))
    said = capfd.readouterr().err
    assert "resuming in" in said
    assert "1 episodes were left out" in said
    videos = sorted((out / "videos").rglob("*.mp4"))
    assert set(before.values()) <= {video.stat().st_ino for video in videos}
    assert store.fingerprint == Store.open(tmp_path / "whole").fingerprint
    assert notes_of(out) == notes_of(tmp_path / "whole")


def test_a_store_that_lacks_episodes_is_not_taken_for_a_whole_one(damaged, tmp_path):
    config = settings(damaged, tmp_path / "store", skip_bad=True)
    convert(config)
    with pytest.raises(SourceError, match=r"made with --skip-bad and lacks 1 episodes .*take_09"):
        convert(config.model_copy(update={"skip_bad": False}))
    assert len(convert(config).episodes) == 11
