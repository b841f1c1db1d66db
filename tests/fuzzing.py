"""Damage to sources of episodes, one seeded change at a time, and what reading them then comes to.

Run as a program, `python tests/fuzzing.py SOURCE FIRST LAST FOLDER`, so that a crash of the interpreter is seen: it
prints one JSON line a change.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq

from core.config import ConfigError, load_config
from core.formats.by_name import open_source
from core.formats.interface import EpisodeError, SourceError
from core.formats.mapping import Mapping
from core.formats.tfrecord import list_records
from core.lazy_frames import blocks
from core.store import StoreError, finish_store, write_part
from core.video import VideoWriter

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"
TYPED = (EpisodeError, SourceError, StoreError, ConfigError)
LIMIT_S = 30
TEXTS = (".json", ".jsonl", ".yaml", ".csv", ".txt")
LIES = (-1, 0, 1, 7, 10**12, 0.5, -3.0, "", "x", None, True, [], {}, [1], ["x"])


class HangError(BaseException):
    """Reading that does not end; no handler of ours may catch it."""


def real_rlds(folder):
    """Two episodes of the real Bridge recording."""
    source = SHARED / "bridge_toysink_rlds"
    folder.mkdir()
    shard = next(source.glob("*.tfrecord-*"))
    (folder / shard.name).write_bytes(shard.read_bytes()[: list_records(shard).offsets[2]])
    shutil.copy(source / "features.json", folder)
    facts = json.loads((source / "dataset_info.json").read_text())
    facts["splits"] = [split | {"shardLengths": ["2"]} for split in facts["splits"] if split["name"] == "train"]
    (folder / "dataset_info.json").write_text(json.dumps(facts))
    return load_config(Mapping, ROOT / "configs/data/bridge.yaml")


def real_lerobot_v2(folder):
    """The first 24 frames of the real G1 recording, its encoded frames as they are."""
    source = SHARED / "g1_lerobot_v2"
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    os.chmod(folder, 0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    table = next(folder.rglob("*.parquet"))
    pq.write_table(pq.read_table(table).slice(0, 24), table)
    clip = next(folder.rglob("*.mp4"))
    cut_clip(clip, 24)
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick up the bottle"}\n')
    facts = json.loads((folder / "meta/info.json").read_text()) | {"total_episodes": 1, "total_frames": 24}
    (folder / "meta/info.json").write_text(json.dumps(facts))
    return Mapping()


def cut_clip(clip, frames):
    """Keep the first encoded frames."""
    short = clip.with_suffix(".short.mp4")
    with av.open(str(clip)) as read, av.open(str(short), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0], opaque=True)
        for number, packet in enumerate(read.demux(read.streams.video[0])):
            if number < frames and packet.size:
                packet.stream = stream
                written.mux(packet)
    short.replace(clip)


def our_store(folder):
    """A store of this project."""
    from synthetic_episodes import INFO, make_episode

    write_part(folder, 0, [make_episode(number) for number in (0, 1, 2)], info=INFO)
    finish_store(folder, INFO, 1)
    return Mapping()


def hdf5(folder):
    """Trajectories as robomimic writes them."""
    from test_core_hdf5 import write_robomimic

    folder.mkdir()
    write_robomimic(folder / "demos.hdf5", demos=2)
    return load_config(Mapping, overrides={"control_hz": 20, "default_instruction": "lift"})


def video_folder(folder):
    """Clips of two cameras with a table of actions."""
    from synthetic_episodes import moving_picture

    for episode in range(2):
        for view in ("front", "side"):
            clip = folder / f"episode_{episode}" / f"{view}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            with VideoWriter(clip, (48, 64), 10.0) as writer:
                writer.append(moving_picture(episode + 5 * (view == "side"), 12, 48, 64))
                writer.finish()
        rows = "\n".join(f"{0.1 * n:.2f},{0.5 - n / 20:.3f},1" for n in range(12))
        (clip.parent / "actions.csv").write_text(f"x,y,gripper\n{rows}\n")
        (clip.parent / "instruction.txt").write_text("push the cube")
    (folder / "source.yaml").write_text("control_hz: 10\ndefault_instruction: move\n")
    return Mapping()


SOURCES = {"rlds": real_rlds, "lerobot_v2": real_lerobot_v2, "store": our_store, "hdf5": hdf5, "video": video_folder}
NEEDS_SHARED = ("rlds", "lerobot_v2")
CHECKED = ("rlds", "store")
"""Sources with a checksum for every byte of an episode: nothing else than what was written may come out."""


def change(folder, generator):
    """Change one thing; says what."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[generator.integers(len(files))]
    kinds = ["flip", "zero", "swap", "truncate", "delete", "empty", "insert", "latin"]
    if file.suffix in (".json", ".yaml"):
        kinds = ["lie"] * 6 + kinds
    if file.suffix == ".mp4":
        kinds += ["cut"] * 2
    if file.suffix == ".parquet" and "data" in file.parts:
        kinds += ["nan", "shorter", "double"]
    kind = kinds[generator.integers(len(kinds))]
    CHANGES[kind](file, generator)
    return f"{kind} {file.relative_to(folder)}"


