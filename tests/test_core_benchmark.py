"""What the benchmarks of all packages measure with: times in turn, ratios, operations, processes of their own."""

import json
import os
import time
from functools import partial

import pytest
import torch

from core.benchmark.arithmetic import operations, peak_rate
from core.benchmark.fresh_process import in_fresh_process
from core.benchmark.meters import peak_memory, process_clock, wall_clock
from core.benchmark.timing import Ratio, Timing, in_turn, ratio, ratio_row, rows, seconds_of, share_of, together

CPU = torch.device("cpu")


class Watch:
    """A clock that stands still but for what calls take."""

    def __init__(self):
        self.time, self.order = 0.0, []

    def __call__(self):
        return self.time

    def work(self, name, seconds):
        self.time += 100.0 if name not in self.order else seconds
        self.order.append(name)


def test_things_are_timed_in_turn_as_often_as_said_and_the_warm_up_is_left_out():
    watch = Watch()
    calls = {"a": lambda: watch.work("a", 1.0), "b": lambda: watch.work("b", 3.0)}
    times = in_turn(calls, watch, rounds=2, repeats={"a": 2})
    assert watch.order == ["a", "b"] + ["a", "a", "b"] * 2
    assert times["a"].rounds == ((1.0, 1.0), (1.0, 1.0))
    assert times["b"].rounds == ((3.0,), (3.0,))
    assert ratio(times["b"], times["a"]) == (3.0, 3.0, 3.0)


def test_ratios_are_of_the_same_round():
    above, below = Timing(((2.0, 4.0, 3.0), (10.0,))), Timing(((1.0,), (20.0,)))
    assert ratio(above, below) == (1.75, 0.5, 3.0)
    assert together(below, Timing(((5.0,), (6.0,)))).rounds == ((6.0,), (26.0,))
    assert share_of(5.0, above) == (pytest.approx(5 / 3.5), 0.5, 2.5)
    assert Timing((tuple(map(float, range(101))),)).quantile_s(0.95) == 95.0
    assert above.per(2).rounds == ((1.0, 2.0, 1.5), (5.0,))


def test_what_is_printed_is_what_is_kept():
    numbers = {}
    lines = [*rows({"a": Timing.of([1.5, 0.5])}, numbers), *rows({"b": Timing.of([2.0])}, numbers)]
    lines.append(ratio_row("a / b", Ratio(0.5, 0.25, 0.75), numbers))
    assert [line.split() for line in lines] == [
        ["a", "1.0000", "s", "(0.5000", "to", "1.5000)"],
        ["b", "2.0000", "s", "(2.0000", "to", "2.0000)"],
        ["a", "/", "b", "0.500", "(0.250", "to", "0.750)"],
    ]
    ratios = {"median": 0.5, "lowest": 0.25, "highest": 0.75}
    assert json.loads(json.dumps(numbers)) == {"seconds": {"a": [1.5, 0.5], "b": [2.0]}, "a / b": ratios}


def test_one_clock_counts_waiting_and_the_other_does_not():
    sleep = partial(time.sleep, 0.3)
    assert seconds_of(sleep, wall_clock(CPU)) >= 0.3
    assert seconds_of(sleep, process_clock(CPU)) < 0.2


def test_operations_are_two_a_multiplication_forward_and_backward():
    weight = torch.randn(8, 6, requires_grad=True)
    tokens = torch.randn(5, 6, requires_grad=True)
    assert operations(lambda: torch.nn.functional.linear(tokens, weight)) == 2 * 5 * 6 * 8
    assert operations(lambda: torch.nn.functional.linear(tokens, weight).sum().backward()) == 3 * 2 * 5 * 6 * 8


def test_the_best_rate_is_that_of_the_fastest_product():
    watch = Watch()

    def clock():
        watch.time += 1.0
        return watch.time

    assert peak_rate(clock, CPU, torch.float32, 5, 3, 7) == 2 * 5 * 3 * 7
    assert peak_rate(wall_clock(CPU), CPU, torch.float32, 64, 32, 48) > 1e6


def took(mebibytes):
    """The process, and how much the peak of its memory rose."""
    before = peak_memory(CPU)
    held = bytearray(mebibytes * 2**20)
    return os.getpid(), peak_memory(CPU) - before, len(held)


def test_a_peak_of_memory_is_of_its_own_process_alone():
    held = bytearray(512 * 2**20)
    pids, peaks, sizes = zip(*(in_fresh_process("a test", took, size) for size in (256, 32)), strict=True)
    assert len({*pids, os.getpid()}) == 3
    assert peaks[0] >= 240 * 2**20
    assert 24 * 2**20 <= peaks[1] < 100 * 2**20
    assert (len(held), *sizes) == (2**29, 2**28, 2**25)


def test_a_process_that_ends_without_an_answer_is_an_error_with_a_name():
    with pytest.raises(RuntimeError, match=r"^measuring the end of it ended without an answer; is there enough mem"):
        in_fresh_process("the end of it", os._exit, 3)
