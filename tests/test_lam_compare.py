"""Runs are compared only where the comparison means something, on the same episodes, and each is measured once."""

import json
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.episode import Episode, View
from core.frames import FeatureCache
from core.run import StageError, write_json
from core.significance import holm
from core.spaces import END_EFFECTOR_DELTA
from core.store import Store, StoreInfo, finish_store, write_part
from core.training import TrainingConfig
from core.vision import EncoderConfig
from lam.audit import comparison
from lam.audit.comparison import (
    Arm,
    CompareConfig,
    arms_of,
    compare,
    compared,
    compared_settings,
    picture,
    require_comparable,
    table,
)
from lam.audit.mutual_information import linear_gaussian_bits, log_ratio_bits
from lam.audit.probes import linear_probe, one_hot
from lam.checkpoint import load_lam
from lam.config import LamConfig
from lam.train import TrainLamConfig, train

ROOT = Path(__file__).parents[1]
TINY = EncoderConfig(name="pixels_patch16", image_size=32, dtype="float32")
MODEL = LamConfig(network="perceptron", width=16, code_dim=8, codebook="per_token", normalise_encodings=True)
INPUTS = {"arm.store": "aaa", "arm.features": "bbb"}


def settings_of(out: Path, objective="self", seed=0, data=("store", "features"), **changes) -> TrainLamConfig:
    training = {"steps": 3, "batch_size": 4, "warmup_steps": 1, "mixed_precision": "no", "seed": seed}
    source = dict(zip(("store", "features"), map(str, data), strict=True))
    training = TrainingConfig(**(training | changes.pop("training", {})))
    values = {"data": {"arm": source}, "model": MODEL, "encoder": TINY, "training": training}
    return TrainLamConfig(out=str(out), objective=objective, **(values | changes))


def manifest_only(path: Path, inputs=INPUTS, name="train_lam", **values) -> str:
    """What is there of a finished run, but for the weights."""
    path.mkdir()
    config = settings_of(path, **values).model_dump(mode="json")
    write_json(path / "manifest.json", {"name": name, "config": config, "inputs": inputs, "fingerprint": path.name})
    return str(path)


def arms(tmp_path, seeds=(1, 2), **by_objective) -> list[str]:
    """Manifests of runs: an arm an objective, with its other settings."""
    return [
        manifest_only(tmp_path / f"{objective}_{seed}", objective=objective, seed=seed, **changes)
        for objective, changes in by_objective.items()
        for seed in seeds
    ]


def test_what_does_not_change_the_result_of_a_training_is_not_compared(tmp_path):
    one = settings_of(tmp_path / "one", seed=1, data=("a", "b"))
    other = settings_of(
        tmp_path / "other", seed=2, data=("c", "d"), gradient_checkpointing=False,
        training={"log_every": 7, "loader_workers": 2, "checkpoint_every": 3, "validate_every": 9},
    )  # fmt: skip
    assert compared_settings(one.model_dump(mode="json")) == compared_settings(other.model_dump(mode="json"))
    longer = settings_of(tmp_path / "one", training={"steps": 4})
    assert compared_settings(one.model_dump(mode="json")) != compared_settings(longer.model_dump(mode="json"))


def test_a_run_from_before_a_setting_existed_has_its_default(tmp_path):
    config = settings_of(tmp_path).model_dump(mode="json")
    whole = compared_settings(config)
    del config["revive_every"], config["model"]["beta"], config["data"]["arm"]["views"]
    assert compared_settings(config) == whole
    assert {"revive_every", "model.beta", "data.arm.views", "objective"} <= set(whole)