def _bytes(edit):
    def change_bytes(file, generator):
        content = bytearray(file.read_bytes())
        edit(content, generator)
        file.write_bytes(content)

    return change_bytes


def _flip(content, generator):
    for place in generator.integers(max(1, len(content)), size=generator.integers(1, 5)):
        if content:
            content[place] ^= int(generator.integers(1, 256))


def _zero(content, generator):
    start = int(generator.integers(max(1, len(content))))
    content[start : start + 64] = bytes(len(content[start : start + 64]))


def _swap(content, generator):
    first, second = (int(place) for place in generator.integers(max(1, len(content) - 16), size=2))
    content[first : first + 16], content[second : second + 16] = (
        content[second : second + 16],
        content[first : first + 16],
    )


def _truncate(content, generator):
    del content[int(generator.integers(max(1, len(content)))) :]


def _insert(content, generator):
    place = int(generator.integers(max(1, len(content))))
    content[place:place] = generator.integers(256, size=7, dtype=np.uint8).tobytes()


def _latin(content, generator):
    place = int(generator.integers(max(1, len(content))))
    content[place : place + 1] = b"\xe9"


def _lie(file, generator):
    import yaml

    value = yaml.safe_load(file.read_text())
    leaves = list(_leaves(value))
    if not leaves:
        return file.write_bytes(b"")
    owner, key = leaves[generator.integers(len(leaves))]
    owner[key] = LIES[generator.integers(len(LIES))]
    return file.write_text(json.dumps(value))


def _leaves(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _leaves(inner)


def _cut(file, generator):
    cut_clip(file, int(generator.integers(1, 8)))


def _table(edit):
    def change_table(file, generator):
        pq.write_table(edit(pq.read_table(file)), file)

    return change_table


def _nan(table):
    import pyarrow as pa

    place = table.schema.get_field_index("action")
    rows = table["action"].to_pylist()
    rows[len(rows) // 2] = [float("nan")] * len(rows[0])
    return table.set_column(place, table.schema.field(place), pa.array(rows, table.schema.field(place).type))


def _double(table):
    place = table.schema.get_field_index("action")
    import pyarrow as pa

    width = len(table["action"][0])
    return table.set_column(place, "action", table["action"].cast(pa.list_(pa.float64(), width)))


CHANGES = {
    "flip": _bytes(_flip),
    "zero": _bytes(_zero),
    "swap": _bytes(_swap),
    "truncate": _bytes(_truncate),
    "insert": _bytes(_insert),
    "latin": _bytes(_latin),
    "delete": lambda file, generator: file.unlink(),
    "empty": lambda file, generator: file.write_bytes(b""),
    "lie": _lie,
    "cut": _cut,
    "nan": _table(_nan),
    "shorter": _table(lambda table: table.slice(0, len(table) - 2)),
    "double": _table(_double),
}


def contents(folder, mapping):
    """Everything of every episode that can be read, and the errors of the others."""
    reader = open_source(folder, mapping)
    found, errors = {}, []
    for key in reader.keys:
        try:
            episode = reader.read(key)
            parts = {f"view {name}": np.concatenate(list(blocks(v.frames))) for name, v in episode.views.items()}
        except EpisodeError as error:
            errors.append(str(error))
            continue
        parts |= {"actions": episode.actions, "state": episode.proprioception, "hz": episode.control_hz}
        parts |= {"instruction": episode.instruction}
        found[episode.episode_id.rsplit("/", 1)[-1]] = parts
    return found, errors, list(reader.notes)


def differs(found, original):
    """The first thing that is not as in the original."""
    for name, parts in found.items():
        if name not in original:
            return f"episode {name} was not there"
        for part, value in parts.items():
            if not np.array_equal(value, original[name].get(part)):
                return f"{part} of {name}"
    return None


def is_said(different, notes):
    """Whether the notes tell of a file that is gone and was no duty: instructions, or all actions of an episode."""
    part, _, episode = different.partition(" of ")
    return any(part in note and (part == "instruction" or episode in note) for note in notes)


def outcome(folder, mapping, original):
    """What reading came to: same, refused, different, or an error that no one should see."""

    def hang(*_):
        raise HangError

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT_S)
    try:
        found, errors, notes = contents(folder, mapping)
    except TYPED as error:
        return {"outcome": "refused", "why": str(error)[:300]}
    except HangError:
        return {"outcome": "hang"}
    except BaseException as error:  # noqa: BLE001 (this is what is looked for)
        return {"outcome": "untyped", "why": f"{type(error).__name__}: {error}"[:500]}
    finally:
        signal.alarm(0)
    different = differs(found, original)
    if different and not is_said(different, notes):
        return {"outcome": "different", "why": different}
    if errors or notes:
        return {"outcome": "refused", "why": (errors + notes)[0][:300]}
    return {"outcome": "same" if len(found) == len(original) else "fewer"}


def main():
    name, first, last, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    mapping = SOURCES[name](folder / "whole")
    original, errors, _ = contents(folder / "whole", mapping)
    assert original, "the undamaged source must be readable"
    assert not errors
    for seed in range(first, last):
        damaged = folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder / "whole", damaged)
        what = change(damaged, np.random.default_rng(seed))
        print(json.dumps({"seed": seed, "change": what} | outcome(damaged, mapping, original)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
