"""An evaluation as a table in Markdown."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval.protocol import Protocol, ProtocolError
from eval.results import Result, append_result
from eval.success_table import success_table

ROOT = Path(__file__).resolve().parents[1]


def result(arm, task="Push", seed=0, at_end=True, any_time=None, **changes):
    return Result(
        arm=arm,
        task=task,
        instruction="push",
        seed=seed,
        success_at_end=at_end,
        success_at_any_time=at_end if any_time is None else any_time,
        steps=5,
        seconds=0.1,
        policy_fingerprint=arm,
        protocol=Protocol(benchmark={"step_limit": 50}, policy={}),
        **changes,
    )


def test_a_row_a_task_and_a_column_an_arm_with_counts_intervals_and_errors():
    results = [result("expert", seed=seed) for seed in range(10)]
    results += [result("random", seed=seed, at_end=False, any_time=seed == 0) for seed in range(9)]
    results += [result("random", seed=9, at_end=False, error="it broke"), result("random", task="Pull")]
    assert success_table(results).splitlines() == [
        "| task | steps | expert | random |",
        "|---|---|---|---|",
        "| Push | 50 | 10/10 [0.72, 1.00] | 0/10 [0.00, 0.28], at any time 1, errors 1 |",
        "| Pull | 50 | - | 1/1 [0.21, 1.00] |",
    ]


def test_results_of_different_conditions_do_not_share_a_row():
    other = replace(result("random"), protocol=Protocol(benchmark={"step_limit": 80}, policy={}))
    with pytest.raises(ProtocolError, match="step_limit: 50 -> 80"):
        success_table([result("expert"), other])


def test_the_command_prints_the_table_and_writes_it_beside_the_results(tmp_path):
    append_result(tmp_path / "results.jsonl", result("expert"))
    command = [sys.executable, "scripts/success_table.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| Push | 50 | 1/1 [0.21, 1.00] |" in done.stdout
    assert (tmp_path / "table.md").read_text() == done.stdout