def test_runs_are_grouped_by_everything_but_seed_and_named_by_what_differs(tmp_path):
    runs = arms(tmp_path, self={}, self_cross={})
    found = arms_of([runs[0], runs[3], runs[1], runs[2]])
    assert [arm.name for arm in found] == ["self", "self_cross"]
    assert [arm.runs for arm in found] == [{1: runs[0], 2: runs[1]}, {2: runs[3], 1: runs[2]}]
    assert [arm.name for arm in arms_of(runs, baseline="self_cross")] == ["self_cross", "self"]
    require_comparable(found)
    with pytest.raises(ValueError, match="no arm 'selfcross' to be the baseline; the arms are 'self', 'self_cross'"):
        arms_of(runs, baseline="selfcross")


def test_arms_that_differ_in_two_settings_are_refused_unless_told(tmp_path):
    found = arms_of(arms(tmp_path, self={}, self_cross={"training": {"steps": 9}}))
    with pytest.raises(
        ValueError, match=r"differ in 2 settings.*objective \(self, self_cross\); training.steps \(3, 9\)"
    ):
        require_comparable(found)
    require_comparable(found, allow_differences=True)
    assert [arm.name for arm in found] == ["self, 3", "self_cross, 9"]


def test_each_arm_may_differ_from_the_baseline_in_another_setting(tmp_path):
    runs = arms(tmp_path, self={}, self_cross={})
    runs += [manifest_only(tmp_path / f"pool_{seed}", seed=seed, pool=2) for seed in (1, 2)]
    require_comparable(arms_of(runs))
    with pytest.raises(ValueError, match=r"objective \(self_cross, self\); pool \(1, 2\)"):
        require_comparable(arms_of(runs, baseline="self_cross, 1"))


def test_runs_on_different_data_are_refused_even_when_differences_are_allowed(tmp_path):
    runs = arms(tmp_path, self={})
    runs += [manifest_only(tmp_path / f"x{seed}", seed=seed, inputs=INPUTS | {"arm.store": "ccc"}) for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"learned from different data: arm.store \(aaa, ccc\)"):
        require_comparable(arms_of(runs), allow_differences=True)


def test_seeds_without_partners_are_named(tmp_path):
    runs = arms(tmp_path, seeds=(1, 2, 5), self={}, self_cross={})
    with pytest.raises(ValueError, match=r"arm 'self_cross' has no run of seed 2, 5; runs are paired"):
        require_comparable(arms_of(runs[:4]))
    with pytest.raises(ValueError, match=r"arm 'self' has no run of seed 2; arm 'self_cross' has no run of seed 5"):
        require_comparable(arms_of([runs[0], *runs[2:5]]))


def test_too_little_to_compare_is_refused(tmp_path):
    runs = arms(tmp_path, self={}, self_cross={})
    with pytest.raises(ValueError, match="only one arm, nothing but the seed differs"):
        require_comparable(arms_of(runs[:2]))
    with pytest.raises(ValueError, match=r"1 seed an arm says nothing.* 6 for p < .05"):
        require_comparable(arms_of([runs[0], runs[2]]))
    with pytest.raises(ValueError, match=r"self_1 and .*self_1 are the same configuration with the same seed 1"):
        arms_of([runs[0], runs[0]])
    with pytest.raises(StageError, match="is a run of audit_lam, not of train_lam"):
        arms_of([manifest_only(tmp_path / "audit", name="audit_lam")])
    with pytest.raises(StageError, match="no manifest in"):
        arms_of([str(tmp_path / "nothing")])


