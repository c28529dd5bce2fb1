"""What a sweep shows: counts, running runs and time left, in narrow and wide terminals, and a line per event."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dembench.harness.engines.job import Progress
from dembench.harness.engines.view import State, duration, live, reason
from dembench.harness.sweeps import Planned
from dembench.harness.times import Times


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    slots = 2

    def run(self, todo: object) -> Iterator[Progress]:
        return iter(())


def made(seed: int, method: str = "tent") -> Planned:
    config = {"choices": {"task": "tta", "method": method}, "force": False}
    return Planned(f"{seed:012x}", {}, config, Path("runs") / str(seed), None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> State:
    missing = [made(seed) for seed in range(8)]
    labels = {run.id: f"tta tent adadem [bold]continual seed={seed}" for seed, run in enumerate(missing)}
    times = Times()
    times.add(missing[0].config, 60.0)
    return State(missing, Engine(), labels, times, clock)


def done(run: Planned, kind: str = "done") -> Progress:
    result = {"rows": [{"slice": "mean", "metric": "error", "value": 0.25}], "status": "ok"}
    return Progress(kind, run, result={**result, "cost": {"wall_seconds": 6.0}})


def drawn(state: State, width: int, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(state.table(width, height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_time_left_is_that_of_past_runs_less_what_running_runs_have_behind_them(state: State, clock: Clock) -> None:
    assert state.seconds_left() == pytest.approx(8 * 60 / 2)
    state.add(Progress("start", state.missing[0]))
    clock.now = 20.0
    assert state.seconds_left() == pytest.approx((7 * 60 + 40) / 2)
    clock.now = 100.0  # longer than expected
    assert state.seconds_left() == pytest.approx(7 * 60 / 2)
    state.add(done(state.missing[0]))  # 100 s, where 60 s were known
    assert state.seconds_left() == pytest.approx(7 * 80 / 2)
    for run in state.missing[1:]:
        state.add(done(run, "found"))
    assert state.seconds_left() == 0


def test_without_past_runs_the_time_left_is_unknown(state: State) -> None:
    state.times = Times()
    assert state.seconds_left() is None
    assert "? left" in "".join(drawn(state, 80))


def test_no_more_runs_are_counted_at_a_time_than_are_left(state: State) -> None:
    state.engine.slots = 100
    assert state.seconds_left() == pytest.approx(60.0)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_and_says_what_is_done_runs_failed_and_waits(state: State, clock: Clock, width: int) -> None:
    one, two, three, *_ = state.missing
    for run in (one, two, three):
        state.add(Progress("start", run, "worker 1, GPU 0"))
    clock.now = 30.0
    state.add(done(one))
    state.add(Progress("failed", two, message="Traceback\nValueError: no"))
    state.add(Progress("step", three, step=30, total=60))
    lines = drawn(state, width)
    assert max(map(len, lines)) <= width
    said = " ".join(" ".join(lines).split())
    for words in ("1 done", "1 running", "1 failed", "5 waiting", "30 s so far", "2 min left"):
        assert words in said
    row = next(line for line in lines if "adadem" in line)
    assert row.startswith("tta tent adadem")
    assert ("GPU 0" in row) == (width >= 100)


def test_more_running_runs_than_lines_are_counted(state: State) -> None:
    for run in state.missing:
        state.add(Progress("start", run))
    lines = drawn(state, 80, height=12)
    assert len(lines) < 12
    assert "and 4 more" in lines[-1]


def test_lines_are_said_once_and_with_what_counts(state: State) -> None:
    one, two, three, *_ = state.missing
    assert state.add(Progress("start", one)) == ""
    assert state.add(Progress("step", one, step=1, total=2)) == ""
    prefix = f"{one.id} tta tent adadem [bold]continual seed=0"
    assert state.add(done(one)) == f"[1/8] {prefix}: error 0.2500, 6.0 s"
    assert "another process is running it" in state.add(Progress("busy", two))
    assert state.add(Progress("busy", two)) == ""
    assert state.add(done(two, "found")).endswith("error 0.2500, 6.0 s, by another process")
    lost = Progress("again", three, message="the worker process was ended by SIGKILL\n\nprinted:\nlast words")
    assert state.add(lost).endswith("the worker process was ended by SIGKILL; it is tried again")
    assert state.add(Progress("failed", three, message="Traceback\n  x\nValueError: [red]no")).endswith(
        "[3/8] " + f"{three.id} tta tent adadem [bold]continual seed=2: FAILED, ValueError: [red]no"
    )


def test_what_a_node_warns_of_is_said_once(state: State) -> None:
    one, two, *_ = state.missing
    said = [state.add(replace(done(run), message="locks do not reach from node to node")) for run in (one, two)]
    assert ["warning: locks do not reach" in line for line in said] == [True, False]


def test_a_live_table_leaves_the_lines_and_markup_is_text(state: State) -> None:
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True, color_system=None)
    with live(state, console) as tell:
        tell(Progress("start", state.missing[0]))
        tell(Progress("failed", state.missing[0], message="ValueError: [red]no[/]"))
    said = console.file.getvalue()
    assert "continual seed=0: FAILED, ValueError: [red]no[/]" in said
    assert "[bold]continual" in said


def test_reasons_and_durations_are_short() -> None:
    message = "Traceback\n  File\nRuntimeError: broken\n\nprinted:\nmuch"
    assert reason(Progress("failed", made(0), message=message)) == "RuntimeError: broken"
    assert [duration(s) for s in (0.04, 9.94, 80, 600, 7200, 2e5, 4e5)] == [
        *("0.0 s", "9.9 s", "80 s", "10 min", "2.0 h", "2.3 days", "4.6 days"),
    ]
