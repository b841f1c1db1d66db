"""The paired interval is the published one and covers, planned numbers of episodes hold, arms are paired."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial, norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from core.significance import holm
from eval.pairing import Arm, PairingError, Pairs, compare_arms, contrast_of, plan_for, read_arm
from eval.proportions import mcnemar, mcnemar_power, paired_episodes, paired_interval, unpaired_episodes
from eval.protocol import Protocol, ProtocolError
from eval.results import Result, append_result

ROOT = Path(__file__).resolve().parents[1]
tables = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)).filter(any)


def results(outcomes, arm="a", task="Push", first_seed=0):
    """One episode a character: 1 solved, 0 not, e ended in an error."""
    return [
        Result(
            arm=arm,
            task=task,
            instruction="push",
            seed=first_seed + index,
            success_at_end=outcome == "1",
            success_at_any_time=outcome == "1",
            steps=3,
            seconds=0.5,
            error="lost" if outcome == "e" else None,
            policy_fingerprint="f",
        )
        for index, outcome in enumerate(outcomes)
    ]


def saved(path, group):
    path.parent.mkdir(parents=True, exist_ok=True)
    for result in group:
        append_result(path, result)
    return path


def command(*words):
    script = ROOT / "scripts/compare_results.py"
    return subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("counts", "level", "published"),
    [
        # Fagerland, Lydersen & Laake, Statistical analysis of contingency tables, chapter 8: Cavo 2012, Bentur 2009.
        ((6, 16, 161), 0.95, (-0.1240, -0.0054)),
        ((1, 7, 21), 0.95, (-0.517, -0.026)),
        # scoreci.mp of the R package PropCIs 0.3-0, first and second exchanged there.
        ((20, 60, 1000), 0.95, (-0.0584, -0.0231)),
        ((28, 25, 618), 0.90, (-0.0148, 0.0247)),
        ((48, 41, 549), 0.90, (-0.0157, 0.0414)),
    ],
)
def test_the_paired_interval_is_the_published_one(counts, level, published):
    decimals = max(len(str(bound).split(".")[1]) for bound in published)
    assert tuple(round(bound, decimals) for bound in paired_interval(*counts, level)) == published


@given(tables)
def test_the_paired_interval_holds_the_difference_stays_in_range_and_is_mirrored(table):
    only_first, only_second, _ = table
    n = sum(table)
    low, high = paired_interval(only_first, only_second, n)
    assert -1 <= low <= (only_first - only_second) / n <= high <= 1
    assert low < high
    assert paired_interval(only_second, only_first, n) == pytest.approx((-high, -low), abs=1e-9)


@given(tables)
def test_the_paired_interval_leaves_zero_out_where_the_score_test_of_mcnemar_rejects_equality(table):
    only_first, only_second, _ = table
    discordant = only_first + only_second
    z = (only_first - only_second) / np.sqrt(discordant) if discordant else 0.0
    low, high = paired_interval(only_first, only_second, sum(table))
    if abs(abs(z) - norm.ppf(0.975)) > 1e-6:
        assert (low > 0 or high < 0) == (abs(z) > norm.ppf(0.975))


def test_without_pairs_nothing_is_said_and_without_disagreement_little():
    assert paired_interval(0, 0, 0) == (-1, 1)
    z2 = norm.ppf(0.975) ** 2
    assert paired_interval(0, 0, 24) == pytest.approx((-z2 / (24 + z2), z2 / (24 + z2)))
    assert paired_interval(24, 0, 24).high == 1
    assert paired_interval(0, 24, 24).low == -1


@pytest.mark.parametrize("n", [24, 60])
@pytest.mark.parametrize(("only_first", "only_second"), [(0.1, 0.1), (0.25, 0.05), (0.3, 0.2), (0.5, 0.1), (0.05, 0.4)])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(n, only_first, only_second):
    """Counted over all outcomes, no draws: the mean over such cases is what the method is judged by."""
    truth = only_first - only_second
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = multinomial.pmf([b, c, n - b - c], n, [only_first, only_second, 1 - only_first - only_second])
            if chance > 1e-9:
                low, high = paired_interval(b, c, n)
                covered += chance * (low <= truth <= high)
    assert 0.93 <= covered <= 0.985


def test_an_interval_that_ignores_the_pairing_would_be_wider():
    contrast = contrast_of(Pairs(both=40, only_first=8, only_second=2, neither=50))
    low, high = confint_proportions_2indep(contrast.first, 100, contrast.second, 100, method="newcomb", compare="diff")
    assert contrast.tango95.high - contrast.tango95.low < 0.6 * (high - low)


@pytest.mark.parametrize(("difference", "discordance"), [(0.1, 0.24), (0.2, 0.2), (-0.3, 0.5)])
def test_planned_paired_episodes_find_the_difference_as_often_as_promised_and_one_less_do_not(difference, discordance):
    n = paired_episodes(difference, discordance)
    assert mcnemar_power(n, difference, discordance) >= 0.8 > mcnemar_power(n - 1, difference, discordance)
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    draws = np.random.default_rng(0).multinomial(n, shares, size=4000)
    found = np.mean([mcnemar(int(b), int(c)) <= 0.05 for b, c, _ in draws])
    assert found == pytest.approx(0.8, abs=0.03)


def test_the_power_of_the_exact_test_is_counted_over_all_outcomes():
    n, first, second = 14, 0.35, 0.05
    expected = sum(
        multinomial.pmf([b, c, n - b - c], n, [first, second, 1 - first - second])
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if mcnemar(b, c) <= 0.05
    )
    assert mcnemar_power(n, first - second, first + second) == pytest.approx(expected, abs=1e-9)
    assert mcnemar_power(5, 1.0, 1.0) == 0.0, "five pairs cannot give p <= 0.05"
    assert paired_episodes(1.0, 1.0) == 6


def test_planned_unpaired_episodes_are_those_of_a_published_example_and_hold_in_simulation():
    # power.prop.test(p1 = .50, p2 = .75, power = .90) of R gives n = 76.7.
    assert unpaired_episodes(0.25, 0.625, power=0.9) == 77
    n = unpaired_episodes(0.15, 0.4)
    rng = np.random.default_rng(1)
    a, b = rng.binomial(n, 0.475, 20_000) / n, rng.binomial(n, 0.325, 20_000) / n
    mean = (a + b) / 2
    found = np.abs(a - b) > norm.ppf(0.975) * np.sqrt(2 * mean * (1 - mean) / n)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_a_difference_that_does_not_fit_at_the_mean_success_is_moved_into_the_range():
    assert unpaired_episodes(0.2, 0.0) == unpaired_episodes(0.2, 0.1) == unpaired_episodes(-0.2, 0.9)


@pytest.mark.parametrize("difference", [0.0, 1.5, float("nan")])
def test_a_difference_that_is_no_share_is_refused(difference):
    for plan in (lambda: paired_episodes(difference, 1.0), lambda: unpaired_episodes(difference, 0.5)):
        with pytest.raises(ValueError, match="give a share above 0 and up to 1"):
            plan()


def test_fewer_discordant_episodes_than_the_difference_takes_are_refused_and_planned_for_at_least():
    with pytest.raises(ValueError, match=r"at least 0\.2"):
        paired_episodes(0.2, 0.1)
    plan = plan_for(0.2, contrast_of(Pairs(both=10, only_first=0, only_second=0, neither=10)))
    assert (plan.discordance, plan.paired) == (0.2, paired_episodes(0.2, 0.2))


def test_arms_are_paired_by_task_and_seed_whatever_their_order_and_the_rest_is_counted():
    first = Arm("A", [*results("1101e"), *results("11", task="Pull"), *results("111", task="Stack")])
    second = Arm("B", [*reversed(results("00110")), *results("010", arm="b", task="Pull", first_seed=1)])
    (found,) = compare_arms(first, [second], 0.1)
    assert found.tasks["Push"].pairs == (1, 2, 1, 1)
    assert found.tasks["Pull"].pairs == (0, 1, 0, 0), "seed 1 alone is shared"
    assert list(found.tasks) == ["Push", "Pull"]
    assert found.pooled.pairs == (1, 3, 1, 1)
    assert (found.pooled.first, found.pooled.second, found.pooled.difference) == (4, 2, pytest.approx(2 / 6))
    assert (found.only_first, found.only_second) == (4, 2)
    assert found.errors == (1, 0)
    assert found.pooled.p_value == mcnemar(3, 1)
    (mirrored,) = compare_arms(second, [first], 0.1)
    assert mirrored.pooled.tango95 == pytest.approx([-bound for bound in reversed(found.pooled.tango95)])


def test_p_values_are_adjusted_over_all_tasks_of_all_arms_that_are_compared():
    first = Arm("A", [*results("1" * 12), *results("1" * 12, task="Pull")])
    second = Arm("B", [*results("0" * 10 + "11"), *results("000111111111", task="Pull")])
    third = Arm("C", [*results("0" * 7 + "1" * 5), *results("1" * 12, task="Pull")])
    found = compare_arms(first, [second, third], 0.1)
    raw = [contrast.p_value for comparison in found for contrast in comparison.tasks.values()]
    assert raw == [mcnemar(10, 0), mcnemar(3, 0), mcnemar(7, 0), 1.0]
    adjusted = [value for comparison in found for value in comparison.holm.values()]
    assert adjusted == holm(raw) == pytest.approx(multipletests(raw, method="holm")[1])
    assert adjusted == [4 * raw[0], 2 * raw[1], 3 * raw[2], 1.0]


def test_arms_without_a_common_episode_are_refused_with_what_each_has():
    with pytest.raises(PairingError, match=r"A and B share no episode \(2 episodes of Push on seeds 0 to 1 against"):
        compare_arms(Arm("A", results("10")), [Arm("B", results("10", first_seed=5))], 0.1)


def test_episodes_of_different_conditions_are_refused_and_those_of_other_policy_settings_are_not():
    def under(limit, horizon, outcomes):
        protocol = Protocol(benchmark={"step_limit": limit}, policy={"execute_steps": horizon})
        return [
            replace(result, protocol=protocol, protocol_fingerprint=protocol.fingerprint)
            for result in results(outcomes)
        ]

    first = Arm("A", under(50, 8, "10"))
    (found,) = compare_arms(first, [Arm("B", under(50, 4, "00"))], 0.5)
    assert found.has_protocol
    with pytest.raises(ProtocolError, match="step_limit"):
        compare_arms(first, [Arm("B", under(80, 8, "00"))], 0.5)
    with pytest.raises(ProtocolError, match="records no protocol"):
        compare_arms(first, [Arm("B", results("00"))], 0.5)
    with pytest.raises(ProtocolError, match="execute_steps"):
        compare_arms(Arm("A", [*under(50, 8, "1"), *under(50, 4, "11")[1:]]), [first], 0.5)
    apart = [replace(result, task="Pull") for result in under(80, 8, "11")]
    assert compare_arms(Arm("A", first.results + apart), [Arm("B", under(50, 8, "00") + apart)], 0.5), "tasks differ"


def test_an_arm_is_read_from_a_file_or_a_directory_and_named_where_there_are_several(tmp_path):
    file = saved(tmp_path / "evaluate/results.jsonl", [*results("10"), *results("111", arm="b:2")])
    assert [len(read_arm(f"{path}:b:2").results) for path in (file,)] == [3]
    assert read_arm(f"{tmp_path}/evaluate:a").results == results("10")
    with pytest.raises(PairingError, match=r"has 2 arms; name one of its arms: .*evaluate:a, .*evaluate:b:2"):
        read_arm(f"{tmp_path}/evaluate")
    with pytest.raises(PairingError, match="has no arm 'c'"):
        read_arm(f"{file}:c")
    alone = saved(tmp_path / "alone/results.jsonl", results("1"))
    assert read_arm(str(alone)).results == read_arm(str(alone.parent)).results == results("1")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PairingError, match="holds no results"):
        read_arm(str(tmp_path / "empty.jsonl"))


def test_the_command_ends_in_one_line_of_json_and_says_what_was_left_out(tmp_path):
    first = saved(tmp_path / "first/results.jsonl", results("1111111110"))
    second = saved(tmp_path / "second/results.jsonl", results("00000011", arm="b"))
    finished = command(first.parent, second, "--difference", "0.25")
    assert finished.returncode == 0, finished.stderr
    assert "not shared, left out: 2 episodes of the first, 0 of the second" in finished.stdout
    assert "record no protocol" in finished.stdout
    (answer,) = json.loads(finished.stdout.splitlines()[-1])["comparisons"]
    pooled = answer["pooled"]
    assert (pooled["episodes"], pooled["first"], pooled["second"], pooled["only_first"]) == (8, 8, 2, 6)
    assert pooled["tango95"] == list(paired_interval(6, 0, 8))
    assert pooled["mcnemar_p"] == answer["tasks"]["Push"]["holm_p"] == mcnemar(6, 0)
    assert answer["not_shared"] == {"first": 2, "second": 0}
    needed = answer["episodes_needed"]
    assert needed["paired"] == paired_episodes(0.25, 0.75)
    assert needed["unpaired"] == unpaired_episodes(0.25, 10 / 16)
    assert f"{needed['paired']} paired episodes" in finished.stdout


def test_what_the_command_cannot_compare_ends_in_one_sentence(tmp_path):
    first = saved(tmp_path / "results.jsonl", results("11"))
    for words, message in (
        ((first, tmp_path / "none.jsonl"), "no results at"),
        ((first, first, "--difference", "0"), "give a share above 0"),
    ):
        finished = command(*words)
        assert finished.returncode == 1
        assert message in finished.stderr
        assert "Traceback" not in finished.stderr
