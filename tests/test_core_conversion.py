"""Conversions end with the same store, byte for byte, however often they are killed, and say what they leave out."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_episodes import INFO, copy_of, files_of, make_episode

from core.conversion import ConversionConfig, Part, convert, convert_part, parts_of
from core.episode import View
from core.formats.interface import SourceError
from core.formats.mapping import Mapping
from core.splits import SplitRule
from core.store import ColumnInfo, Store, finish_store, write_part

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "scripts/convert_episodes.py")
OF_THE_RUN = ("stage.json", "manifest.json")
"""Files of a run that hold times and versions."""
SMALL = {"side": (33, 47)}


def small_episode(number):
    episode = make_episode(number)
    return replace(episode, views={"side": View(frames=episode.views["side"].frames)})


def write_source(path, episodes, parts):
    info = replace(INFO, codec="png", views=SMALL)
    for part in range(parts):
        write_part(path, part, [small_episode(n) for n in range(part, episodes, parts)], info=info)
    finish_store(path, info, parts)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "clips", 12, 3)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More episodes than one part of a store holds."""
    return write_source(tmp_path_factory.mktemp("source") / "clips", 36, 2)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The files of an undisturbed conversion."""
    out = tmp_path_factory.mktemp("whole") / "store"
    convert(ConversionConfig(source=str(source), out=out, workers=1, episodes_per_part=2))
    return files_of(out, OF_THE_RUN)


RUNNER = """
import os, signal, sys
from pathlib import Path
from core.conversion import ConversionConfig, convert
from core.run import run_script

seen, (source, out, workers, last) = 0, sys.argv[1:]

def count(event, arguments):
    "Ends the process at the given change of a file below the store."
    global seen
    changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile")
    if (changes or (event == "open" and arguments[1] not in ("r", "rb", None))) and out in str(arguments[0]):
        seen += 1
        if seen == int(last):
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    sys.addaudithook(count)
    settings = ConversionConfig(source=source, out=Path(out), workers=int(workers), episodes_per_part=2)
    run_script(lambda: convert(settings))
    print(seen)
