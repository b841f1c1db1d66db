"""Pearson's correlation and MMRV are those that SIMPLER published, and what the definition says."""

import json
import math
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.agreement import (
    AgreementError,
    ScoreTable,
    agreement,
    is_reproduced,
    mean_maximum_rank_violation,
    not_reproduced,
    pearson,
    read_tables,
)

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED_FILE = ROOT / "../shared/data/simpler_published_success.json"
PUBLISHED = {
    "tables": {
        # arXiv 2405.05941: rt-2-x, rt-1-converged, rt-1-15pct, rt-1-x, rt-1-begin, octo-base.
        "google_robot_pick_coke_can": {
            "real": dict(zip("abcdef", (0.907, 0.853, 0.920, 0.760, 0.133, 0.293), strict=True)),
            "simulated": dict(zip("abcdef", (0.787, 0.857, 0.710, 0.567, 0.027, 0.170), strict=True)),
            "mmrv": 0.031,
            "pearson": 0.975,
        },
        # rt-1-x, octo-base, octo-small.
        "widowx_carrot_on_plate": {
            "real": {"a": 0.0, "b": 0.25, "c": 0.083},
            "simulated": {"c": 0.097, "a": 0.042, "b": 0.083},
            "mmrv": 0.111,
            "pearson": 0.571,
        },
    }
}
rates = st.lists(
    st.tuples(st.integers(0, 10).map(lambda n: n / 10), st.integers(0, 10).map(lambda n: n / 10)),
    min_size=2,
    max_size=8,
)


