"""scripts/estimate_mi.py: one file in, one JSON object on the last line; what is wrong with a file in one sentence."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lam.audit.estimate import EstimateConfig, estimate_file, load_sample
from lam.audit.ground_truth import binned_bits, binned_copies

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"permutations": 2, "null_samples": 500, "estimators": ("barber_agakov_linear", "nsb")}


def arrays(n=600, correlation=0.9, seed=0):
    sample = binned_copies(n, np.random.default_rng(seed), correlation, tokens=2, codes=8, dims=3)
    return {"codes": sample.codes, "actions": sample.actions, "episodes": sample.episodes}


def saved(path, **changed):
    stored = {name: array for name, array in (arrays() | changed).items() if array is not None}
    np.savez(path / "some.npz", **stored)
    return str(path / "some.npz")


def run(*words):
    command = [sys.executable, "scripts/estimate_mi.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_the_last_line_is_one_object_with_the_estimate_its_null_its_ceiling_and_its_probes(tmp_path):
    done = run(
        saved(tmp_path),
        "--permutations",
        "2",
        "--null_samples",
        "500",
        "--estimators",
        "[ross, barber_agakov_as_published]",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    low, high = report["primary"]["ci95"]
    truth = 2 * binned_bits(0.9, 8)
    assert low < report["primary"]["bits"] < high
    assert 0.8 * truth < report["primary"]["bits"] < truth + 0.1
    assert abs(report["null"]["mean"]) < 0.05
    assert report["null"]["permutations"] == 2
    assert report["primary"]["bits"] < report["ceiling_bits"] <= report["entropy_bits"] + 0.1
    assert report["entropy_bits"] == pytest.approx(6, abs=0.1)
    assert 0.2 < report["probe_nmse"]["linear"] < 0.7
    assert 0.2 < report["probe_nmse"]["mlp"] < 0.9
    assert set(report["estimators"]) == {"ross", "barber_agakov_as_published"}
    assert report["estimators"]["barber_agakov_as_published"]["exploratory"]
    assert (report["n"], report["episodes"]) == (600, 24)
    assert any("24 episodes" in warning for warning in report["warnings"])


def test_latents_alone_have_an_estimate_and_no_entropy(tmp_path):
    rng = np.random.default_rng(0)
    actions = rng.standard_normal((600, 2))
    file = saved(tmp_path, actions=actions, codes=None, latents=actions + rng.standard_normal((600, 2)))
    report = estimate_file(EstimateConfig(file=file, **QUICK | {"estimators": ("ksg", "ross")}))
    assert report["primary"]["bits"] == pytest.approx(1.0, abs=0.2)
    assert report["entropy_bits"] is None
    assert report["ceiling_bits"] > 3
    assert "takes codes" in report["left_out"]["ross"]
    assert report["estimators"]["ksg"]["bits"] == pytest.approx(1.0, abs=0.25)
    json.dumps(report, allow_nan=False)


def test_with_codes_and_latents_both_are_estimated_and_a_misspelt_name_is_told_first(tmp_path, capsys):
    sample = binned_copies(600, np.random.default_rng(0), 0.9, tokens=2, codes=2, dims=3)
    file = saved(tmp_path, codes=sample.codes, actions=sample.actions, latents=sample.actions, episode=np.zeros(600))
    report = estimate_file(EstimateConfig(file=file, **QUICK))
    assert report["primary"]["of"] == "codes"
    assert report["latents"]["bits"] > report["primary"]["bits"] + 1
    assert capsys.readouterr().err.splitlines()[0].startswith("note: episode (did you mean episodes?) ignored")


def test_the_same_file_and_seed_give_the_same_numbers(tmp_path):
    config = EstimateConfig(file=saved(tmp_path), **QUICK)
    assert estimate_file(config) == estimate_file(config)


def test_views_of_one_transition_stay_together(tmp_path):
    two = {name: np.repeat(array, 2, axis=0) for name, array in arrays(300).items() if name != "episodes"}
    sample, warnings = load_sample(saved(tmp_path, **two, episodes=None, views=np.tile([0, 1], 300)))
    np.testing.assert_array_equal(sample.episodes[0::2], sample.episodes[1::2])
    assert len(np.unique(sample.episodes)) == 300
    assert any("one transition" in warning for warning in warnings)


def test_codes_that_never_change_tell_nothing(tmp_path):
    file = saved(tmp_path, codes=np.zeros((600, 2), dtype=int))
    report = estimate_file(EstimateConfig(file=file, **QUICK | {"estimators": ("barber_agakov_linear",)}))
    assert abs(report["primary"]["bits"]) < 0.01
    assert report["entropy_bits"] == 0
    assert any("never change" in warning for warning in report["warnings"])


def test_more_samples_than_an_estimator_can_afford_are_thinned(tmp_path, monkeypatch):
    from lam.audit.estimators import by_name

    entry = by_name.ESTIMATORS["contrastive"]._replace(max_samples=400)
    monkeypatch.setitem(by_name.ESTIMATORS, "contrastive", entry)
    report = estimate_file(EstimateConfig(file=saved(tmp_path), **QUICK))
    assert (report["primary"]["n"], report["n"]) == (400, 600)
    assert any("400 of 600 samples" in warning for warning in report["warnings"])


NAN = np.where(np.arange(600)[:, None] == 7, np.nan, np.ones((600, 3)) * np.arange(600)[:, None])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"actions": None}, "it needs `actions`"),
        ({"codes": None}, "`codes`"),
        ({"codes": np.zeros((600, 2))}, "codes have type float64; code indices are integers"),
        ({"codes": np.zeros(600, dtype=int)}, r"codes have shape \(600,\)"),
        ({"codes": np.zeros((500, 2), dtype=int)}, r"codes \(500, 2\) beside actions \(600, 3\)"),
        ({"actions": np.zeros((600, 3))}, "all 3 dimensions of actions are constant"),
        ({"actions": NAN}, "NaN or infinite in 1 of 600 samples, first in 7"),
        ({"actions": np.full((600, 3), "a")}, "actions has type"),
        ({"actions": np.zeros((600, 3), dtype=object)}, "pickled objects are not read"),
        ({"actions": arrays()["actions"] * 1e300}, "give other units"),
        (
            {"episodes": None, "views": np.arange(600) % 2, "actions": np.arange(600.0)[:, None] // 60},
            "only 10 different",
        ),
        ({"actions": np.arange(600.0)}, r"actions has shape \(600,\); \(n, dims\)"),
        ({"latents": np.zeros((600, 3))}, "all 3 features of latents are constant"),
        ({"episodes": np.zeros((600, 1), dtype=int)}, "episodes has shape"),
        ({"episodes": np.arange(600) // 300}, "2 episodes cannot make 5 folds"),
        ({name: array[:50] for name, array in arrays().items()}, "50 samples"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        estimate_file(EstimateConfig(file=saved(tmp_path, **changed), **QUICK))


def test_files_that_are_no_archives_and_unknown_names_are_refused_with_a_sentence(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez_compressed(tmp_path / "whole.npz", actions=np.random.default_rng(0).normal(size=(600, 3)))
    content = bytearray((tmp_path / "whole.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "damaged.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("actions", "no array")
    cases = {"text.npz": "no .npz of plain numbers", "one.npy": "a single array", "none.npz": "is not there"}
    cases |= {"damaged.npz": "not a readable .npz", "foreign.npz": "'actions', which is no array", ".": "is a folder"}
    for name, sentence in cases.items():
        with pytest.raises(ValueError, match=sentence):
            load_sample(tmp_path / name)
    with pytest.raises(ValueError, match="are unknown; there are contrastive"):
        estimate_file(EstimateConfig(file=saved(tmp_path), estimators=("magic",)))


def test_the_script_says_what_is_wrong_in_one_line_and_fails(tmp_path):
    done = run(str(tmp_path / "none.npz"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("is not there; give a .npz of arrays")
    assert "Traceback" not in done.stderr
    assert run().returncode == 2
