import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import quickstart

ROOT = Path(__file__).parents[1]
ARMS = ("latent_pretrained", "no_pretraining", "random", "shuffled_instruction")


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_the_chain_runs_from_simulation_to_a_page(chain):
    summary = json.loads((chain / "summary.json").read_text())
    assert set(ARMS) <= set(summary["arms"])
    for arm in ARMS:
        values = summary["arms"][arm]
        low, high = values["wilson95"]
        assert values["episodes"] > 0
        assert 0 <= low <= values["success_at_end"] <= high <= 1
        assert values["success_at_end"] <= values["success_at_any_time"]
    assert summary["seconds_total"] > 0
    page = (chain / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "data:video/mp4" in page


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_every_artefact_names_what_it_was_made_from(chain):
    manifests = {path.parent.name: json.loads(path.read_text()) for path in chain.rglob("manifest.json")}
    assert manifests["lam"]["inputs"]["video.store"] == manifests["episodes"]["fingerprint"]
    assert manifests["labels"]["inputs"]["lam"] == manifests["lam"]["fingerprint"]
    policy = next(m for name, m in manifests.items() if name.startswith("latent_pretrained"))
    assert policy["inputs"]["policy"] == manifests["pretrain"]["fingerprint"]
    audit = json.loads((chain / "audit" / "audit.json").read_text())
    arms = {row["arm"] for row in audit["rows"]}
    assert {"self_cross", "self", "mismatched", "supervised", "self_cross_transformer", "untrained"} <= arms


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_the_same_command_again_does_nothing_and_a_changed_label_store_is_refused(chain):
    before = {path: path.stat().st_mtime for path in chain.rglob("model.safetensors")}
    again = quickstart(chain)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("already done") >= 13
    assert {path: path.stat().st_mtime for path in chain.rglob("model.safetensors")} == before
    labels = ["--labels", str(chain / "labels"), "--out", str(chain / "other")]
    episodes = ["--store", str(chain / "demonstrations"), "--features", str(chain / "demonstration_features")]
    script = [sys.executable, "scripts/pretrain_vla.py", "--config", "configs/vla/pretrain_smoke.yaml"]
    refused = subprocess.run([*script, *episodes, *labels], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert "these labels were made for episodes" in refused.stderr
    episodes = ["--store", str(chain / "episodes"), "--features", str(chain / "features")]
    other_lam = ["--lam", str(chain / "lam_self")]
    refused = subprocess.run(
        [*script, *episodes, *labels, *other_lam], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 1
    assert "latent action model" in refused.stderr.splitlines()[-1]


TRAININGS = {
    "train_lam": ("lam/smoke", {"data.video.store": "episodes", "data.video.features": "features"}),
    "pretrain_vla": ("vla/pretrain_smoke", {"store": "episodes", "features": "features", "labels": "labels"}),
    "finetune_vla": (
        "vla/finetune_smoke",
        {"data.path": "demonstrations", "data.features": "demonstration_features", "policy.path": "pretrain"},
    ),
}


@pytest.mark.sim
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("script", TRAININGS)
def test_each_training_runs_on_two_processes(chain, tmp_path, script):
    config, inputs = TRAININGS[script]
    words = [word for key, directory in inputs.items() for word in (f"--{key}", str(chain / directory))]
    if script == "finetune_vla":
        words += ["--data.demonstrations", "{PushCubeDirections: 4}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, f"scripts/{script}.py", "--config", f"configs/{config}.yaml", "--training.steps", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *words, "--out", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done in") + done.stderr.count("done in") == 1
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 0


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_a_fine_tuned_checkpoint_acts_on_its_own_and_listens_to_nothing_but_its_inputs(chain):
    import numpy as np

    from core.policy import Observation
    from vla.policy import load_policy

    path = next((chain / "finetune").glob("latent_pretrained*"))
    policy = load_policy(str(path))
    image = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    policy.reset("push the cube to the left", seed=0)
    seen = Observation(images={"front": image}, proprioception=np.zeros(9, np.float32))
    chunk = policy.act(seen)
    assert chunk.actions.shape == (8, policy.action_space.dims)
    assert np.isfinite(chunk.actions).all()
    again = policy.act(seen)
    np.testing.assert_array_equal(chunk.actions, again.actions)
    policy.reset("push the cube to the right", seed=0)
    assert not np.array_equal(policy.act(seen).actions, chunk.actions)
    with pytest.raises(ValueError, match="trained with proprioception"):
        policy.act(Observation(images={"front": image}))