def saved(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def command(path):
    return subprocess.run(
        [sys.executable, ROOT / "scripts/compare_simulation.py", path], capture_output=True, text=True, check=False
    )


def worst_violations(real, simulated):
    """Equation 1 of the paper, one pair after another."""
    worst = [0.0] * len(real)
    for i, j in permutations(range(len(real)), 2):
        if (simulated[i] < simulated[j]) != (real[i] < real[j]):
            worst[i] = max(worst[i], abs(real[i] - real[j]))
    return worst


def test_published_tables_give_the_published_values(tmp_path):
    for task, table in read_tables(saved(tmp_path, PUBLISHED)).items():
        found = agreement(table)
        assert round(found.pearson, 3) == PUBLISHED["tables"][task]["pearson"]
        assert round(found.mmrv, 3) == PUBLISHED["tables"][task]["mmrv"]
        assert found.mmrv_of_better == found.mmrv, "nothing ties here"


def test_the_command_reproduces_the_file_of_published_tables():
    if not PUBLISHED_FILE.exists():
        pytest.skip(f"{PUBLISHED_FILE} is not on this machine")
    finished = command(PUBLISHED_FILE)
    assert finished.returncode == 0, finished.stderr
    tables = json.loads(PUBLISHED_FILE.read_text())["tables"]
    assert finished.stdout.count("agrees") == 2 * len(tables)
    for line, (task, table) in zip(finished.stdout.splitlines(), tables.items(), strict=True):
        assert line.startswith(f"{task}: ")
        assert f"Pearson {table['pearson']:.3f}" in line
        assert f"MMRV {table['mmrv']:.3f}" in line


@given(rates)
def test_mmrv_is_the_definition_counted_out(pairs):
    real, simulated = zip(*pairs, strict=True)
    expected = np.mean(worst_violations(real, simulated))
    assert mean_maximum_rank_violation(real, simulated) == pytest.approx(expected, abs=1e-12)


@given(rates)
def test_any_simulation_in_the_right_order_violates_nothing(pairs):
    real = [rate for rate, _ in pairs]
    assert mean_maximum_rank_violation(real, [rate**3 / 2 for rate in real]) == 0


def test_a_reversed_order_costs_the_largest_difference_of_each_policy():
    assert mean_maximum_rank_violation([0.1, 0.2, 0.9], [0.9, 0.5, 0.1]) == pytest.approx((0.8 + 0.7 + 0.8) / 3)


def test_a_tie_in_simulation_is_charged_to_the_worse_policy_and_the_other_reading_is_given_too(tmp_path):
    found = agreement(ScoreTable(list("abc"), [0.0, 0.1, 0.5], [0.3, 0.3, 0.3], {}))
    assert found.mmrv == pytest.approx((0.5 + 0.4 + 0.0) / 3)
    assert found.mmrv_of_better == pytest.approx((0.0 + 0.1 + 0.5) / 3)
    tied = {"tables": {"t": {"real": {"a": 0.0, "b": 0.1, "c": 0.5}, "simulated": {"a": 0.3, "b": 0.3, "c": 0.3}}}}
    finished = command(saved(tmp_path, tied))
    assert "MMRV 0.300" in finished.stdout
    assert "gives MMRV 0.200" in finished.stdout
    assert "Pearson undefined" in finished.stdout
    assert finished.returncode == 0


@given(rates)
def test_pearson_is_that_of_numpy_and_undefined_for_a_constant(pairs):
    real, simulated = map(list, zip(*pairs, strict=True))
    found = pearson(real, simulated)
    if len(set(real)) == 1 or len(set(simulated)) == 1:
        assert math.isnan(found)
    else:
        a, b = np.array(real) - np.mean(real), np.array(simulated) - np.mean(simulated)
        assert found == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_the_order_of_policies_in_the_file_does_not_matter(tmp_path):
    shuffled = json.loads(json.dumps(PUBLISHED))
    for table in shuffled["tables"].values():
        table["simulated"] = dict(reversed(table["simulated"].items()))
    assert read_tables(saved(tmp_path, shuffled)) == read_tables(saved(tmp_path, PUBLISHED))


def test_a_stated_value_that_does_not_come_out_ends_in_status_1_and_all_tasks_are_still_said(tmp_path):
    wrong = json.loads(json.dumps(PUBLISHED))
    wrong["tables"]["google_robot_pick_coke_can"]["mmrv"] = 0.034
    finished = command(saved(tmp_path, wrong))
    assert finished.returncode == 1
    assert "MMRV 0.031 (stated 0.034: DOES NOT AGREE)" in finished.stdout
    assert "widowx_carrot_on_plate" in finished.stdout
    assert "mmrv of google_robot_pick_coke_can" in finished.stderr


def test_a_stated_value_may_be_off_by_what_was_rounded_away_only():
    assert is_reproduced(0.975, 0.97543)
    assert not is_reproduced(0.972, 0.97543)
    table = ScoreTable(["a", "b"], [0.0, 1.0], [0.0, 0.0], {"pearson": 1.0, "mmrv": 0.5})
    assert not_reproduced(table, agreement(table)) == ["pearson"], "an undefined correlation is nobody's"


def test_a_table_that_states_nothing_is_only_computed(tmp_path):
    finished = command(
        saved(tmp_path, {"tables": {"t": {"real": {"a": 1, "b": 0}, "simulated": {"a": 0.5, "b": 0.2}}}})
    )
    assert finished.returncode == 0
    assert finished.stdout == "t: 2 policies, Pearson 1.000, MMRV 0.000\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "has no tables"),
        ({"tables": {}}, "has no tables"),
        ({"tables": {"t": 3}}, "task t needs success rates by policy"),
        ({"tables": {"t": {"real": {"a": 0.1}}}}, "task t needs success rates by policy"),
        ({"tables": {"t": {"real": {"a": 0, "b": 0.2}, "simulated": {"a": 0, "c": 0}}}}, r"only the robot has \['b'\]"),
        ({"tables": {"t": {"real": {"a": 0.1}, "simulated": {"a": 0.1}}}}, "1 policies; an order needs at least two"),
        ({"tables": {"t": {"real": {"a": 90, "b": 1}, "simulated": {"a": 0, "b": 1}}}}, "a: 90 is not a success rate"),
        ('{"tables": {"t": {"real": {"a": NaN, "b": 1}, "simulated": {"a": 0, "b": 1}}}}', "a: nan is not"),
        ({"tables": {"t": {"real": {"a": True, "b": 1}, "simulated": {"a": 0, "b": 1}}}}, "a: True is not"),
        (
            {"tables": {"t": {"real": {"a": 0, "b": 1}, "simulated": {"a": 0, "b": 1}, "mmrv": "0.1"}}},
            "states mmrv as '0.1'",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused_with_what_is_wrong(tmp_path, content, message):
    with pytest.raises(AgreementError, match=message):
        read_tables(saved(tmp_path, content))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(AgreementError, match=r"no file at nowhere\.json"):
        read_tables("nowhere.json")
