"""Three hundred bad inputs and more: each is one line with status 2, never a traceback and never accepted.

The table is ``tests/support/bad_inputs.py``. A row of ``WORDS`` that would get as far as a run is stopped there, which
counts as accepted.
"""

from __future__ import annotations

import os
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
    assert len({words for words, _ in EVERY}) >= 480
    assert {words.split()[0] for words, _ in EVERY} >= set(COMMANDS)


@pytest.mark.parametrize(("words", "said"), EVERY, ids=[words[:60].replace("/", ":") for words, _ in EVERY])
def test_a_bad_input_is_one_line(
    words: str, said: str, things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Accepted(words)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEMBENCH_DATA", raising=False)
    monkeypatch.setattr(experiment, "run", stop)
    monkeypatch.setattr(execute, "execute", stop)
    argv = [word.replace("@", str(things)) if "method@" not in word else word for word in shlex.split(words)]
    try:
        status = main(argv)
    except SystemExit as end:  # argparse's way
        status = end.code
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.strip()]
    assert status == 2, (status, told.err[-300:], told.out[-300:])
    assert len(lines) == 1, told.err
    assert told.out == ""
    assert re.match("dembench(?!.*(unexpected|Traceback))", lines[0])
    assert said.replace("@", str(things)) in lines[0]
    assert not list(Path(os.getcwd()).rglob("result.json"))
