"""The calibration table: resumable, complete, and the committed one says what the code does."""

import json
from pathlib import Path

import pytest

from lam.audit.calibration import CalibrationConfig, applies, calibrate, jobs, read_results, summarised
from lam.audit.estimators.by_name import ESTIMATORS, PRIMARY
from lam.audit.ground_truth import CASES

ROOT = Path(__file__).resolve().parents[1]


def config(path, **changed):
    settings = {
        "sizes": (300,),
        "repeats": 2,
        "slow_repeats": 1,
        "estimators": ("barber_agakov_linear", "nsb"),
    } | changed
    files = {"results": "results.jsonl", "page": "page.md", "picture": "page.png"}
    return CalibrationConfig(**{key: str(path / name) for key, name in files.items()}, **settings)


def test_a_calibration_goes_on_where_it_stopped(tmp_path):
    calibrate(config(tmp_path, repeats=1))
    first = (tmp_path / "results.jsonl").read_text()
    calibrate(config(tmp_path))
    both = (tmp_path / "results.jsonl").read_text()
    assert both.startswith(first)
    assert len(both.splitlines()) == 2 * len(first.splitlines()) == len(jobs(config(tmp_path)))
    text = (tmp_path / "page.md").read_text()
    assert all(case in text for case in CASES)
    assert "| binary channel | 0.53 | nsb |" in text
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_every_estimator_has_a_case_with_nothing_and_one_with_something():
    for name in ESTIMATORS:
        truths = [case.bits for title, case in CASES.items() if applies(name, title)]
        assert min(truths) == 0 < max(truths)


def test_rows_have_the_mean_the_spread_and_the_coverage():
    line = {"case": "copy", "estimator": "nsb", "n": 300, "seconds": 1.0}
    lines = [line | {"seed": seed, "bits": 1.9 + seed / 10, "ci95": [1.8, 1.95 + seed / 10]} for seed in (0, 1)]
    row = summarised(lines)["nsb", "copy", 300]
    assert (row.mean, row.covered, row.draws) == (pytest.approx(1.95), 0.5, 2)
    assert row.spread == pytest.approx(0.0707, abs=1e-3)


def test_the_committed_table_has_every_case_and_the_primary_keeps_its_promise():
    results = read_results(ROOT / CalibrationConfig().results)
    rows = summarised(results)
    for (name, case, n), row in rows.items():
        if name == PRIMARY and n >= 1200:
            assert row.mean < CASES[case].bits + 0.1, (case, n)
            assert CASES[case].bits > 0 or abs(row.mean) < 0.05, (case, n)
    missing = [(name, case) for name in ESTIMATORS for case in CASES if applies(name, case)]
    missing = [pair for pair in missing if not any((*pair, n) in rows for n in CalibrationConfig().sizes)]
    assert not missing
    assert json.loads((ROOT / CalibrationConfig().results).read_text().splitlines()[0])["case"] in CASES
