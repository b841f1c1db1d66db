"""The downstream page finds effects that are there and no others, and says what is missing; wrong words are refused."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from core.config import load_config
from core.significance import holm
from eval.downstream import (
    ARMS,
    PRIMARY,
    SECONDARY,
    Evaluation,
    Evaluations,
    contrasts,
    gather,
    lines_of,
    read_evaluations,
    successes,
)
from eval.downstream_page import DownstreamConfig, conclusion, settle
from eval.plan import EvaluateConfig, jobs_of
from eval.proportions import mcnemar, paired_interval, wilson
from eval.protocol import Protocol
from eval.results import Result, ResultsError, append_result

ROOT = Path(__file__).resolve().parents[1]
STATES = 50
EFFECT = {"none": 0.15, "shuffled": 0.15, "self": 0.35, "self_cross": 0.6, "supervised": 0.8}
NULL = dict.fromkeys(ARMS, 0.4)


def made_up(chances, seeds=10, budgets=(10, 50), by_seed=0.05, draw=0) -> list[Evaluation]:
    """Policies of known chances of success, on initial states that are hard or easy for all of them."""
    rng = np.random.default_rng(draw)
    hard = rng.normal(0, 0.1, STATES)
    return [
        Evaluation(
            training_seed=seed,
            demonstrations=budget,
            arm=arm,
            first_state=10_000_000,
            success_at_end=tuple((rng.random(STATES) < chance + by_seed * rng.normal() + hard).astype(int).tolist()),
            errors=0,
            policy_fingerprint="f",
        )
        for seed in range(seeds)
        for budget in budgets
        for arm, chance in chances.items()
    ]


def page_of(tmp_path, records) -> tuple[str, dict]:
    (tmp_path / "results.jsonl").write_text(lines_of(records))
    settle(DownstreamConfig(out=str(tmp_path)))
    assert (tmp_path / "success.png").stat().st_size > 10_000
    return (tmp_path / "README.md").read_text(), json.loads((tmp_path / "effects.json").read_text())


def test_an_effect_that_is_there_is_found_and_the_page_says_so(tmp_path):
    text, effects = page_of(tmp_path, made_up(EFFECT))
    for contrast in effects["primary"]:
        low, high = contrast["ci95"]
        assert 0 < low < 0.25 < high
        assert contrast["p_holm"] < 0.05
    assert "more with 10 and 50, fewer with none" in text
    assert "shuffled labels do not beat no pretraining" in text
    assert "not even supervised" not in text
    assert "the claim holds for the policy with 10 and 50 demonstrations" in text
    assert "With 10 seeds the smallest p is 0.002" in text
    assert "missing" not in text
    assert "| self_cross minus self | 10 |" in text
    shares = {(one["arm"], one["demonstrations"]): one for one in effects["success"]}
    for arm, chance in EFFECT.items():
        one = shares[arm, 50]
        assert one["rollouts"] == 500
        assert one["ci95"][0] < chance < one["ci95"][1]


def test_where_there_is_no_effect_the_page_claims_none(tmp_path):
    text, effects = page_of(tmp_path, made_up(NULL))
    assert "more with none, fewer with none" in text
    assert "the claim does not hold for the policy" in text
    assert min(one["p_holm"] for one in effects["primary"] + effects["secondary"]) > 0.05


def test_intervals_of_no_effect_exclude_zero_about_as_rarely_as_they_should():
    excluded = []
    for draw in range(60):
        evaluations = Evaluations(made_up({"self": 0.4, "self_cross": 0.4}, 5, (10,), by_seed=0.1, draw=draw))
        excluded += [c.is_beyond(1) or c.is_beyond(-1) for c in contrasts(evaluations, PRIMARY)]
    assert np.mean(excluded) <= 0.1


def test_a_negative_control_that_beats_no_pretraining_denies_the_claim(tmp_path):
    text, _ = page_of(tmp_path, made_up(EFFECT | {"none": 0.05, "shuffled": 0.3}))
    assert "The negative control does not do what it must: shuffled labels beat no pretraining with 10 and 50" in text
    assert "the claim does not hold" in text


def test_a_claim_needs_more_than_its_control(tmp_path):
    text, _ = page_of(tmp_path, made_up(NULL | {"self": 0.1}, budgets=(10,)))
    assert "more with 10, fewer" in text
    assert "the claim does not hold" in text


def test_an_effect_the_other_way_is_said(tmp_path):
    text, _ = page_of(tmp_path, made_up(EFFECT | {"self": 0.6, "self_cross": 0.35}, budgets=(25,)))
    assert "more with none, fewer with 25" in text


def test_missing_seeds_and_arms_are_said_and_the_shared_ones_compared(tmp_path):
    gone = {(3, 10, "self"), (4, 10, "self"), (1, 50, "none")}
    records = [
        r for r in made_up(EFFECT) if (r.training_seed, r.demonstrations, r.arm) not in gone and r.arm != "supervised"
    ]
    text, effects = page_of(tmp_path, records)
    assert (
        "missing are supervised altogether; self with 10 demonstrations, training seed 3, 4; "
        "none with 50 demonstrations, training seed 1." in text
    )
    assert [one["seeds"] for one in effects["primary"]] == [8, 10]
    assert "supervised labels (the ceiling) beat them: not tried" in text
    text, _ = page_of(tmp_path, [r for r in records if r.arm != "self"])
    assert "the primary question has no answer" in text
    assert "the claim" not in text.split("![")[0].split("primary question")[1]


def test_with_one_training_seed_tests_are_over_initial_states_and_the_page_warns(tmp_path):
    records = made_up(EFFECT, seeds=1)
    text, _ = page_of(tmp_path, records)
    assert "With one training seed" in text
    assert "By the rules" not in text
    assert "McNemar" in text
    evaluations = Evaluations(records)
    first = contrasts(evaluations, PRIMARY)[0]
    ours, theirs = (evaluations.successes(arm, 10, [0])[0] for arm in PRIMARY[0])
    alone = int((ours > theirs).sum()), int((ours < theirs).sum())
    assert first.ci95 == paired_interval(*alone, STATES)
    assert first.p == mcnemar(*alone)
    share = next(one for one in successes(evaluations) if one.arm == "self_cross")
    assert share.ci95 == wilson(int(ours.sum()), STATES)


def test_rollouts_that_all_fail_are_no_certainty(tmp_path):
    records = made_up(dict.fromkeys(ARMS, -1.0))
    assert all(one.success == 0 and one.ci95 == wilson(0, STATES) for one in successes(Evaluations(records)))
    assert all(c.ci95 == paired_interval(0, 0, STATES) for c in contrasts(Evaluations(records), PRIMARY))
    text, _ = page_of(tmp_path, records)
    assert "With 10 and 50 demonstrations not even supervised labels are seen to beat shuffled ones" in text


def test_p_values_are_adjusted_within_their_family():
    evaluations = Evaluations(made_up(EFFECT, seeds=6))
    for pairs in (PRIMARY, SECONDARY):
        family = contrasts(evaluations, pairs)
        assert len(family) == 2 * len(pairs)
        assert [c.p_holm for c in family] == holm([c.p for c in family])


def test_a_half_written_last_line_is_dropped_and_another_is_named(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    records = made_up(NULL, seeds=2)
    file.write_text(lines_of(records)[:-30])
    assert len(read_evaluations(file)) == len(records) - 1
    assert "half-written" in capsys.readouterr().err
    settle(DownstreamConfig(out=str(tmp_path)))
    assert read_evaluations(file)[-1] in records
    file.write_text("{}\n" + lines_of(records))
    with pytest.raises(ResultsError, match="line 1 is not an evaluation"):
        read_evaluations(file)


def test_a_later_evaluation_of_a_policy_replaces_the_earlier_one():
    old, new = made_up(NULL, seeds=1, draw=1), made_up(NULL, seeds=1, draw=2)
    assert [json.loads(line) for line in lines_of(old + new).splitlines()] == [
        json.loads(json.dumps(asdict(r))) for r in sorted(new, key=lambda r: r.key)
    ]


def test_policies_tried_on_other_initial_states_are_not_mixed():
    with pytest.raises(ResultsError, match="different initial states"):
        Evaluations([*made_up(NULL, seeds=1), Evaluation(**asdict(made_up(NULL, seeds=2)[-1]) | {"first_state": 7})])
    with pytest.raises(ResultsError, match=r"scripts/settle_downstream\.sh"):
        Evaluations([])


def test_policies_tried_under_other_conditions_are_not_mixed():
    old, new = made_up(NULL, seeds=1), [replace(one, protocol_fingerprint="new") for one in made_up(NULL, seeds=2)]
    with pytest.raises(ResultsError, match="different protocols: new, unknown"):
        Evaluations([*old, *new[len(old) :]])
    assert Evaluations(new).training_seeds == [0, 1]


def test_finished_evaluations_are_gathered_by_seed_and_budget(tmp_path):
    protocol = Protocol(benchmark={"step_limit": 50}, policy={})
    for folder, is_finished in (("seed_0/evaluate_10", True), ("seed_12/evaluate_50", True), ("seed_1/evaluate_10", 0)):
        path = tmp_path / folder
        path.mkdir(parents=True)
        for arm in ("self", "none"):
            for seed in (11, 10):
                error = "OSError: disk" if arm == "none" and seed == 10 else None
                outcome = {"success_at_end": seed == 11, "success_at_any_time": True, "steps": 5, "seconds": 0.1}
                said = {"arm": arm, "task": "Push", "instruction": "push", "seed": seed, "error": error}
                known = {} if error else {"protocol": protocol, "protocol_fingerprint": protocol.fingerprint}
                append_result(path / "results.jsonl", Result(**said, **outcome, **known, policy_fingerprint=folder))
        if is_finished:
            (path / "manifest.json").write_text("{}")
    found = sorted(gather(tmp_path), key=lambda record: record.key)
    assert [record.key for record in found] == [(10, 0, "none"), (10, 0, "self"), (50, 12, "none"), (50, 12, "self")]
    assert {(record.first_state, record.success_at_end) for record in found} == {(10, (0, 1))}
    assert {record.protocol_fingerprint for record in found} == {protocol.fingerprint}
    assert [record.errors for record in found] == [1, 0, 1, 0]


@pytest.mark.parametrize("name", ["downstream", "downstream_quick"])
def test_all_arms_are_tried_on_the_same_initial_states(name):
    config = load_config(EvaluateConfig, ROOT / f"configs/eval/{name}.yaml", {"out": "out"})
    assert tuple(arm.name for arm in config.arms) == tuple(arm.policy for arm in config.arms) == ARMS
    states = {arm: [job.seed for job in jobs_of(config) if job.arm == arm] for arm in ARMS}
    assert all(seeds == states["self"] for seeds in states.values())
    assert len(states["self"]) == (STATES if name == "downstream" else 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "3"], "unknown word '--seed'"),
        (["--seeds"], "--seeds needs a value"),
        (["--seeds", "x"], "--seeds takes a number from 1 to 99, not 'x'"),
        (["--budgets", "10,50"], "--budgets takes numbers from 1 to 100, not '10,50'"),
        (["--budgets", "101"], "not '101'"),
        (["--quick", "--budgets", "10"], "numbers from 1 to 8, not '10'"),
        (["--budgets", " "], "--budgets takes numbers"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(words, said):
    command = ["bash", "scripts/settle_downstream.sh", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_conclusion_of_no_control_says_that_it_was_not_measured():
    records = [record for record in made_up(EFFECT) if record.arm in ("self", "self_cross")]
    evaluations = Evaluations(records)
    text = conclusion(evaluations, contrasts(evaluations, PRIMARY) + contrasts(evaluations, SECONDARY))
    assert "The negative control was not tried." in text
    assert "does not hold" in text
