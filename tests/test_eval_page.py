"""The page of an evaluation: its numbers, what it leaves out and says so."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_evaluation import film, one, protocol_of, simpler_evaluation, write

from eval.evaluation_page.conditions import tabulated
from eval.evaluation_page.evaluation import EvaluationError, read_evaluation
from eval.evaluation_page.gallery import chosen, gallery
from eval.evaluation_page.page import page_values, render, write_evaluation_page
from eval.evaluation_page.scatter import ticks
from eval.evaluation_page.steps import steps_panels
from eval.evaluation_page.success import groups
from eval.protocol import ProtocolError
from eval.results import wilson
from eval.simpler import TASKS as SIMPLER_TASKS

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "report_evaluation.py"


class Page(HTMLParser):
    """Collects what a browser would fetch, open elements, ids and links, and the text."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.ids, self.links, self.text = [], [], [], [], ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[key] for key in ("src", "poster", "data") if key in values]
        self.sources += [values.get("href")] * (tag == "link")
        self.ids += filter(None, [values.get("id")])
        self.links += [values.get("href")] * (tag == "a")
        self.open += [tag] * (tag not in {"meta", "link", "img", "br"})

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in {"meta", "link", "img", "br"}:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(path):
    return Page(write_evaluation_page(path).read_text())


@pytest.fixture(scope="module")
def simpler(tmp_path_factory):
    return simpler_evaluation(tmp_path_factory.mktemp("simpler evaluation"))


@pytest.fixture(scope="module")
def simpler_page(simpler):
    file = simpler.path / "evaluation.html"
    file.write_text(render(simpler, file.parent))
    return file


def test_the_page_fetches_nothing_and_is_well_formed(simpler, simpler_page):
    text = simpler_page.read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"@import|url\((?!#)|<script|<no labels>", text)
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= set(page.ids)
    assert {f"line-{simpler.line(result)}" for result in simpler.results} <= inner & set(page.ids)
    outer = {link for link in page.links if not link.startswith("#")}
    assert "results.jsonl" in outer
    assert len(outer) == 1 + sum(result.video is not None for result in simpler.results)


def test_every_section_of_a_full_evaluation_is_there(simpler, simpler_page):
    page = Page(simpler_page.read_text())
    assert "Left out" not in page.text
    for words in (
        "Not official assets: not official assets (stand-ins: eggplant)",
        "1 episode ended in an error and counts as not solved",
        "MVP-LAM, published",
        "policy minus ablation",
        "RuntimeError: lost",
        "with 2 workers",
        "python 3.11",
        "execute steps",
    ):
        assert words in page.text
    assert simpler_page.read_text().count("<circle class") == 2 * sum(r.success_at_end for r in simpler.results)
    assert sum(source.startswith("data:video/mp4") for source in page.sources) == 24


def test_the_numbers_are_those_of_the_lines(simpler):
    found = {group.name: group for group in groups(simpler)}
    assert list(found) == [*SIMPLER_TASKS, "all tasks"]
    for name, group in found.items():
        for row in group.rows[:2]:
            lines = [r for r in simpler.results if r.arm == row.name and name in (r.task, "all tasks")]
            solved = sum(result.success_at_end for result in lines)
            assert (row.at_end.part, row.at_end.n, row.at_end.wilson95) == (
                solved,
                len(lines),
                wilson(solved, len(lines)),
            )
    published = {row.name: row.at_any_time for row in found["all tasks"].rows[2:]}
    assert (published["MVP-LAM, published"].part, published["MVP-LAM, published"].n) == (58, 96)
    stacked = found[SIMPLER_TASKS[0]].rows[2]
    assert (stacked.at_end, stacked.at_any_time.part, stacked.at_any_time.n) == (None, 8, 24)


def test_the_page_is_a_function_of_the_files(tmp_path):
    results = [one(seed=seed, solved=seed < 3, video="videos/a.mp4" if seed == 4 else None) for seed in range(5)]
    write(tmp_path / "a", results, [("policy", {"Push": 5})])
    film(tmp_path / "a" / "videos" / "a.mp4")
    first = write_evaluation_page(tmp_path / "a").read_text()
    assert write_evaluation_page(tmp_path / "a").read_text() == first
    elsewhere = write_evaluation_page(tmp_path / "a", tmp_path / "pages" / "b.html")
    assert {link for link in Page(elsewhere.read_text()).links if not link.startswith("#")} == {
        "../a/results.jsonl",
        "../a/videos/a.mp4",
    }


