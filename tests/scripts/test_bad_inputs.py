"""Three hundred bad inputs and more: each is one line with status 2, never a traceback and never accepted.

The table is ``tests/support/bad_inputs.py``. A row of ``WORDS`` that would get as far as a run is stopped there, which
counts as accepted.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from pathlib import Path
from typing import Any

import bad_inputs
import pytest

from dembench.harness import experiment
from dembench.harness.engines import execute
from dembench.scripts.cli import COMMANDS, main

NUMBERS = list(bad_inputs.numbers())
EVERY = [*bad_inputs.WORDS, *bad_inputs.FILES, *NUMBERS]


class Accepted(BaseException):
    """A bad input got as far as a run."""


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("things")
    bad_inputs.make_things(folder)
    return folder


def test_the_table_is_as_long_as_it_says() -> None:
    assert len({words for words, _ in EVERY}) >= 560
    assert {words.split()[0] for words, _ in EVERY} >= set(COMMANDS)


def is_one_line(words: str, said: str, things: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [word.replace("@", str(things)) if "method@" not in word else word for word in shlex.split(words)]
    try:
        status = main(argv)
    except SystemExit as end:  # argparse's way
        status = end.code
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.strip() and not line.startswith("  planning")]  # slow CPUs
    assert status == 2, (status, told.err[-300:], told.out[-300:])
    assert len(lines) == 1, told.err
    assert told.out == ""
    assert re.match("dembench(?!.*(unexpected|Traceback))", lines[0])
    assert said.replace("@", str(things)) in lines[0]
    assert not list(Path(os.getcwd()).rglob("result.json"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEMBENCH_DATA", raising=False)


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Accepted

    monkeypatch.setattr(experiment, "run", stop)
    monkeypatch.setattr(execute, "execute", stop)


@pytest.mark.usefixtures("elsewhere", "no_run")
@pytest.mark.parametrize(("words", "said"), EVERY, ids=[words[:60].replace("/", ":") for words, _ in EVERY])
def test_a_bad_input_is_one_line(words: str, said: str, things: Path, capsys: pytest.CaptureFixture) -> None:
    is_one_line(words, said, things, capsys)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("words", "said"), bad_inputs.PICTURES)
def test_a_picture_that_a_run_cannot_read_is_one_line(
    words: str, said: str, things: Path, capsys: pytest.CaptureFixture
) -> None:
    is_one_line(f"{words} progress=false", said, things, capsys)


@pytest.mark.usefixtures("elsewhere", "no_run")
@pytest.mark.parametrize(("words", "cache", "said"), bad_inputs.CACHES)
def test_a_place_for_caches_that_is_not_there_is_one_line(
    words: str,
    cache: str | None,
    said: str,
    things: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("DEMBENCH_CACHE", "HOME", "XDG_CACHE_HOME") if cache is None else ():
        monkeypatch.delenv(name, raising=False)
    if cache is None:
        monkeypatch.setattr(pwd, "getpwuid", nobody)  # as in a container for a user without an account
    else:
        monkeypatch.setenv("DEMBENCH_CACHE", cache.replace("@", str(things)))
    is_one_line(words, said, things, capsys)
