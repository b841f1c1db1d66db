"""Statistics are those of numpy, however many rows there are and however they come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core.statistics
from core.statistics import QUANTILES, Statistics, StatisticsError, describe, moments, quantiles

ODD = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, 1.0, -1.0, 0.1])
VALUES = st.one_of(ODD, st.floats(-(2.0**100), 2.0**100, width=32))


def cut(rows, places):
    """The rows in pieces, some of which may be empty."""
    return np.split(rows, sorted(place % (len(rows) + 1) for place in places))


@pytest.fixture(params=["sorted", "counted"])
def way(request, monkeypatch):
    if request.param == "counted":
        monkeypatch.setattr(core.statistics, "SORTED_ROWS", 1)
    return request.param


@pytest.mark.parametrize("count", [2, 3, 7, 100, 1001])
@pytest.mark.parametrize("kind", ["normal", "few", "equal", "tiny", "huge", "far"])
def test_quantiles_are_exactly_those_of_numpy(way, kind, count):
    rng = np.random.default_rng(count)
    rows = {
        "normal": rng.normal(size=(count, 3)),
        "few": rng.choice([-1.0, -0.0, 0.0, 1.0], (count, 3)),
        "equal": np.full((count, 3), 0.1),
        "tiny": rng.normal(size=(count, 3)) * 1e-42,
        "huge": rng.uniform(-3e38, 3e38, (count, 3)),
        "far": 1e6 + rng.normal(size=(count, 3)),
    }[kind].astype(np.float32)
    found = quantiles(cut(rows, [3, 50, 50, 700]), count)
    np.testing.assert_array_equal(found, np.quantile(rows.astype(np.float64), QUANTILES, axis=0))


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=40),
    places=st.lists(st.integers(0, 100), max_size=4),
    probabilities=st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_counted_quantiles_of_any_numbers_are_exactly_those_of_numpy(rows, places, probabilities):
    values, sorted_rows = np.array(rows, np.float32), core.statistics.SORTED_ROWS
    core.statistics.SORTED_ROWS = 1
    try:
        found = quantiles(cut(values, places), len(values), probabilities)
    finally:
        core.statistics.SORTED_ROWS = sorted_rows
    np.testing.assert_array_equal(found, np.quantile(values.astype(np.float64), probabilities, axis=0))


@settings(max_examples=100)
@given(
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
    offset=st.sampled_from([0.0, 1.0, -1e3]),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 1000),
)
def test_moments_are_those_of_numpy(scale, offset, sizes, seed):
    rows = (offset + np.random.default_rng(seed).normal(size=(sum(sizes), 3))) * scale
    found = moments(np.split(rows, np.cumsum(sizes)[:-1]))
    assert found.rows == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-9, atol=1e-9 * np.abs(rows).max())
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-9, atol=1e-12 * np.abs(rows).max())
    np.testing.assert_array_equal([found.low, found.high], [rows.min(0), rows.max(0)])


def test_moments_far_from_zero_are_exact():
    rows = 1e6 + np.random.default_rng(0).normal(size=(5000, 2)) * 1e-3
    found = moments(np.array_split(rows, 500))
    np.testing.assert_allclose(found.std, (rows - rows.mean(0)).std(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-14)


def test_float32_is_summed_without_loss():
    rows = np.full((100_000, 1), 0.1, np.float32)
    assert moments(np.array_split(rows, 7)).mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert moments([rows]).std[0] < 1e-12


class Streamed:
    """Rows that are never held at once: each pass makes them anew."""

    def __iter__(self):
        return (np.full((5, 2), number, np.float32) for number in range(4))

    def __len__(self):
        return 4

    def __contains__(self, _):
        raise NotImplementedError


def test_arrays_need_not_be_in_memory(way):
    found = describe(Streamed())
    assert found["count"] == [20]
    assert (found["q50"], found["min"], found["max"]) == ([1.5, 1.5], [0.0, 0.0], [3.0, 3.0])


def test_statistics_have_the_names_that_lerobot_gives_them():
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    found, exact = describe([rows]), rows.astype(float)
    assert list(found) == ["min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99", "count"]
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], getattr(exact, name)(0), rtol=1e-12)
    for q in (1, 10, 50, 90, 99):
        np.testing.assert_array_equal(found[f"q{q:02d}"], np.quantile(exact, q / 100, axis=0))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_dimension(wrong):
    rows = np.zeros((5, 3), np.float32)
    rows[2, 1] = wrong
    with pytest.raises(StatisticsError, match=r"not finite in dimensions \[1\]"):
        Statistics.of([np.zeros((4, 3), np.float32), rows])


@pytest.mark.parametrize("arrays", [[], [np.zeros((0, 3), np.float32)]])
def test_nothing_has_no_statistics(arrays):
    with pytest.raises(StatisticsError, match="no values to compute statistics of"):
        describe(arrays)


def test_statistics_survive_json_and_say_what_never_changed():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows[:, 1] = 0.5
    found = Statistics.of([rows])
    assert Statistics.from_json(found.to_json()) == found
    assert found.constant == [1]
    np.testing.assert_allclose(found.denormalise(found.normalise(rows)), rows, atol=1e-6)
    np.testing.assert_allclose(found.normalise(rows)[:, [0, 2]].std(0), 1, rtol=1e-5)
    with pytest.raises(StatisticsError, match="holds no action statistics"):
        Statistics.from_json(None)