def made_up(effects, seeds=6, episodes=30, noise=0.02, seed=0):
    """Measurements of a baseline and of arms with these effects in bits; what the arms share is large."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 15, episodes)
    shared = rng.normal(1.0, 1.0, (seeds, 1)) + rng.normal(size=(1, episodes))
    runs, measured = [], {}
    for name, effect in {"base": 0.0, **effects}.items():
        order = range(seeds) if name == "base" else reversed(range(seeds))
        runs.append(Arm(name, {"objective": name}, INPUTS, {number: f"{name}_{number}" for number in order}))
        for number in range(seeds):
            bits = shared[number] + effect + noise * rng.normal() + noise * rng.normal(size=episodes)
            measured[f"{name}_{number}"] = {
                "counts": counts.tolist(),
                "bits": (bits * counts).tolist(),
                "nmse": ((2 - bits) * counts).tolist(),
                "null_bits": 0.01,
                "entropy_bits": 9.0,
            }
    return runs, measured


def test_effects_are_found_by_pairing_and_adjusted_over_the_comparisons():
    result = compared(*made_up({"better": 0.2, "same": 0.0}), seed=0)
    better, same = (row["bits"] for row in result["differences"])
    assert better["ci95"][0] < 0.2 < better["ci95"][1]
    assert better["ci95"][0] > 0.1, "the seeds' own spread of 1 bit is gone"
    assert same["ci95"][0] < 0 < same["ci95"][1]
    assert (better["positive"], better["seeds"], better["episodes"]) == (6, 6, 30)
    assert better["p_permutation"] == 2 / 2**6
    for p in ("p_permutation", "p_wilcoxon"):
        assert [better[f"{p}_holm"], same[f"{p}_holm"]] == holm([better[p], same[p]])
    assert np.mean(better["by_seed"]) == pytest.approx(better["mean"])
    worse = result["differences"][0]["nmse"]
    assert worse["mean"] == pytest.approx(-better["mean"])
    levels = [arm["bits"]["mean"] for arm in result["arms"]]
    assert levels[1] - levels[0] == pytest.approx(better["mean"])
    json.dumps(result)


def test_the_table_warns_where_no_effect_could_reach_significance():
    said = "\n".join(table(compared(*made_up({"better": 0.2}, seeds=5), seed=0)))
    assert "5 seeds and 1 comparison(s) cannot give a p under 0.0625" in said
    assert "takes 6 seeds" in said
    assert "takes 7 seeds" in "\n".join(table(compared(*made_up({"a": 0.2, "b": 0.1}, seeds=6), seed=0)))
    enough = "\n".join(table(compared(*made_up({"better": 0.2}, seeds=6), seed=0)))
    assert "warning" not in enough
    assert "6/6 seeds above 0, permutation p 0.0312" in enough


def test_the_picture_is_a_drawing_that_names_the_arms():
    drawn = picture(compared(*made_up({"better": 0.2, "same": 0.0}), seed=0))
    words = "".join(ElementTree.fromstring(drawn).itertext())
    assert all(
        word in words for word in ("base", "better", "same", "bits", "NMSE", "6 paired seeds", "30 held-out episodes")
    )


def test_log_ratios_average_to_the_bits():
    rng = np.random.default_rng(0)
    actions = np.column_stack([rng.normal(size=(300, 2)), np.zeros(300)])
    given = (actions[:, :2] + rng.normal(size=(300, 2)), actions, np.arange(300) // 10)
    ratios = log_ratio_bits(*given, seed=3)
    assert ratios.shape == (300,)
    assert ratios.mean() == pytest.approx(linear_gaussian_bits(*given, permutations=0, seed=3).bits)
    with pytest.raises(ValueError, match="constant"):
        log_ratio_bits(given[0], 0 * actions, given[2])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Episodes of noise with actions; six of twelve are held out."""
    path, noise = tmp_path_factory.mktemp("episodes") / "store", np.random.default_rng(0)
    info = StoreInfo(
        control_hz=5.0, views=dict.fromkeys(("front", "side"), (32, 32)), action_space=END_EFFECTOR_DELTA,
        proprioception_dims=0, robot_type="arm",
    )  # fmt: skip
    episodes = [
        Episode(
            episode_id=f"episode {number}", task="t", instruction="move", control_hz=5.0,
            views={view: View(frames=noise.integers(0, 256, (8, 32, 32, 3), np.uint8)) for view in info.views},
            actions=noise.normal(size=(8, 7)).astype(np.float32), action_space=END_EFFECTOR_DELTA,
            split="held_out" if number % 2 else "train",
        )
        for number in range(12)
    ]  # fmt: skip
    write_part(path, 0, episodes, info=info)
    finish_store(path, info, 1)
    return Store.open(path)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory) -> dict[str, Any]:
    """Two arms of two seeds, a third seed of both, and where to measure them."""
    folder = tmp_path_factory.mktemp("runs")
    features = FeatureCache.build(store, TINY, folder / "features").directory
    runs = {}
    for seed in (1, 2, 3):
        for objective in ("self", "self_cross"):
            runs[objective, seed] = str(folder / f"{objective}_{seed}")
            train(settings_of(folder / f"{objective}_{seed}", objective, seed, data=(store.path, features)))
    first = [runs[objective, seed] for objective in ("self", "self_cross") for seed in (1, 2)]
    where = {"store": str(store.path), "features": str(features), "permutations": 2}
    return {"first": first, "all": list(runs.values()), "where": where}


