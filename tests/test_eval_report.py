"""The report of a made-up run: its numbers, its words, and that the page needs nothing but itself."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from core.run import write_json
from eval.page.chain import duration
from eval.page.numbers import headline, headline_results, p_words, parse_arm, points, summary_of, wall_seconds
from eval.page.run_files import ReportError, read_run
from eval.proportions import wilson
from eval.report import hardest, task_rows, write_report
from eval.results import Result, append_result
from eval.video import write_video

SCENE = "PushCubeDirections"
WORDS = [
    f"push the cube {where}" for where in ("to the left", "to the right", "away from the robot", "towards the robot")
]
RATES = {
    "latent_pretrained_100": 0.75,
    "no_pretraining_100": 0.45,
    "random": 0.02,
    "shuffled_instruction": 0.05,
    "latent_pretrained_10": 0.35,
    "no_pretraining_10": 0.08,
    "latent_pretrained_25": 0.5,
    "no_pretraining_25": 0.2,
    "latent_pretrained_50": 0.65,
    "no_pretraining_50": 0.34,
}
STOCK = {"PushCube-v1": (0.8, 0.6), "PullCube-v1": (0.7, 0.6), "PickCube-v1": (0.2, 0.05), "StackCube-v1": (0.0, 0.0)}


def manifest(path, name, seconds, summary, minute=0):
    path.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": name,
        "config": {},
        "seconds": seconds,
        "summary": summary,
        "versions": {"python": "3.11", "torch": "2"},
    }
    more = {"command": f"scripts/{name}.py --config c.yaml", "fingerprint": "0123456789ab"}
    write_json(path / "manifest.json", facts | more | {"finished": f"2025-01-01T00:{minute:02d}:00Z"})


def curve(path, start, end, steps=2000):
    random = np.random.default_rng(len(str(path)))
    lines = []
    for step in range(20, steps + 1, 20):
        loss = end + (start - end) * np.exp(-step / steps * 5)
        lines.append({"step": step, "loss": loss * random.normal(1, 0.03), "learning_rate": 1e-4})
        if step % 200 == 0:
            lines.append({"step": step, "validation_loss": loss * 1.05})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def one(arm, task, index, success, video=None):
    words = WORDS[(index + (arm == "shuffled_instruction")) % 4] if task == SCENE else f"do {task}"
    return Result(
        arm=arm,
        task=task,
        instruction=words,
        seed=10_000_000 + index,
        success_at_end=success,
        success_at_any_time=success or index % 11 == 0,
        steps=50,
        seconds=0.6,
        video=video,
        policy_fingerprint="f",
    )


def film(path, colour):
    frames = np.full((30, 112, 112, 3), 200, np.uint8)
    for number in range(30):
        frames[number, 40:60, 10 + 2 * number : 30 + 2 * number] = colour
    write_video(path, frames, 20.0)


def outcomes(episodes=80):
    random = np.random.default_rng(0)
    ease = random.random(episodes)
    for arm, rate in RATES.items():
        for index in range(episodes):
            video = f"videos/{arm}_{index}.mp4" if index % 10 == 0 else None
            yield one(arm, SCENE, index, bool(0.7 * ease[index] + 0.3 * random.random() < rate), video)
    for task, rates in STOCK.items():
        for arm, rate in zip(("stock_latent_pretrained", "stock_no_pretraining"), rates, strict=True):
            yield from (one(arm, task, index, bool(random.random() < rate)) for index in range(15))


def make_run(path):
    """A run directory as the quickstart leaves it, with invented numbers."""
    manifest(path / "episodes", "collect", 212.0, {"episodes": 900, "frames": 51000}, 1)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 40, 3), np.uint8)
    Image.fromarray(pixels).resize((1200, 360), Image.Resampling.NEAREST).save(path / "episodes" / "contact_sheet.png")
    manifest(path / "demonstrations", "collect", 61.0, {"episodes": 100, "frames": 4800}, 2)
    histogram = np.random.default_rng(1).gamma(0.8, 400, (4, 32)).astype(int).tolist()
    manifest(path / "lam", "train_lam", 340.0, {"perplexity": 18.2, "usage": 0.97, "code_histogram": histogram}, 3)
    curve(path / "lam", 1.0, 0.31)
    manifest(path / "audit", "audit", 44.0, {"rows": 3}, 4)
    row = {"probe_nmse_ci95": [0.5, 0.58], "bits_ci95": [1.7, 2.0], "null_bits": 0.03, "perplexity": 18.2, "n": 9000}
    arms = (("self_cross", 0.54, 1.9), ("self", 0.7, 1.1), ("untrained", 0.9, 0.2))
    rows = [row | {"arm": arm, "probe_nmse": error, "bits": bits, "entropy_bits": 14.1} for arm, error, bits in arms]
    nothing = dict.fromkeys(("bits", "bits_ci95", "null_bits", "entropy_bits", "perplexity"))
    rows.append(row | nothing | {"arm": "frozen_features", "probe_nmse": 0.31})
    write_json(path / "audit" / "audit.json", {"rows": rows, "action": "sum of x, y, z commanded over 0.4 s"})
    manifest(path / "labels", "label_latents", 12.0, {"transitions": 43000}, 5)
    manifest(path / "pretrain", "pretrain_vla", 300.0, {"validation_accuracy": 0.41}, 6)
    curve(path / "pretrain", 3.4, 1.9)
    for number, budget in enumerate((10, 25, 50, 100)):
        for arm, end in (("latent_pretrained", 0.12), ("no_pretraining", 0.16)):
            directory = path / "finetune" / f"{arm}_{budget}"
            manifest(directory, "finetune_vla", 55.0, {"demonstrations": budget}, 7 + number)
            curve(directory, 0.6, end * (1 + 10 / budget), steps=800)
    manifest(path / "evaluate", "evaluate", 640.0, {"episodes": 920}, 12)
    for result in outcomes():
        append_result(path / "evaluate" / "results.jsonl", result)
        if result.video:
            film(path / "evaluate" / result.video, (30, 160, 60) if result.success_at_end else (190, 40, 40))
    return path


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("run"))
    write_report(path)
    return path


VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects what a browser would fetch, open elements, ids and links."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.ids, self.links, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values[key] for key in ("src", "srcset", "poster", "data") if key in values]
        self.sources += [values.get("href")] * (tag == "link")
        self.ids += filter(None, [values.get("id")])
        self.links += [values[k][1:] for k in ("href", "xlink:href") if values.get(k, "").startswith("#")]
        self.open += [tag] * (tag not in VOID)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_fetches_nothing_is_well_formed_and_not_too_large(run_directory):
    text = (run_directory / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"@import|url\((?!#)|<script", text)
    assert set(page.links) <= set(page.ids) | set(re.findall(r'id="([^"]+)"', text))
    assert len(text) < 15_000_000


def test_the_page_shows_every_part(run_directory):
    page = Page((run_directory / "report.html").read_text())
    assert "left out" not in page.text
    for part in (
        "Pretraining on latent actions helps",
        "self cross",
        "frozen features",
        "1.90 1.70 to 2.00",
        "StackCube-v1",
        "python 3.11",
    ):
        assert part in page.text
    assert sum(source.startswith("data:video/mp4") for source in page.sources) == 7
    assert "latent pretrained 10:" not in page.text
    assert sum(source.startswith("data:image/png") for source in page.sources) == 1


def test_the_charts_take_their_colours_from_the_page(run_directory):
    text = (run_directory / "report.html").read_text()
    charts = re.findall(r"<svg xmlns.*?</svg>", text, flags=re.DOTALL)
    assert len(charts) == 5
    assert not [colour for chart in charts for colour in re.findall(r"#[0-9a-f]{6}\b", chart) if colour != "#ffffff"]


def test_summary_holds_what_the_results_say(run_directory):
    summary = json.loads((run_directory / "summary.json").read_text())
    assert set(summary) == {"seconds_total", "stages", "lam", "arms", "label_budget"}
    assert summary["stages"]["finetune/no_pretraining_25"] == 55.0
    assert 0 < summary["seconds_total"] <= sum(summary["stages"].values()) + 60 * len(summary["stages"])
    results = [result for result in outcomes() if result.arm == "latent_pretrained_100"]
    solved = sum(result.success_at_end for result in results)
    ours = summary["arms"]["latent_pretrained"]
    assert (ours["episodes"], ours["success_at_end"]) == (80, round(solved / 80, 4))
    assert ours["wilson95"] == pytest.approx(wilson(solved, 80), abs=1e-4)
    assert set(summary["arms"]) == {"latent_pretrained", "no_pretraining", "random", "shuffled_instruction"}
    assert set(ours["tasks"]) == {SCENE, *STOCK}
    assert set(ours["tasks"][SCENE]) == {"episodes", "success_at_end", "success_at_any_time", "wilson95"}
    assert ours["tasks"]["StackCube-v1"]["success_at_end"] == 0
    assert list(summary["label_budget"]["no_pretraining"]) == ["10", "25", "50", "100"]
    assert summary["lam"]["perplexity"] == 18.2


def test_the_report_is_a_function_of_the_files(run_directory):
    before = (run_directory / "report.html").read_text()
    write_report(run_directory)
    assert (run_directory / "report.html").read_text() == before


@pytest.mark.parametrize(
    ("stage", "sentences"),
    [
        ("audit", ["The audit is"]),
        ("evaluate", ["Success rates are", "The label-budget curve is", "Tasks are", "Videos are"]),
        ("lam", ["Codebook and training curve are"]),
        ("episodes", ["Sample views are"]),
    ],
)
def test_a_missing_stage_is_left_out_with_a_sentence(run_directory, tmp_path, stage, sentences):
    shutil.copytree(run_directory, tmp_path, ignore=shutil.ignore_patterns(stage), dirs_exist_ok=True)
    write_report(tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert re.findall(r"(\w[\w -]+) left out: the stage", text) == sentences
    assert ("nothing is compared yet" in text) == (stage == "evaluate")


def test_one_finished_stage_is_enough(tmp_path):
    manifest(tmp_path / "labels", "label_latents", 3.0, {})
    write_report(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["arms"] == {}


def test_a_directory_without_stages_is_refused(tmp_path):
    with pytest.raises(ReportError, match="no finished stage"):
        write_report(tmp_path)


def test_runs_that_were_set_aside_are_not_counted(tmp_path):
    manifest(tmp_path / "lam", "train_lam", 5.0, {})
    manifest(tmp_path / "lam.old-abc", "train_lam", 7.0, {})
    manifest(tmp_path / "finetune" / "a.old-abc+", "finetune_vla", 7.0, {})
    assert summary_of(read_run(tmp_path))["seconds_total"] == 5.0


@pytest.mark.parametrize(
    ("ours", "theirs", "title"),
    [(60, 30, "helps"), (30, 60, "hurts"), (42, 38, "No difference"), (0, 0, "No difference")],
)
def test_the_title_claims_no_more_than_the_interval(ours, theirs, title):
    results = [
        one(arm, SCENE, index, index < solved)
        for arm, solved in (("latent_pretrained_100", ours), ("no_pretraining_100", theirs))
        for index in range(80)
    ]
    words = headline(results)
    assert title in words.title
    assert f"({ours} of 80)" in words.sentence
    assert "on 100 demonstrations" in words.sentence


def test_differences_and_p_values_read_well():
    assert [points(value) for value in (0.214, -0.08, 0.0)] == ["+21", "\N{MINUS SIGN}8", "+0"]
    assert [p_words(value) for value in (1e-9, 0.03712, 1.0)] == ["p < 0.001", "p = 0.037", "p = 1"]


def test_names_of_arms_say_base_budget_and_kind():
    assert parse_arm("stock_no_pretraining_25") == ("no_pretraining", 25, True)
    assert parse_arm("shuffled_instruction") == ("shuffled_instruction", None, False)


def test_the_headline_is_the_largest_budget_in_the_instruction_scene():
    groups = headline_results(list(outcomes()))
    assert list(groups) == ["latent_pretrained", "no_pretraining", "shuffled_instruction", "random"]
    assert {result.arm for result in groups["latent_pretrained"]} == {"latent_pretrained_100"}


def test_what_is_hard_stands_first_and_tasks_are_compared_on_shared_seeds():
    results = list(outcomes())
    rates = [summary.success_at_end for _, summary in hardest(results)]
    assert rates == sorted(rates)
    assert hardest(results)[0][0] == "StackCube-v1"
    rows = {row.task: row for row in task_rows(results)}
    assert rows["PickCube-v1"].comparison.pairs.n == 15
    assert rows[SCENE].pretrained.episodes == 80


def test_durations_read_well():
    assert [duration(seconds) for seconds in (4.21, 42, 200, 3900)] == ["4.2 s", "42 s", "3 min 20 s", "1 h 05 min"]


def test_time_counts_once_where_stages_overlap_and_leaves_interruptions_out():
    stages = [
        {"finished": "2025-01-01T00:01:40Z", "seconds": 100.0},
        {"finished": "2025-01-01T00:01:30Z", "seconds": 60.0},
        {"finished": "2025-01-01T00:02:20Z", "seconds": 30.0},
        {"finished": "2025-01-01T09:00:00Z", "seconds": 50.0},
    ]
    assert wall_seconds(stages) == pytest.approx(140 + 50)
    assert wall_seconds([]) == 0