def test_bare_results_make_a_page_that_says_what_it_lacks(tmp_path):
    bare = replace(one(), protocol=None, protocol_fingerprint="unknown", versions={})
    page = page_of(write(tmp_path, [bare]))
    assert "policy on Push" in page.text
    assert "1 of 1 episode solved" in page.text
    for words in (
        "1 line does not record under which conditions",
        "There is no record of the run",
        "no episode was recorded",
        "do not say at which step",
        "do not say where things lay",
        "No published rows",
        "step limit not recorded",
    ):
        assert words in page.text


def test_an_unfinished_evaluation_says_what_is_missing(tmp_path):
    plan = [("policy", {"Push": 3, "Pull": 2}), ("random", {"Push": 3})]
    path = write(tmp_path, [one(seed=0), one(seed=1)], plan, is_finished=False)
    page = page_of(path)
    assert "Not finished: 6 episodes of 8" in page.text
    assert "Missing: 1 of policy on Push, 2 of policy on Pull, 3 of random on Push" in page.text
    with (path / "results.jsonl").open("a") as file:
        file.write('{"arm": "half a li')
    assert "2 episodes in closed loop" in page_of(path).text


def test_a_repeated_episode_counts_once_and_leads_to_its_last_line(tmp_path):
    lost = one(seed=1, solved=False, error="ConnectionError: gone")
    path = write(tmp_path, [one(seed=0), lost, one(seed=2), one(seed=1)], [("policy", {"Push": 3})])
    evaluation = read_evaluation(path)
    assert [evaluation.line(result) for result in evaluation.results] == [1, 4, 3]
    page = page_of(path)
    assert "1 line of results.jsonl was replaced" in page.text
    assert "None of 3 episodes ended in an error" in page.text


def test_errors_alone_make_a_page(tmp_path):
    lost = [one(seed=s, solved=False, error="ValueError: <b>no</b>", steps=0, seconds=0.0) for s in range(3)]
    page = page_of(write(tmp_path, [replace(result, protocol=None) for result in lost]))
    assert "3 episodes ended in an error" in page.text
    assert "3 of 3ValueError: <b>no</b>line 1" in page.text
    assert "every episode ended in an error" in page.text


@pytest.mark.parametrize("other", [{"protocol": protocol_of(step_limit=80)}, {"policy_fingerprint": "another"}])
def test_mixed_conditions_are_refused(tmp_path, other):
    path = write(tmp_path, [one(seed=0), one(seed=1, **other)])
    with pytest.raises(ProtocolError, match="neither averaged nor compared"):
        write_evaluation_page(path)
    assert not (path / "evaluation.html").exists()


def test_arms_under_different_conditions_are_refused(tmp_path):
    path = write(tmp_path, [one("a"), one("b", seed=1, protocol=protocol_of(step_limit=80))])
    with pytest.raises(ProtocolError, match="step_limit: 60 -> 80"):
        write_evaluation_page(path)


def test_a_directory_without_results_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(EvaluationError, match="holds no result yet"):
        write_evaluation_page(tmp_path)


def test_arms_that_share_no_episode_are_named_and_not_compared(tmp_path):
    results = [one("a", seed=0), one("a", seed=1, solved=False), one("b", seed=0), one("c", seed=7)]
    page = page_of(write(tmp_path, results))
    assert "a minus b" in page.text
    assert "Not compared: c, which shares no episode with a" in page.text


def test_more_arms_than_colours_and_more_tasks_than_names(tmp_path):
    results = [one(f"arm {a}", f"Task{t}", s, (a + s) % 2 == 0) for a in range(10) for t in range(3) for s in range(2)]
    page = page_of(write(tmp_path, results))
    assert "10 policies on 3 tasks" in page.text
    assert page.text.count("arm 0 minus arm") == 9


