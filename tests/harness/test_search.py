"""The search itself: finds a known optimum, holds Proposition A.1, resumes, is shared, and lets nothing broken win."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dembench_plane import bowl, outcome

from dembench.harness.search.space import ONE_ONE, largest_tau
from dembench.harness.search.trials import Outcome, Search, Settings, best

SUPPORT = Path(__file__).parent.parent / "support"


def pairs(trials):
    return [trial.pair for trial in trials]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return Search(tmp_path_factory.mktemp("whole"), Settings(trials=20)).run(outcome)


@pytest.mark.parametrize(("space", "order"), [("grid", "joint"), ("grid", "sequential"), ("continuous", "joint")])
def test_it_finds_the_optimum_of_a_known_function_under_proposition_a1(tmp_path, space, order):
    settings = Settings(trials=36, space=space, order=order)
    trials = Search(tmp_path, settings).run(outcome)
    assert [trial.number for trial in trials] == list(range(36))
    assert trials[0].pair == ONE_ONE
    for tau, alpha in pairs(trials):
        assert 0 < tau <= 2
        assert 0 <= alpha <= 2
        assert tau * alpha <= 2 * (1 + 1e-12)
        if space == "grid":
            assert (round(10 * tau) / 10, round(10 * alpha) / 10) == (tau, alpha)
    chosen = best(trials)
    assert bowl(chosen.pair) <= (0.011 if space == "grid" else 0.02)  # one step of the grid away; it spans up to 4.5
    assert chosen.score == max(trial.score for trial in trials)
    if order == "sequential":
        assert all(tau == 1 for tau, _ in pairs(trials[:18]))
        found = min(pairs(trials[:18]), key=bowl)[1]
        assert all(alpha == found for _, alpha in pairs(trials[18:]))


def test_beside_a_tight_bound_the_search_stays_inside(tmp_path):
    """The function pulls to (2, 2), which Proposition A.1 excludes."""
    trials = Search(tmp_path, Settings(trials=25)).run(lambda pair: Outcome(sum(pair), "ok", {}))
    assert all(tau * alpha <= 2 * (1 + 1e-12) for tau, alpha in pairs(trials))
    assert best(trials).score >= 2.5


@pytest.mark.parametrize(("alpha", "tau"), [(0.0, 2.0), (1.0, 2.0), (1.3, 1.5), (1.8, 1.1), (2.0, 1.0)])
def test_the_largest_tau_on_the_grid(alpha, tau):
    assert largest_tau(alpha, "grid") == tau
    assert (tau + 0.1) * alpha > 2 or tau == 2


def test_another_seed_tries_other_pairs(tmp_path, uninterrupted):
    other = Search(tmp_path, Settings(trials=8, seed=1)).run(outcome)
    assert pairs(other)[1:] != pairs(uninterrupted)[1:8]


def test_a_search_can_be_made_longer(tmp_path, uninterrupted):
    asked = []

    def evaluate(pair):
        asked.append(pair)
        return outcome(pair)

    Search(tmp_path, Settings(trials=8)).run(evaluate)
    trials = Search(tmp_path, Settings(trials=14)).run(evaluate)
    assert pairs(trials) == pairs(uninterrupted)[:14] == asked


def test_what_is_not_ok_is_kept_and_cannot_win(tmp_path):
    def evaluate(pair):
        broken = {True: "collapse", False: "ok"}[pair[1] > 1]
        return Outcome(100.0 if broken == "collapse" else -bowl(pair), broken, {"value": 1.0})

    trials = Search(tmp_path, Settings(trials=16)).run(evaluate)
    assert {trial.status for trial in trials} == {"ok", "collapse"}
    assert best(trials).ok
    assert best(trials).pair[1] <= 1
    assert best([trial for trial in trials if not trial.ok]) is None
    tried = [pair[1] > 1 for pair in pairs(trials)]
    assert sum(tried[10:]) < 3  # the estimator has learned to stay away


def test_what_an_evaluation_raises_ends_the_search_and_its_trial_comes_again(tmp_path, uninterrupted):
    def broken(pair):
        raise KeyboardInterrupt

    search = Search(tmp_path, Settings(trials=3))
    with pytest.raises(KeyboardInterrupt):
        search.run(broken)
    assert search.done() == []
    assert pairs(Search(tmp_path, Settings(trials=3)).run(outcome)) == pairs(uninterrupted)[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "gird"}, "unknown space 'gird'; nearest: grid; valid: grid, continuous"),
        ({"order": "first"}, "unknown order 'first'.*valid: joint, sequential"),
        ({"trials": 1}, "expected trials >= 2, got 1"),
        ({"run_seeds": (1, 1)}, "different seeds >= 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def start(folder: Path, log: Path, trials: int, seconds: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT}", "OMP_NUM_THREADS": "1"}
    module = SUPPORT / "search_configs" / "dembench_plane.py"
    words = [sys.executable, str(module), str(folder), str(log), str(trials), str(seconds)]
    return subprocess.Popen(words, env=environment)


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_after_a_kill_one_process_tries_the_same_pairs_as_without(tmp_path, uninterrupted):
    folder, log = tmp_path / "search", tmp_path / "log"
    process = start(folder, log, 20, 0.2)
    wait_for(lambda: len(lines(log)) >= 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(lines(log))
    again = []

    def evaluate(pair):
        again.append(pair)
        return outcome(pair)

    trials = Search(folder, Settings(trials=20)).run(evaluate)
    assert pairs(trials) == pairs(uninterrupted)
    assert [trial.score for trial in trials] == [trial.score for trial in uninterrupted]
    assert 20 <= before + len(again) <= 21  # the trial that was cut off, if there was one, is the only one done twice


def test_two_processes_share_the_trials(tmp_path):
    folder, log = tmp_path / "search", tmp_path / "log"
    processes = [start(folder, log, 16, 0.4) for _ in range(2)]
    assert [process.wait(timeout=180) for process in processes] == [0, 0]
    done = Search(folder, Settings(trials=16)).done()
    assert [trial.number for trial in done] == list(range(16))
    tried = lines(log)
    assert len(tried) == 16  # none twice, none beyond the number asked for
    assert sorted((float(tau), float(alpha)) for _, tau, alpha in tried) == sorted(pairs(done))
    assert len({process for process, *_ in tried}) == 2
    assert best(done).score > -bowl(ONE_ONE)
