"""Configuration: YAML and command line into frozen, strict, documented objects."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

ConfigType = TypeVar("ConfigType", bound="Config")


class Config(BaseModel):
    """A frozen, keyword-only group of settings; the string under each field documents it and feeds `--help`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def changed_from(self, other: "Config") -> list[str]:
        """Lines `key: old -> new` for every leaf in which the two differ."""
        return differences(other.model_dump(mode="json"), self.model_dump(mode="json"))


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key, the value and the fix."""


def load_config(
    kind: type[ConfigType],
    path: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    source: str = "command line",
) -> ConfigType:
    """A `kind` from a YAML file that states what differs from the defaults, then dotted `overrides` from a `source`.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown (with the nearest known one), a value is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_yaml(Path(path))
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, path, overrides or {}, source)) from None


def parse_command_line(
    kind: type[ConfigType], description: str, arguments: Sequence[str] | None = None, required_config: bool = True
) -> ConfigType:
    """The configuration of a script called as `script.py --config FILE [--some.key VALUE ...]`.

    Exits with status 2 and one sentence when something is wrong; `--help` lists every key with its default.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=describe(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=required_config, help="YAML file; see configs/")
    known, rest = parser.parse_known_args(arguments)
    try:
        return load_config(kind, known.config, _pairs(rest, kind))
    except ConfigError as error:
        parser.exit(2, f"{Path(sys.argv[0]).name}: {error}\n")


def describe(kind: type[BaseModel], prefix: str = "", owner: BaseModel | None = None) -> str:
    """One line a key: dotted name, default (that of the group's `owner` where it sets one), documentation."""
    lines = [] if prefix else ["any key of the configuration can be set as --key VALUE:", ""]
    for name, field in kind.model_fields.items():
        nested = _nested(field.annotation)
        is_required = owner is None and field.is_required()
        value = None if is_required else getattr(owner, name, field.get_default(call_default_factory=True))
        if nested is not None:
            lines.append(describe(nested, f"{prefix}{name}.", value))
            continue
        default = "required" if is_required else f"default {value}"
        lines.append(f"  --{prefix}{name}  ({default})\n        {field.description or ''}")
    return "\n".join(lines)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for the leaves in which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted({*old, *new}, key=str):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if old == new else [f"{prefix}: {old} -> {new}"]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}; the ones that come with the project are in configs/")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a configuration is a mapping `key: value`")
    return values


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, {error.problem}"
    return str(error).splitlines()[0]


def _pairs(words: Sequence[str], kind: type[BaseModel]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"unexpected word {word!r}; settings are given as --key VALUE or --key=VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not remaining:
                raise ConfigError(f"--{key} has no value; write --{key} VALUE")
            value = remaining.pop(0)
        pairs[key] = value if _is_text(kind, key.split(".")) else _parsed(key, value)
    return pairs


def _parsed(key: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{key} {value} is not valid YAML: {_yaml_problem(error)}") from None


def _is_text(kind: type[BaseModel], keys: list[str]) -> bool:
    """Whether a key takes text: there a run called 0012 or 1e3 keeps its name."""
    for key in keys[:-1]:
        field = kind.model_fields.get(key)
        nested = _nested(field.annotation) if field else None
        if nested is None:
            return False
        kind = nested
    return keys[-1] in kind.model_fields and kind.model_fields[keys[-1]].annotation is str


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(keys)} cannot be set: {key} is {inner!r}, not a group of settings")
        values = inner
    values[keys[-1]] = value


def _nested(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate if annotation is candidate else None
    return None


def _explain(
    error: ValidationError, kind: type[BaseModel], path: str | Path | None, overrides: dict[str, Any], source: str
) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        is_overridden = any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in overrides if key)
        place = source if path is None or is_overridden else path
        if problem["type"] == "extra_forbidden":
            known = [line.split()[0].removeprefix("--") for line in describe(kind).splitlines() if "--" in line[:4]]
            groups = [name.rsplit(".", 1)[0] for name in known if "." in name]
            near = difflib.get_close_matches(key, groups + known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
            parts.append(f"{place}: unknown key {key}. {hint}")
        elif problem["type"] == "missing":
            parts.append(f"{place}: {key} is required and has no default")
        else:
            where = f"{key} = {problem['input']!r}: " if key else ""
            said = problem["msg"].removeprefix("Value error, ")
            if problem["type"] in ("tuple_type", "list_type"):
                said = f"give a list, such as [{problem['input']}]"
            parts.append(f"{place}: {where}{said}")
    return "; ".join(parts)
