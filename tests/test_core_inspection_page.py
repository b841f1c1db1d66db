import json
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_core_inspection import COUNT, dark, episode, views_of, write_changed, write_store

from core.inspection.inspection import inspect_store, to_json
from core.inspection.page import write_page

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "healthy", (episode(n) for n in range(COUNT)))


class Page(HTMLParser):
    """Tags that are open, and addresses of what the page shows."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "path", "rect", "line", "use"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "src":
                self.sources.append(value)
            if name == "href" or name == "xlink:href":
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
            if tag == "img" and name == "alt":
                assert value

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_writes_no_markup_of_others(tmp_path):
    path = write_changed(
        tmp_path / "store", lambda n: views_of(n, side=dark) | {"instruction": "<script>alert(1)</script>"}, [1]
    )
    write_page(inspect_store(path), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    problems = text[text.index('id="problems"') : text.index('id="what"')]
    assert "black camera" in problems
    assert problems.count("<img") == 3
    for word in ("lift the cup", "front", "side", "gripper", "held out", "panda", "delta end effector"):
        assert word in text
    assert not re.search(r"""((url\((?!#))|@import|https?://(?!www\.w3\.org))""", text)


def test_the_page_stays_small(healthy, tmp_path):
    write_page(inspect_store(healthy), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 600_000


def test_the_json_holds_problems_and_numbers(tmp_path):
    path = write_changed(tmp_path / "store", lambda n: views_of(n, side=dark))
    found = json.loads(json.dumps(to_json(inspect_store(path)), allow_nan=False))
    assert found["is_fatal"] is True
    assert (found["episodes"], found["views"]) == (COUNT, {"front": [48, 64], "side": [48, 64]})
    (one,) = found["problems"]
    assert (one["name"], one["level"], one["episodes_in_all"]) == ("black_camera", "fatal", COUNT)
    assert one["episodes"] == [f"lift/seed={n}" for n in range(COUNT)]
    assert found["actions"]["names"][-1] == "gripper"
    assert found["actions"]["max"][-1] == 1


def test_the_json_names_every_episode_of_a_problem_and_the_page_the_first(tmp_path):
    count = 24
    path = write_store(tmp_path / "store", [episode(n, instruction="") for n in range(count)])
    found = inspect_store(path, most_episodes=2)
    (one,) = (one for one in to_json(found)["problems"] if one["name"] == "no_instruction")
    assert one["episodes"] == [f"lift/seed={n}" for n in range(count)]
    assert to_json(found)["copies_sought_in"] == {"by_frames": count, "by_actions": count}
    write_page(found, tmp_path / "page.html")
    assert "lift/seed=19 and 4 more" in (tmp_path / "page.html").read_text()


SCRIPT = ROOT / "scripts/inspect_episodes.py"


def test_the_script_ends_with_status_3_where_a_problem_is_fatal(tmp_path):
    broken = write_changed(tmp_path / "store", lambda n: {"actions": None}, [1])
    command = [sys.executable, str(SCRIPT), str(broken), "--out", "page.html", "--json", "-", "--episodes", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["episodes_looked_at"] == 2
    assert "fatal: 1 episode without actions" in done.stderr
    assert "2 of 6 episodes" in (tmp_path / "page.html").read_text()


def test_the_script_ends_well_where_nothing_is_fatal_and_with_status_1_where_it_cannot_look(
    tmp_path, healthy, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["inspect_episodes.py", str(healthy), "--json", "facts.json"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert json.loads((tmp_path / "facts.json").read_text())["problems"] == []
    assert (tmp_path / "healthy_inspection.html").is_file()
    for words in ([str(tmp_path)], [str(healthy), "--episodes", "0"]):
        monkeypatch.setattr(sys, "argv", ["inspect_episodes.py", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert ended.value.code == 1
    assert "neither a number from 1 nor all" in capsys.readouterr().err
