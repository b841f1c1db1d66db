"""The rules that keep the code readable and the packages apart, checked on the source itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "lam", "vla", "eval")
MAY_IMPORT = {package: {"core", package} for package in PACKAGES}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EVERYTHING = MODULES + SCRIPTS + TESTS

NEED_TORCH = {
    f"core.{name}"
    for name in (
        "processes",
        "benchmark.arithmetic",
        "benchmark.data",
        "benchmark.loaders",
        "benchmark.meters",
        "checkpoint",
        "device",
        "frame_cache",
        "frames",
        "fsdp",
        "live_features",
        "loading",
        "metrics",
        "reduction",
        "sharded_state",
        "stopping",
        "throughput",
        "training",
        "vision",
        "zero",
    )
}
"""The modules of core that import torch; all others, and all of eval, work in an image without it."""
HEAVY = ("torch", "torchvision", "accelerate", "transformers", "timm", "mani_skill", "sapien", "gymnasium")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SCRIPT_LINES = 400, 50, 59
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "misc", "manager", "managers", "common"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def short(path: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(ROOT)}" + (f":{node.lineno}" if node is not None else "")


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every imported module, also those inside functions and in strings such as "package.module:name"."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"((?:core|lam|vla|eval)(?:\.\w+)+)(?::\w+)+", node.value)
            if found:
                yield node, found[1]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def listing(rule: str, wrong: list[str]) -> str:
    return "\n  ".join([rule, *wrong])


def documented(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[tuple[ast.AST, str, bool]]:
    """Public definitions of a module or class, and whether each has a docstring; not what hides inside functions."""
    for child in node.body:
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)) and not child.name.startswith("_"):
            overload = any(ast.unparse(mark).endswith("overload") for mark in child.decorator_list)
            yield child, f"{name}{child.name}", overload or ast.get_docstring(child) is not None
            if isinstance(child, ast.ClassDef):
                yield from documented(child, f"{child.name}.")


def test_packages_meet_only_in_core():
    wrong = [
        f"{short(path, node)} imports {name}"
        for path in MODULES
        for node, name in imports(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    ]
    assert not wrong, listing(
        "core imports none of the others; lam, vla and eval import only core and themselves", wrong
    )


def test_imports_are_absolute_and_name_what_they_take():
    wrong = []
    for path in EVERYTHING:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                wrong += [f"{short(path, node)}: star import" for alias in node.names if alias.name == "*"]
                wrong += [f"{short(path, node)}: relative import"] * bool(node.level)
                wrong += [f"{short(path, node)}: from __future__"] * (node.module == "__future__" and path in MODULES)
    assert not wrong, listing("absolute imports, names spelt out, annotations as they are", wrong)


def test_the_builtin_eval_is_never_rebound():
    wrong = [
        short(path, node)
        for path in EVERYTHING
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "eval" for alias in node.names)
    ]
    assert not wrong, listing("write `from eval.x import y`: `import eval.x` rebinds the builtin", wrong)


def test_eval_and_the_base_of_core_import_without_torch_or_a_simulator():
    names = [module_name(path) for path in MODULES if path.relative_to(ROOT).parts[0] in ("core", "eval")]
    assert {name for name in names if name in NEED_TORCH} == NEED_TORCH, "NEED_TORCH names a module that is gone"
    program = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"it needs {{name}}")
sys.meta_path.insert(0, Absent())
failed = []
for name in {[name for name in names if name not in NEED_TORCH]!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{{name}}: {{error}}")
print("\\n".join(failed))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), f"import what is heavy inside the function that needs it\n{done.stdout}"


def test_files_and_functions_are_short():
    wrong = []
    for path in EVERYTHING:
        lines = len(path.read_text().splitlines())
        limit = MAX_SCRIPT_LINES if path in SCRIPTS else MAX_FILE_LINES
        wrong += [f"{short(path)}: {lines} lines, at most {limit}"] * (lines > limit)
        for node in ast.walk(tree(path)):
            if isinstance(node, FUNCTIONS):
                size = node.end_lineno - node.lineno + 1
                wrong += [f"{short(path, node)} {node.name}: {size} lines"] * (size > MAX_FUNCTION_LINES)
    assert not wrong, listing("split what is too long", wrong)


def test_no_file_or_folder_has_a_name_that_says_nothing():
    named = [path.relative_to(ROOT).with_suffix("") for path in EVERYTHING]
    wrong = [str(path) for path in named if EMPTY_NAMES & {word for part in path.parts for word in part.split("_")}]
    assert not wrong, listing("name a file after the one idea in it", wrong)


def test_only_say_and_the_scripts_print():
    wrong = []
    for path in MODULES:
        source = tree(path)
        say = {node for node in source.body if path == ROOT / "core/run.py" and getattr(node, "name", "") == "say"}
        allowed = {inner for function in say for inner in ast.walk(function)}
        calls = (node for node in ast.walk(source) if isinstance(node, ast.Call) and node not in allowed)
        wrong += [short(path, call) for call in calls if ast.unparse(call.func) == "print"]
    assert not wrong, listing("use core.run.say", wrong)


def test_only_the_evaluation_runner_catches_everything():
    wrong = [
        short(path, node)
        for path in MODULES + SCRIPTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type)))
    ]
    wrong = [where for where in wrong if not where.startswith("eval/runner.py:")]
    assert not wrong, listing("catch what you expect, by name", wrong)


def test_packages_hold_nothing_but_a_docstring():
    wrong = []
    for path in MODULES:
        if path.name == "__init__.py":
            body = tree(path).body
            only_docstring = len(body) == 1 and ast.get_docstring(tree(path)) is not None
            wrong += [short(path)] * (not only_docstring)
    assert not wrong, listing("an __init__.py holds a docstring alone", wrong)
    folders = {path.parent for path in MODULES}
    assert not [short(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_tests_are_flat_and_shadow_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not [short(path) for path in TESTS if path.parent != ROOT / "tests"]
    assert not [folder for folder in (ROOT / "tests").iterdir() if folder.is_dir() and folder.name in PACKAGES]


def test_everything_public_has_a_docstring():
    wrong = [short(path) for path in MODULES + SCRIPTS if ast.get_docstring(tree(path)) is None]
    for path in MODULES:
        wrong += [f"{short(path, node)} {name}" for node, name, has in documented(tree(path), "") if not has]
    assert not wrong, listing("say what it gives", wrong)


def test_every_setting_is_documented():
    """The string under a field of a Config is what --help prints."""
    wrong = []
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Config" for base in node.bases):
                following = [*node.body[1:], None]
                for field, after in zip(node.body, following, strict=True):
                    is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    if isinstance(field, ast.AnnAssign) and not is_text:
                        wrong.append(f"{short(path, field)} {node.name}.{ast.unparse(field.target)}")
    assert not wrong, listing("document the field in a string under it", wrong)


def test_every_test_can_fail():
    """Each test function asserts, expects an error, or calls something of the file that does."""
    wrong = []
    for path in TESTS:
        functions = {node.name: node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS)}
        checking = {name for name, node in functions.items() if checks(node)}
        for name, node in functions.items():
            called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
            if name.startswith("test_") and name not in checking and not called & checking:
                wrong.append(f"{short(path, node)} {name}")
    assert not wrong, listing("assert something", wrong)


def checks(function: ast.AST) -> bool:
    calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    has_assertion = any(isinstance(node, ast.Assert) for node in ast.walk(function))
    return has_assertion or any(re.search(r"raises|assert_|check|fail", call) for call in calls)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_walk_sees_every_package(package):
    assert [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]
