"""Results files survive kills; intervals agree with statsmodels."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from eval.results import (
    Result,
    ResultsError,
    append_result,
    by_arm,
    by_task,
    compare,
    mcnemar,
    newcombe,
    read_results,
    summarise,
    wilson,
)


def result(arm="a", task="Push", seed=0, at_end=True, any_time=True, error=None):
    return Result(
        arm=arm,
        task=task,
        instruction="push",
        seed=seed,
        success_at_end=at_end,
        success_at_any_time=any_time,
        steps=3,
        seconds=0.5,
        error=error,
        policy_fingerprint="f",
        versions={"numpy": "1"},
    )


counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_agrees_with_statsmodels(count):
    low, high = proportion_confint(*count, method="wilson")
    assert wilson(*count) == pytest.approx((low, high), abs=1e-9)


@given(counts, st.sampled_from([0.8, 0.9, 0.95]))
def test_wilson_holds_the_proportion_stays_in_range_and_widens_with_the_level(count, level):
    narrow, wide = wilson(*count, level), wilson(*count, 0.99)
    assert 0 <= wide.low <= narrow.low <= count[0] / count[1] <= narrow.high <= wide.high <= 1
    assert wide.high - wide.low > narrow.high - narrow.low


@given(counts, counts)
def test_newcombe_agrees_with_statsmodels(first, second):
    reference = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    assert newcombe(*first, *second) == pytest.approx(reference, abs=1e-9)


@given(counts, counts)
def test_newcombe_of_exchanged_arms_is_mirrored(first, second):
    interval, mirrored = newcombe(*first, *second), newcombe(*second, *first)
    assert interval == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)


def test_nothing_tried_says_nothing():
    assert wilson(0, 0) == (0, 1)
    assert newcombe(0, 0, 3, 5) == (-1, 1)
    assert summarise([]) == (0, 0.0, 0.0, (0.0, 1.0), 0)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_statsmodels(only_first, only_second):
    reference = reference_mcnemar([[5, only_first], [only_second, 7]], exact=True).pvalue
    assert mcnemar(only_first, only_second) == pytest.approx(reference if only_first + only_second else 1.0)


def test_success_at_the_end_is_what_the_interval_is_of():
    group = [result(seed=0), result(seed=1, at_end=False), result(seed=2, at_end=False, any_time=False, error="E: e")]
    summary = summarise(group)
    assert summary.episodes == 3
    assert summary.success_at_end == pytest.approx(1 / 3)
    assert summary.success_at_any_time == pytest.approx(2 / 3)
    assert summary.wilson95 == wilson(1, 3)
    assert summary.errors == 1


def test_groups_keep_every_result_once():
    results = [result(arm, task, seed) for arm in "ab" for task in ("Push", "Pull") for seed in range(2)]
    assert {arm: len(group) for arm, group in by_arm(results).items()} == {"a": 4, "b": 4}
    assert {task: len(group) for task, group in by_task(results).items()} == {"Push": 4, "Pull": 4}


def test_only_episodes_that_both_arms_have_are_compared():
    first = [result("a", seed=seed, at_end=seed < 6) for seed in range(8)]
    second = [result("b", seed=seed, at_end=seed in (0, 7)) for seed in range(2, 10)]
    comparison = compare(first, second)
    assert comparison.pairs == 6
    assert (comparison.only_first, comparison.only_second) == (4, 1)
    assert comparison.difference == pytest.approx((4 - 1) / 6)
    assert comparison.newcombe95 == newcombe(4, 6, 1, 6)
    assert comparison.p_value == mcnemar(4, 1)


def test_results_come_back_as_they_were_written(tmp_path):
    written = [result(seed=0), result(seed=1, at_end=False, error="ValueError: \n ü")]
    for item in written:
        append_result(tmp_path / "r.jsonl", item)
    assert read_results(tmp_path / "r.jsonl") == written


def test_a_half_written_last_line_is_dropped_and_the_next_append_mends_the_file(tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    append_result(file, result(seed=0))
    append_result(file, result(seed=1))
    file.write_bytes(file.read_bytes()[:-20])
    assert [item.seed for item in read_results(file)] == [0]
    assert "half-written" in capsys.readouterr().err
    append_result(file, result(seed=2))
    assert [item.seed for item in read_results(file)] == [0, 2]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_of_an_error_and_its_repeat_the_repeat_counts(tmp_path):
    append_result(tmp_path / "r.jsonl", result(at_end=False, error="OSError: disk"))
    append_result(tmp_path / "r.jsonl", result())
    assert read_results(tmp_path / "r.jsonl") == [result()]


@pytest.mark.parametrize("line", ["not json", '{"arm": "a"}', "[1]"])
def test_a_broken_line_is_refused_with_its_number(tmp_path, line):
    file = tmp_path / "r.jsonl"
    append_result(file, result())
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ResultsError, match="line 2"):
        read_results(file)


def test_a_missing_file_is_refused_with_the_script_that_makes_it(tmp_path):
    with pytest.raises(ResultsError, match=r"scripts/evaluate\.py"):
        read_results(tmp_path / "r.jsonl")
