"""Configurations answer mistakes with a sentence that names the key, the value and the fix."""

import math
from typing import Self

import pytest
from pydantic import model_validator

from core.config import Config, ConfigError, describe, load_config, parse_command_line


class Inner(Config):
    width: int = 8
    """Channels."""
    rate: float = 0.1
    """Learning rate."""


class Outer(Config):
    out: str
    """Where it goes."""
    views: tuple[str, ...] = ()
    """Cameras."""
    seed: int | None = None
    """Of all random draws."""
    inner: Inner = Inner()
    """Size."""

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.inner.width % 2:
            raise ValueError(f"inner.width is {self.inner.width}, must be even")
        return self


def written(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


def test_file_then_overrides_then_defaults(tmp_path):
    path = written(tmp_path, "out: a\ninner: {width: 16}\n")
    config = load_config(Outer, path, {"inner.rate": 0.5, "out": "b"})
    assert config == Outer(out="b", inner=Inner(width=16, rate=0.5))


def test_overrides_reach_groups_that_the_file_does_not_mention():
    assert load_config(Outer, None, {"out": "a", "inner.width": 4}).inner.width == 4


@pytest.mark.parametrize(("key", "nearest"), [("innner.width", "inner"), ("inner.widht", "inner.width"), ("ot", "out")])
def test_unknown_key_answers_with_the_nearest_known_one(key, nearest):
    with pytest.raises(
        ConfigError, match=rf"command line: unknown key {key.split('.')[0]}\S*\. Did you mean {nearest}\?"
    ):
        load_config(Outer, None, {"out": "a", key: 1})


def test_unknown_key_that_resembles_nothing_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown key zzzzzz. Known keys: out, views, seed, inner.width, inner.rate"):
        load_config(Outer, None, {"out": "a", "zzzzzz": 1})


def test_the_command_line_is_blamed_for_what_it_says_and_the_file_for_the_rest(tmp_path):
    path = written(tmp_path, "out: a\nseed: x\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: seed = 'x': .*; command line: inner\.rate = 'y': "):
        load_config(Outer, path, {"inner.rate": "y"})


def test_all_mistakes_are_said_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, written(tmp_path, "widht: 3\ninner: {width: much}\n"))
    for part in ("unknown key widht", "out is required and has no default", "inner.width = 'much'", "a.yaml"):
        assert part in str(caught.value)


def test_contradictions_are_said_in_the_words_of_the_owner():
    with pytest.raises(ConfigError, match=r"command line: .*inner\.width is 3, must be even$"):
        load_config(Outer, None, {"out": "a", "inner.width": 3})


def test_missing_file_and_bad_yaml_are_said_with_their_path(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file at .*nowhere.yaml; .* configs/"):
        load_config(Outer, tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"a.yaml is not valid YAML"):
        load_config(Outer, written(tmp_path, "out: [1, 2\n"))
    with pytest.raises(ConfigError, match=r"a.yaml holds a list"):
        load_config(Outer, written(tmp_path, "- out\n"))


def test_bad_yaml_names_the_line(tmp_path):
    with pytest.raises(ConfigError, match="line 3"):
        load_config(Outer, written(tmp_path, "out: a\nseed: 1\nviews: a: b\n"))


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path):
    assert load_config(Outer, written(tmp_path, "out: a\ninner: {rate: 1e-4}\n")).inner.rate == 1e-4
    assert (
        parse_command_line(Outer, "", ["--out", "a", "--inner.rate", "3e-5"], required_config=False).inner.rate == 3e-5
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ConfigError, match=r"inner\.rate"):
        load_config(Outer, None, {"out": "a", "inner.rate": value})


def test_text_that_looks_like_a_number_stays_text_where_text_is_wanted(tmp_path):
    """Run names such as 0012, 1e3 or a date arrive from the shell without quotes."""
    for word in ("12", "0012", "1e3", "2026-01-02", "true", "null"):
        assert parse_command_line(Outer, "", ["--out", word], required_config=False).out == word


def test_a_group_cannot_be_set_through_a_value(tmp_path):
    with pytest.raises(ConfigError, match=r"inner\.width cannot be set: inner is 5"):
        load_config(Outer, written(tmp_path, "out: a\ninner: 5\n"), {"inner.width": 2})


def test_command_line_takes_both_forms_lists_and_negative_numbers():
    words = ["--out=a=b", "--views", "[front, side]", "--seed", "-3"]
    config = parse_command_line(Outer, "", words, required_config=False)
    assert (config.out, config.views, config.seed) == ("a=b", ("front", "side"), -3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "a", "stray"], "unexpected word 'stray'"),
        (["--out"], "--out has no value"),
        (["--out", "a", "--views", "[a"], "--views [a is not valid YAML"),
        (["--out", "a", "--views", "front"], "views = 'front': give a list, such as [front]"),
        (["--out", "a", "--inner.widht", "2"], "Did you mean inner.width?"),
        (["--config", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
    ],
)
def test_a_wrong_command_line_ends_in_one_sentence_and_status_two(words, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_command_line(Outer, "", words, required_config=False)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_an_abbreviated_option_is_not_taken_for_config(capsys):
    """`--con` is a mistyped key, not a shorter --config."""
    with pytest.raises(SystemExit):
        parse_command_line(Outer, "", ["--con", "x", "--out", "a"], required_config=False)
    assert "unknown key con" in capsys.readouterr().err


def test_help_lists_every_key_with_its_default_and_documentation(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_command_line(Outer, "Do it.", ["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for part in ("Do it.", "--out  (required)", "--inner.width  (default 8)", "Channels.", "--seed  (default None)"):
        assert part in printed


def test_help_of_a_nested_group_shows_the_defaults_of_its_owner():
    class Wider(Config):
        inner: Inner = Inner(width=64)

    assert "--inner.width  (default 64)" in describe(Wider)


def test_configurations_cannot_be_changed_and_differences_are_listed():
    old, new = Outer(out="a"), Outer(out="a", seed=2, inner=Inner(width=16))
    with pytest.raises(ValueError, match="frozen"):
        old.out = "b"
    assert new.changed_from(old) == ["inner.width: 8 -> 16", "seed: None -> 2"]
