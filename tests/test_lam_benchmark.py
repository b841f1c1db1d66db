import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from core.benchmark.arithmetic import operations
from lam.benchmark.memory import memory_of_step
from lam.benchmark.our_step import OurStep, batch_of
from lam.benchmark.profile_by_kind import kind_of, seconds_by_kind
from lam.benchmark.published_step import PublishedModel, PublishedStep
from lam.benchmark.sizes import QUICK
from lam.config import LamConfig
from lam.objectives.interface import DataFacts
from lam.objectives.published import Published
from lam.reference import all_pairs, from_published

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / ".." / "shared" / "golden" / "lam_small.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"reference tensors of the published model are not at {GOLDEN}")
    with safe_open(str(GOLDEN), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def weights_of(golden):
    return {name.removeprefix("weight."): value for name, value in golden.items() if name.startswith("weight.")}


def plain(golden) -> PublishedModel:
    model = PublishedModel(LamConfig(width=64, heads=4, encoder_blocks=2, decoder_blocks=2, code_dim=32), 768)
    model.load_state_dict(weights_of(golden))
    return model


def test_the_plain_step_has_the_published_loss_and_gradients(golden):
    model = plain(golden)
    loss = model(golden["input.features"])
    loss.backward()
    assert loss.item() == pytest.approx(golden["output.loss"].item(), abs=1e-5)
    for name, wanted in golden.items():
        if name.startswith("grad."):
            found = model.get_parameter(name.removeprefix("grad.")).grad
            torch.testing.assert_close(found.reshape(wanted.shape), wanted, atol=1e-6, rtol=1e-4)


def test_the_plain_step_and_ours_have_the_same_loss_and_both_lower_it(golden):
    features = golden["input.features"]
    ours = from_published(weights_of(golden), heads=4, patches=16)
    objective = Published(ours, DataFacts(cameras=2, action_dims=0, senses=0))
    loss = objective.terms(all_pairs(features))["loss"].item()
    published = PublishedStep(plain(golden), features, bf16=False)
    step = OurStep(ours, batch_of(features, pairs=0), bf16=False)
    first, ours_first = published(), step()
    assert first == pytest.approx(loss, abs=1e-5)
    assert published() < first
    assert step() < ours_first


def test_a_batch_names_each_pair_by_its_rows():
    features = torch.arange(6.0).view(3, 2, 1, 1, 1).expand(3, 2, 2, 4, 5)
    everything = batch_of(features, pairs=0)
    assert everything["features"][:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert everything["sample"].tolist() == [0, 0, 0, 1, 1, 1]
    assert everything["own"].tolist() == [0, 1, 2, 3, 4, 5]
    assert len({tuple(pair) for pair in everything["cross"].tolist()}) == 12
    assert (everything["sample"][everything["cross"][:, 0]] == everything["sample"][everything["cross"][:, 1]]).all()
    assert (everything["cross"][:, 0] != everything["cross"][:, 1]).all()
    sampled = batch_of(features, pairs=1)
    assert sampled["features"][:, 0, 0, 0].tolist() == [0, 2, 1, 3]
    assert sampled["own"].tolist() == [0, 2]
    assert sampled["cross"].tolist() == [[0, 1], [2, 3]]


def test_our_step_needs_fewer_operations_than_the_published_one():
    features = QUICK.features(views=2, batch=2, device=CPU)
    published = PublishedStep(PublishedModel(QUICK.model, QUICK.feature_dim), features, bf16=False)
    all_of_them = OurStep(QUICK.new_model(), batch_of(features, pairs=0), bf16=False)
    some = OurStep(QUICK.new_model(), batch_of(features, pairs=1), bf16=False)
    assert operations(some) < operations(all_of_them) < operations(published)


def test_the_profile_puts_operations_where_they_belong():
    assert kind_of("aten::addmm") == "matrix products"
    assert kind_of("aten::_softmax_backward_data") == "attention"
    assert kind_of("aten::native_layer_norm_backward") == "normalisation"
    assert kind_of("autograd::engine::evaluate_function: AddBackward0") == "rest"
    features = QUICK.features(views=2, batch=2, device=CPU)
    found = seconds_by_kind(OurStep(QUICK.new_model(), batch_of(features, 0), bf16=False), CPU)
    assert all(seconds > 0 for seconds in found.values())


def test_checkpointing_takes_less_memory():
    sizes = QUICK._replace(patches=512)
    kept, forgotten = (memory_of_step(sizes, CPU, 4, "all pairs", is_on) for is_on in (False, True))
    assert 0 < forgotten < 0.7 * kept


def test_the_command_prints_its_tables_and_keeps_the_numbers(tmp_path):
    out = tmp_path / "numbers.json"
    command = [sys.executable, "scripts/benchmark.py", "lam", "--quick", "--only", "1,2,3,4", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(out.read_text())
    ratio = numbers["against_published"]["published / ours, both float32"]
    assert f"{ratio:9.2f}" in done.stdout
    assert numbers["against_live_features"]["on the fly / cached"] > 0
    assert set(numbers["labelling"]["seconds"]) >= {"in batches, default precision"}
    assert 0 < numbers["share_of_peak"]["share of the best rate, whole step"] < 1
    refused = subprocess.run([*command[:-1], str(out), "--only", "9"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "there are no measurements [9]" in refused.stderr
