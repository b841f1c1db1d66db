"""Somebody's own clips and tables become a policy with the four commands of the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from core.policy import Observation
from core.store import Store
from vla.policy import load_policy

ROOT = Path(__file__).resolve().parents[1]
HZ, STEPS, TAKES = 10, 12, 6
NAMES = "x,y,z,gripper"


def write_take(folder: Path, number: int) -> None:
    """A square that moves to the right, filmed at three times the control rate."""
    folder.mkdir(parents=True)
    with av.open(str(folder / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=3 * HZ)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        for frame in range(3 * STEPS):
            picture = np.full((120, 160, 3), 60 + 10 * number, np.uint8)
            picture[40:60, 3 * frame : 3 * frame + 20] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    rng = np.random.default_rng(number)
    for name, names in (("actions", NAMES), ("proprioception", "j1,j2")):
        values = rng.normal(size=(STEPS, len(names.split(","))))
        np.savetxt(folder / f"{name}.csv", values, delimiter=",", header=names, comments="")
    (folder / "instruction.txt").write_text("slide the plate to the right\n")


def run(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_a_folder_of_clips_becomes_a_policy_in_four_commands(chain, tmp_path):
    for number in range(TAKES):
        write_take(tmp_path / "takes" / f"take_{number}", number)
    episodes, features, policy = (tmp_path / name for name in ("episodes", "features", "policy"))
    run("scripts/convert_episodes.py", tmp_path / "takes", episodes, "--control-hz", HZ)
    run("scripts/inspect_episodes.py", episodes, "--out", tmp_path / "page.html", "--json", tmp_path / "page.json")
    vit = ("--config", "configs/features/vit_small.yaml", "--workers", "1")
    run("scripts/cache_features.py", *vit, "--store", episodes, "--out", features)
    inputs = ("--policy.path", chain / "pretrain", "--data.path", episodes, "--data.features", features)
    inputs += ("--data.views", "[phone]")
    config = ("--config", "configs/vla/finetune_smoke.yaml", "--training.steps", "2")
    run("scripts/finetune_vla.py", *config, *inputs, "--out", policy)
    store = Store.open(episodes)
    assert (store.num_frames, store.info.control_hz, list(store.info.views)) == (TAKES * STEPS, HZ, ["phone"])
    assert json.loads((tmp_path / "page.json").read_text())["problems"]
    summary = json.loads((policy / "manifest.json").read_text())["summary"]
    assert summary["demonstrations"] == len(store.select(split="train")) == TAKES - 1
    trained = load_policy(str(policy))
    trained.reset("slide the plate to the right", seed=0)
    seen = Observation(images={"phone": store.frames(0, "phone", [0])[0]}, proprioception=store.proprioception(0)[0])
    chunk = trained.act(seen)
    assert chunk.actions.shape == (8, 4)
    assert trained.action_space.names == tuple(NAMES.split(","))
