"""Every YAML opens by saying what it is for and loads, strictly, into the configuration of the script it names."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import Config, ConfigError, load_config
from core.formats.by_name import READERS
from core.formats.mapping import Mapping

ROOT = Path(__file__).resolve().parents[1]
STATED = {
    "the script that reads it (scripts/NAME.py)": r"\bscripts/\w+\.py\b",
    "the hardware (Hardware: ...)": r"\bHardware: ",
    "the time it takes, in seconds, minutes or hours": r"\b(second|minute|hour)s?\b",
    "the number to expect (Expected: ...)": r"\bExpected: ",
}
LAUNCHERS = ROOT / "configs/accelerate"
MAPPINGS = ROOT / "configs/data"
STANDS_FOR_A_PATH = "given-on-the-command-line"


def opening_comment(path: Path) -> str:
    lines = path.read_text().splitlines()
    ends = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.lstrip("# ") for line in lines[:ends])


def config_of(script: Path) -> type[Config]:
    """The class that the script gives to `parse_command_line`."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    name = next(ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "parse_command_line")
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def problems(path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with one YAML file; keys left to the command line must be named in its comment."""
    comment = opening_comment(path)
    wrong = [
        f"the opening comment does not state {what}" for what, how in STATED.items() if not re.search(how, comment)
    ]
    named = re.search(STATED["the script that reads it (scripts/NAME.py)"], comment)
    if not named:
        return wrong
    if not (root / named[0]).is_file():
        return [*wrong, f"there is no {named[0]}"]
    kind = Mapping if path.parent == MAPPINGS else config_of(root / named[0])
    left_out = missing_keys(kind, path, {})
    wrong += [
        f"{key} is required: set it, or name --{key} in the comment" for key in left_out if f"--{key}" not in comment
    ]
    try:
        load_config(kind, path, dict.fromkeys(left_out, STANDS_FOR_A_PATH))
    except ConfigError as error:
        # Keys left out that are no text (a mapping of policies) cannot be made up here.
        wrong += [part for part in str(error).split("; ") if STANDS_FOR_A_PATH not in part]
    if kind is Mapping and load_config(Mapping, path).format not in READERS:
        wrong.append(f"its format is none of {list(READERS)}")
    return wrong


def missing_keys(kind: type[Config], path: Path, overrides: dict[str, Any]) -> list[str]:
    try:
        load_config(kind, path, overrides)
    except ConfigError as error:
        return re.findall(r": (\S+) is required and has no default", str(error))
    return []


def test_every_configuration_says_what_it_is_for_and_loads():
    files = sorted(path for path in (ROOT / "configs").rglob("*.y*ml") if path.parent != LAUNCHERS)
    wrong = [f"{path.relative_to(ROOT)}: {what}" for path in files for what in problems(path)]
    assert not wrong, "\n" + "\n".join(wrong)
    others = {*files, *LAUNCHERS.iterdir()}
    assert not [path for path in (ROOT / "configs").rglob("*") if path.is_file() and path not in others]


@pytest.mark.parametrize("path", sorted(LAUNCHERS.iterdir()), ids=lambda path: path.name)
def test_a_launcher_file_shows_its_command_and_leaves_the_training_to_the_scripts(path):
    """Accelerate reads these; `TrainingConfig` decides precision, accumulation and clipping."""
    assert re.search(rf"accelerate launch --config_file configs/accelerate/{path.name} ", opening_comment(path))
    assert "torchrun" in opening_comment(path)
    settings = yaml.safe_load(path.read_text())
    assert settings["mixed_precision"] == "no"
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & set(settings.get("deepspeed_config", {}))


HEADER = "# scripts/stage.py: to try things.\n# Hardware: 2 CPU cores, a minute. Expected: 0.5. Give --out.\n"
SCRIPT = """
from core.config import Config, parse_command_line

class StageConfig(Config):
    out: str
    steps: int = 3

def main():
    parse_command_line(StageConfig, "Try.")
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + "steps: 4\n", []),
        (HEADER + "steps: 4\nout: here\n", []),
        (HEADER + "stepz: 4\n", ["Did you mean steps?"]),
        (HEADER + "steps: many\n", ["steps = 'many'"]),
        (HEADER.replace(" Give --out.", ""), ["out is required"]),
        (HEADER.replace("Hardware: ", ""), ["Hardware"]),
        (HEADER.replace("Expected: ", "") + "steps: 1\n", ["Expected"]),
        (HEADER.replace("minute", "while"), ["time"]),
        (HEADER.replace("stage.py", "other.py"), ["there is no scripts/other.py"]),
        ("steps: 4\n" + HEADER, ["script", "hardware", "time", "number"]),
    ],
)
def test_the_check_finds_what_is_wrong(tmp_path, text, expected):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/stage.py").write_text(SCRIPT)
    (tmp_path / "some.yaml").write_text(text)
    found = problems(tmp_path / "some.yaml", root=tmp_path)
    assert len(found) == len(expected), found
    assert all(part in what for what, part in zip(found, expected, strict=True)), found