@pytest.mark.timeout(600)
def test_trained_runs_are_measured_once_and_give_the_numbers_of_the_audit(trained, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    result = compare(CompareConfig(runs=trained["first"], out=out, **trained["where"]))
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["arms"] == result["arms"]
    ElementTree.parse(tmp_path / "out" / "comparison.svg")
    assert (result["differ_in"], result["seeds"], result["episodes"]) == (["objective"], [1, 2], 6)

    config = CompareConfig(runs=trained["first"], out=out, **trained["where"])
    cache = FeatureCache.open(config.features)
    sample = comparison.take_sample(Store.open(config.store), cache, comparison._audit_config(config), 0.4, 1)
    model, _ = load_lam(trained["first"][0])
    given = (one_hot(comparison.sample_codes(model, sample), 16), sample.actions, sample.episodes)
    bits, probe = linear_gaussian_bits(*given, permutations=2), linear_probe(*given)
    assert result["arms"][0]["bits"]["by_seed"][0] == pytest.approx(bits.bits)
    assert result["arms"][0]["nmse"]["by_seed"][0] == pytest.approx(probe.nmse)

    measured, measure = [], comparison.measure
    monkeypatch.setattr(comparison, "measure", lambda path, *rest: measured.append(path) or measure(path, *rest))
    again = compare(config)
    assert (measured, again) == ([], result)
    compare(config.model_copy(update={"runs": tuple(trained["all"])}))
    assert sorted(measured) == sorted(set(trained["all"]) - set(trained["first"]))
    compare(config.model_copy(update={"action_dims": ("x",)}))
    assert sorted(measured[2:]) == sorted(trained["first"]), "another question is measured anew"


def test_the_script_takes_runs_before_its_settings(trained, tmp_path, monkeypatch, capsys):
    words = [f"--{key}={value}" for key, value in trained["where"].items()]
    command = ["compare_lams.py", *trained["first"], *words, "--out", str(tmp_path / "out"), "--baseline", "self_cross"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "scripts/compare_lams.py"))["main"]()
    assert "difference from self_cross:" in capsys.readouterr().err
    assert (tmp_path / "out" / "comparison.svg").exists()


def test_a_place_or_a_store_that_will_not_do_is_refused_before_anything_is_measured(trained, tmp_path):
    where = trained["where"] | {"runs": trained["first"]}
    with pytest.raises(ValueError, match="is another run; choose another directory"):
        compare(CompareConfig(out=trained["first"][0], **where))
    with pytest.raises(ValueError, match=r"action_dims \['lift'\] are unknown"):
        compare(CompareConfig(out=str(tmp_path / "out"), action_dims=("lift",), **where))
    other = FeatureCache.build(
        Store.open(where["store"]), TINY.model_copy(update={"image_size": 48}), tmp_path / "other"
    )
    with pytest.raises(ValueError, match="come from encoder"):
        compare(CompareConfig(out=str(tmp_path / "out"), **(where | {"features": str(other.directory)})))
    assert not list(tmp_path.glob("out/measured/*"))
