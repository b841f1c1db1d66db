import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARMS = ("latent_pretrained", "no_pretraining", "random", "shuffled_instruction")


def quickstart(out: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "scripts/quickstart.sh", "--profile", "smoke", "--out", str(out), *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The whole smoke profile, on real rendered episodes."""
    out = tmp_path_factory.mktemp("chain") / "run"
    done = quickstart(out)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


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
    assert manifests["lam"]["inputs"]["store"] == manifests["episodes"]["fingerprint"]
    assert manifests["labels"]["inputs"]["lam"] == manifests["lam"]["fingerprint"]
    policy = next(m for name, m in manifests.items() if name.startswith("latent_pretrained"))
    assert policy["inputs"]["pretrained"] == manifests["pretrain"]["fingerprint"]
    audit = json.loads((chain / "audit" / "audit.json").read_text())
    arms = {row["arm"] for row in audit["rows"]}
    assert {"self_cross", "self", "mismatched", "supervised", "untrained"} <= arms


@pytest.mark.sim
@pytest.mark.timeout(1000)
def test_the_same_command_again_does_nothing_and_a_changed_label_store_is_refused(chain):
    before = {path: path.stat().st_mtime for path in chain.rglob("model.safetensors")}
    again = quickstart(chain)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("already done") >= 12
    assert {path: path.stat().st_mtime for path in chain.rglob("model.safetensors")} == before
    labels = ["--labels", str(chain / "labels"), "--out", str(chain / "other")]
    episodes = ["--store", str(chain / "demonstrations"), "--features", str(chain / "demonstration_features")]
    script = [sys.executable, "scripts/pretrain_vla.py", "--config", "configs/vla/pretrain_smoke.yaml"]
    refused = subprocess.run([*script, *episodes, *labels], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert "these labels were made for episodes" in refused.stderr


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