"""


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(source, out, workers, last=-1):
    command = [sys.executable, "-c", RUNNER, source, out, workers, last]
    return subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=120)


def script(source, out, *words):
    command = [sys.executable, SCRIPT, str(source), str(out), *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def check_same(out, whole):
    assert files_of(out, OF_THE_RUN) == whole
    assert not list(out.rglob("*.partial"))
    assert {path.name for path in out.iterdir()} == {"data", "videos", "meta", *OF_THE_RUN}


def check_kills(source, out, whole, workers, seed, kills):
    """Killed at seeded changes of files, each time in what the runs before have left."""
    rng, killed = random.Random(seed), 0
    for _ in range(kills):
        ended = run(source, out, workers, last=rng.randrange(1, 60))
        killed += ended.returncode == -signal.SIGKILL
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    ended = run(source, out, workers)
    assert ended.returncode == 0, ended.stderr
    check_same(out, whole)
    return killed


def test_a_conversion_killed_again_and_again_gives_the_same_bytes(source, whole, tmp_path):
    assert check_kills(source, tmp_path / "store", whole, workers=1, seed=1, kills=3)


def test_two_processes_killed_give_the_same_bytes(source, whole, tmp_path):
    assert check_kills(source, tmp_path / "store", whole, workers=2, seed=0, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seed", range(2, 8))
def test_conversions_killed_at_many_moments_give_the_same_bytes(source, whole, tmp_path, seed, workers):
    check_kills(source, tmp_path / "store", whole, workers, seed, kills=6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_every_change_of_a_file_leaves_what_can_be_gone_on_with(source, whole, tmp_path):
    changes = int(run(source, tmp_path / "counted", 1).stdout)
    assert changes > 60
    for last in range(1, changes + 1):
        out = tmp_path / f"{last}"
        assert run(source, out, 1, last).returncode == -signal.SIGKILL
        convert(ConversionConfig(source=str(source), out=out, workers=1, episodes_per_part=2))
        check_same(out, whole)
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_script_killed_at_any_time_gives_the_same_bytes(many, tmp_path, workers):
    assert script(many, tmp_path / "whole", "--workers", 1).returncode == 0
    expected, rng = files_of(tmp_path / "whole", OF_THE_RUN), random.Random(workers)
    command = [sys.executable, SCRIPT, str(many), str(tmp_path / "store"), "--workers", str(workers)]
    for _ in range(5):
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.5, 3.5))
        process.kill()
        process.wait()
    ended = script(many, tmp_path / "store", "--workers", workers)
    assert ended.returncode == 0, ended.stderr
    check_same(tmp_path / "store", expected)


def interrupted(command, out):
    """What a process group ends with when the terminal sends it Ctrl-C while parts are being written."""
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/part-0000*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_in_one_sentence_and_the_same_command_goes_on(many, tmp_path, workers):
    out = tmp_path / "store"
    command = [sys.executable, SCRIPT, str(many), str(out), "--workers", str(workers), "--codec", "png"]
    status, said = interrupted(command, out)
    assert (status, "interrupted; the same command goes on" in said) == (130, True), said
    assert "Traceback" not in said
    assert not (out / "meta/info.json").exists()
    ended = script(many, out, "--workers", workers, "--codec", "png")
    assert ended.returncode == 0, ended.stderr
    assert "resuming in" in ended.stderr
    assert len(Store.open(out).episodes) == 36
    np.testing.assert_array_equal(Store.open(out).frames(0, "side"), Store.open(many).frames(0, "side"))


def test_what_was_converted_is_the_source(source, tmp_path):
    store = convert(ConversionConfig(source=str(source), out=tmp_path / "store", codec="png", workers=1, split=None))
    assert [record.episode_id for record in store.episodes] == [r.episode_id for r in Store.open(source).episodes]
    for record in store.episodes:
        episode, written = store.episode(record.index, for_audit=True), small_episode(int(record.extra["seed"]))
        np.testing.assert_array_equal(episode.views["side"].frames, written.views["side"].frames)
        for name in ("actions", "proprioception"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(written, name))
        facts = ("episode_id", "task", "instruction", "is_labelled", "split", "extra")
        assert [getattr(episode, fact) for fact in facts] == [getattr(written, fact) for fact in facts]
        for name, values in written.columns.items():
            np.testing.assert_array_equal(episode.columns[name], values)


def test_a_finished_conversion_is_recognised_and_another_mapping_moves_it_aside(source, tmp_path, capfd):
    config = ConversionConfig(source=str(source), out=tmp_path / "store", workers=1)
    fingerprint = convert(config).fingerprint
    assert convert(config).fingerprint == fingerprint
    assert "already done" in capfd.readouterr().err
    turned = Mapping(views={"turned": {"source": "side", "rotate_deg": 90}})
    assert convert(config.model_copy(update={"mapping": turned})).info.views == {"turned": (47, 33)}
    assert "runs again because config.mapping.views" in capfd.readouterr().err
    (old,) = tmp_path.glob("store.old-*")
    assert Store.open(old).fingerprint == fingerprint


@pytest.fixture
def broken(source, tmp_path):
    """A source of which the data file of episodes 1, 4, 7, 10 is cut off."""
    path = copy_of(source, tmp_path / "broken")
    file = path / "data/chunk-000/file-001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    return path


def test_the_first_bad_episode_stops_a_conversion_with_its_file_its_key_and_advice(broken, tmp_path):
    ended = script(broken, tmp_path / "store", "--workers", 2)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    for word in ("file-001.parquet", "reach/seed=1", "mend it", "--skip-bad, which goes on from here"):
        assert word in last
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "store/meta/info.json").exists()


@pytest.mark.parametrize("episodes_per_part", [1, 4, 16])
def test_bad_episodes_that_are_skipped_are_listed_and_leave_no_gaps(broken, tmp_path, capfd, episodes_per_part):
    config = ConversionConfig(source=str(broken), out=tmp_path / "store", workers=1, skip_bad=True)
    store = convert(config.model_copy(update={"episodes_per_part": episodes_per_part}))
    assert [record.extra["seed"] for record in store.episodes] == [0, 3, 6, 9, 2, 5, 8, 11]
    frames = np.concatenate([store.proprioception(number) for number in range(8)])
    assert len(frames) == store.num_frames
    ends = np.cumsum([record.length for record in store.episodes]).tolist()
    assert [record.start for record in store.episodes] == [0, *ends[:-1]]
    listed = json.loads((tmp_path / "store/meta/skipped.json").read_text())
    assert [entry["key"] for entry in listed] == [f"reach/seed={n}" for n in (1, 4, 7, 10)]
    assert all("file-001.parquet" in entry["reason"] for entry in listed)
    said = capfd.readouterr().err
    assert "4 episodes were left out, see" in said
    assert "reach/seed=10" in said
    assert "promises" not in said


def test_a_source_of_which_nothing_can_be_read_is_refused_even_if_bad_episodes_are_skipped(source, tmp_path):
    path = copy_of(source, tmp_path / "broken")
    for file in path.rglob("data/*/*.parquet"):
        file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="would have no episodes; all were left out, the first because"):
        convert(ConversionConfig(source=str(path), out=tmp_path / "store", workers=1, skip_bad=True))
    assert len(list((tmp_path / "store/parts").glob("part-*"))) == 6
    with pytest.raises(SourceError, match=r"reach/seed=0.*Leave out what cannot be read"):
        convert(ConversionConfig(source=str(path), out=tmp_path / "store", workers=1))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_what_no_episode_is_to_blame_for_ends_a_conversion_also_where_bad_ones_are_skipped(tmp_path, skip_bad):
    class Odd:
        """A source with a column that no store keeps."""

        info, keys, notes = replace(INFO, columns={"waves": ColumnInfo("complex64", (1,))}), ("0", "1"), ()

        def read(self, key):
            return small_episode(int(key))

    config = ConversionConfig(source="odd", out=tmp_path / "store", skip_bad=skip_bad)
    with pytest.raises(SourceError, match="odd cannot be stored: column waves is complex64"):
        convert_part(config, Odd(), Part(0, ["0", "1"]), known=())


@pytest.mark.parametrize(("episodes", "parts"), [(1, 1), (8, 8), (9, 5), (16, 8), (100, 8), (128, 8), (1000, 63)])
def test_few_episodes_are_several_parts_and_many_are_not_many_files(episodes, parts):
    keys = [f"{number}" for number in range(episodes)]
    found = parts_of(keys)
    assert [part.number for part in found] == list(range(parts))
    assert [key for part in found for key in part.keys] == keys
    assert max(len(part.keys) for part in found) <= 16


def test_a_store_in_its_source_and_the_reverse_are_refused(source, tmp_path):
    path = copy_of(source, tmp_path / "clips")
    for out in (path, path / "store", tmp_path):
        with pytest.raises(SourceError, match="lie in each other"):
            convert(ConversionConfig(source=str(path), out=out, workers=1))
    assert files_of(path) == files_of(source)
    with pytest.raises(SourceError, match="there is nothing at"):
        convert(ConversionConfig(source=str(tmp_path / "none"), out=tmp_path / "store", workers=1))


def test_splits_are_made_by_the_rule_or_kept(source, tmp_path):
    config = ConversionConfig(source=str(source), out=tmp_path / "by_rule", workers=1, split=SplitRule(held_out=0.25))
    assert [record.split for record in convert(config).episodes].count("held_out") == 3
    kept = convert(config.model_copy(update={"out": tmp_path / "kept", "split": None}))
    assert [r.extra["seed"] for r in kept.episodes if r.split == "held_out"] == [4]


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = sys.argv[2:]
if __name__ == "__main__":
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("codec", "workers"), [("png", 1), ("h264", 2)])
def test_a_disk_that_refuses_more_ends_in_a_sentence_and_a_conversion_that_goes_on(many, tmp_path, codec, workers):
    out, words = tmp_path / "store", ["--codec", codec, "--workers", str(workers), "--skip-bad"]
    command = [sys.executable, "-c", LIMITED, "8000", SCRIPT, str(many), str(out), *words]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "File too large" in ended.stderr
    assert not (out / "meta/info.json").exists()
    ended = script(many, out, *words)
    assert ended.returncode == 0, ended.stderr
    assert "0 episodes were left out" in ended.stderr
    assert len(Store.open(out).episodes) == 36


def mounted(path, size):
    path.mkdir()
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)


@pytest.mark.parametrize("codec", ["png", "h264"])
def test_a_full_disk_ends_in_a_sentence_and_a_conversion_that_goes_on(many, tmp_path, codec):
    disk = tmp_path / "disk"
    if os.geteuid() or mounted(disk, "64k").returncode:
        pytest.skip("a small disk can be mounted only as root")
    try:
        words = ["--codec", codec, "--workers", "1", "--skip-bad"]
        ended = script(many, disk / "store", *words)
        assert ended.returncode == 1, ended.stderr
        assert "no space left on the disk" in ended.stderr
        assert "Traceback" not in ended.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        ended = script(many, disk / "store", *words)
        assert ended.returncode == 0, ended.stderr
        assert len(Store.open(disk / "store").episodes) == 36
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the store may still be open here
