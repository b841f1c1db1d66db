"""Results files survive kills; intervals agree with statsmodels."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import proportion_confint

from eval.pairing import contrast
from eval.proportions import mcnemar, paired_interval, wilson
from eval.protocol import Protocol, ProtocolError
from eval.results import (
    Result,
    ResultsError,
    append_result,
    by_arm,
    by_task,
    read_results,
    require_one_protocol,
    require_shared_protocol,
    summarise,
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


def under(item, step_limit=50, execute_steps=4, chunk_horizon=8):
    policy = {"execute_steps": execute_steps, "chunk_horizon": chunk_horizon}
    protocol = Protocol(benchmark={"step_limit": step_limit, "shader": "minimal"}, policy=policy)
    return replace(item, protocol=protocol, protocol_fingerprint=protocol.fingerprint)


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


def test_nothing_tried_says_nothing():
    assert wilson(0, 0) == (0, 1)
    assert paired_interval(0, 0, 0) == (-1, 1)
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
    comparison = contrast(first, second)
    assert comparison.pairs == (0, 4, 1, 1)
    assert comparison.difference == pytest.approx((4 - 1) / 6)
    assert comparison.tango95 == paired_interval(4, 1, 6)
    assert comparison.p_value == mcnemar(4, 1)


def test_results_of_one_arm_and_task_under_different_conditions_are_not_averaged():
    group = [under(result(seed=0)), under(result(seed=1), step_limit=100, execute_steps=8)]
    with pytest.raises(ProtocolError) as refused:
        summarise(group)
    assert "Push by a" in str(refused.value)
    assert "benchmark.step_limit: 50 -> 100; policy.execute_steps: 4 -> 8" in str(refused.value)
    assert "shader" not in str(refused.value)


def test_tasks_and_arms_may_have_conditions_of_their_own():
    group = [
        under(result("a", "Push")),
        under(result("a", "Stack"), step_limit=100),
        under(result("b", "Push"), execute_steps=1, chunk_horizon=16),
    ]
    require_one_protocol(group)
    require_shared_protocol(group)
    assert summarise(group).episodes == 3
    assert contrast(group[:1], group[2:]).pairs.n == 1


def test_arms_are_not_compared_across_conditions_of_the_benchmark():
    with pytest.raises(ProtocolError, match=r"Push by a and b: .*step_limit: 50 -> 100"):
        contrast([under(result("a"))], [under(result("b"), step_limit=100)])
    with pytest.raises(ProtocolError, match=r"Push by b: .*execute_steps: 4 -> 1"):
        contrast(
            [under(result("a")), under(result("a", seed=1))],
            [under(result("b")), under(result("b", seed=1), execute_steps=1)],
        )


def test_two_policies_under_one_name_are_not_averaged():
    with pytest.raises(ProtocolError, match="policy_fingerprint: f -> g"):
        summarise([result(), replace(result(seed=1), policy_fingerprint="g")])


def test_results_that_record_no_conditions_are_not_mixed_with_those_that_do():
    with pytest.raises(ProtocolError, match="seed 0 records no protocol, seed 1 does"):
        summarise([result(seed=0), under(result(seed=1))])
    assert summarise([result(seed=0), result(seed=1)]).episodes == 2


def test_an_episode_that_failed_before_its_conditions_were_known_counts_as_a_failure():
    lost = replace(result(seed=2, at_end=False, any_time=False, error="E: e"), policy_fingerprint="unknown")
    early = under(result(seed=3, at_end=False, any_time=False, error="E: e"), chunk_horizon=None)
    group = [lost, early, under(result(seed=0)), under(result(seed=1))]
    assert summarise(group).success_at_end == pytest.approx(0.5)
    with pytest.raises(ProtocolError, match="step_limit"):
        summarise([*group, under(early, step_limit=9)])


def test_the_fingerprint_of_a_protocol_is_that_of_what_arms_must_share():
    item = under(result())
    assert under(result(), execute_steps=1).protocol_fingerprint == item.protocol_fingerprint
    assert under(result(), step_limit=51).protocol_fingerprint != item.protocol_fingerprint


def test_results_come_back_as_they_were_written(tmp_path):
    written = [
        under(result(seed=0)),
        result(seed=1, at_end=False, error="ValueError: \n ü"),
        replace(result(seed=2), attempts=2, faults=["its process was killed by signal 9"]),
    ]
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