def test_curves_count_first_successes_and_leave_out_arms_that_do_not_say_when(tmp_path):
    steps = [10, 10, 30, None]
    told = [one("a", seed=s, solved=s == 0, success_at_any_time=n is not None, first_success_step=n)
            for s, n in enumerate(steps)]  # fmt: skip
    evaluation = read_evaluation(write(tmp_path, [*told, one("b")]))
    (panel,) = steps_panels(evaluation)
    (curve,) = panel.curves
    assert panel.left_out == ["b"]
    assert curve.steps.tolist() == [0, 10, 30, 60]
    assert curve.share.tolist() == [0, 0.5, 0.75, 0.75]
    assert (curve.median, curve.at_end, curve.n) == (10, 1, 4)
    assert curve.bounds[:, 2].tolist() == pytest.approx(wilson(3, 4))
    assert "a step 10 (solved 3 of n = 4)" in Page(render(evaluation, tmp_path)).text


def test_marks_lie_where_things_lay(tmp_path):
    places = [(0.0, 0.0), (0.2, 0.0), (0.0, 0.1)]
    results = [one(seed=s, initial_state={"cube": [x, y, 0.02], "wall": [1, 1, 0]}) for s, (x, y) in enumerate(places)]
    evaluation = read_evaluation(write(tmp_path, results))
    (scatter,) = page_values(evaluation, tmp_path)["scatters"]
    first, right, up = scatter.views[0].marks
    assert scatter.thing == "cube"
    assert right.x - first.x == pytest.approx(2 * (first.y - up.y), abs=0.5)
    assert right.x > first.x
    assert min(up.y, first.x) > 0
    assert max(right.x, first.y) < 300


def test_marks_of_one_place_do_not_hide_each_other(tmp_path):
    places = [(0.0, 0.0)] * 3 + [(0.2, 0.0)]
    results = [one(seed=s, initial_state={"cube": [x, y, 0.02]}) for s, (x, y) in enumerate(places)]
    evaluation = read_evaluation(write(tmp_path, results))
    marks = page_values(evaluation, tmp_path)["scatters"][0].views[0].marks
    gaps = [np.hypot(a.x - b.x, a.y - b.y) for a in marks for b in marks if a is not b]
    assert min(gaps) > 5
    assert [mark.line for mark in marks] == [1, 2, 3, 4]


@pytest.mark.parametrize("ends", [(-0.2, 0.2), (0.0013, 0.0032), (-7, 1200)])
def test_axes_have_a_few_round_numbers(ends):
    found = ticks(*ends)
    assert 2 <= len(found) <= 5
    assert ends[0] <= found[0] <= found[-1] <= ends[1]


def test_failures_come_first_and_every_arm_gets_room_before_any_gets_more():
    results = [one(arm, seed=s, solved=s > 4, video="v") for arm in ("a", "b") for s in range(8)]
    order = [(result.arm, result.seed) for result in chosen(results)]
    assert order == [("a", 0), ("b", 0), ("a", 5), ("b", 5), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_recordings_without_room_or_broken_or_gone_are_said(tmp_path):
    names = ["fits", "large", "broken", "gone"]
    results = [one(n, seed=s, solved=False, video=f"videos/{n}.mp4") for s, n in enumerate(names)]
    path = write(tmp_path, results)
    for name, frames in (("fits", 4), ("large", 40)):
        film(path / "videos" / f"{name}.mp4", frames)
    (path / "videos" / "broken.mp4").write_bytes(b"no video")
    found = gallery(read_evaluation(path), max_bytes=(path / "videos" / "fits.mp4").stat().st_size)
    assert [(clip.result.arm, bool(clip.source), bool(clip.strip)) for clip in found.clips] == [
        ("fits", True, True),
        ("large", False, True),
        ("broken", False, False),
    ]
    assert "no room" in found.clips[1].problem
    assert (found.recorded, [result.arm for result in found.gone]) == (3, ["gone"])
    text = page_of(path).text
    assert "Failures 3 of 3 recorded" in text
    assert "cannot be read" in text
    assert "1 recording that a line names is not there" in text


def test_conditions_that_differ_stand_apart_from_shared_ones():
    table = tabulated({"a": {"shader": "minimal", "limit": 50}, "b": {"shader": "minimal", "limit": 100, "jitter": {}}})
    assert table.shared == {"shader": "minimal"}
    assert table.columns == ["a", "b"]
    assert table.differing == {"limit": ["50", "100"], "jitter": ["\N{EN DASH}", "none"]}


def test_the_script_writes_the_page_where_it_is_told(tmp_path):
    write(tmp_path / "e", [one()])
    command = [sys.executable, SCRIPT, "--evaluation", tmp_path / "e", "--out", tmp_path / "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    assert "policy on Push" in (tmp_path / "page.html").read_text()
