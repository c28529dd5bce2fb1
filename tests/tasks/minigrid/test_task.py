"""The task from a command's words to result.json: the same numbers twice, seeds apart, and errors before any work."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("stable_baselines3", reason='needs pip install "dembench[minigrid]"')
pytest.importorskip("minigrid", reason='needs pip install "dembench[minigrid]"')

import gymnasium as gym
import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from minigrid_agents import DOOR_KEY, NINE
from PIL import Image

from dembench.core import AdaDEM
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose, options
from dembench.tasks.base import Artifact, Row, Scalars
from dembench.tasks.minigrid import EntropyBonusPolicy
from dembench.tasks.minigrid.envs import Environment, stock_envs
from dembench.tasks.minigrid.evaluation import gif, play
from dembench.tasks.minigrid.live import LiveObs, Views
from dembench.tasks.minigrid.methods import PPO
from dembench.tasks.minigrid.task import Minigrid, Protocol

ROOT = Path(__file__).parents[3]
TINY = {
    "task": "minigrid", "data.steps": 512, "data.n_steps": 32, "method.n_epochs": 2, "protocol.episodes": 10,
    "protocol.points": 2,
}  # fmt: skip
EMPTY = "MiniGrid-Empty-Random-5x5-v0"


@pytest.fixture(autouse=True)
def _restore_torch():
    yield
    torch.use_deterministic_algorithms(False)


def result_of(tmp_path, **words):
    plain = {key.replace("__", "."): value for key, value in words.items()}
    outcome = experiment.run(experiment.prepare(compose({**TINY, **plain, "out": str(tmp_path)})))
    return json.loads(outcome.path.read_text()), outcome.path.parent


def test_a_run_records_rows_curve_and_picture(tmp_path):
    result, folder = result_of(tmp_path / "a", data="empty_random", loss="adadem", seed=1)
    assert result["status"] == "ok"
    assert (result["data"], result["loss"], result["method"]) == ("Empty-Random-5x5", "adadem", "ppo")
    rows = {(row["slice"], row["metric"]): row for row in result["rows"]}
    for slice in ("stochastic", "deterministic", "mean"):
        assert {rows[slice, name]["n"] for name in ("return", "success", "length", "episode_sd")} == {10}
    assert rows["mean", "return"]["value"] == rows["stochastic", "return"]["value"]
    assert rows["first 10 episodes", "return"]["value"] == rows["mean", "return"]["value"]  # there are no more here
    assert 0 <= rows["mean", "training_return"]["value"] <= 1
    series = (folder / "series.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in series[1:]} == {"256", "512"}
    assert {"entropy", "bonus", "delta", "weight"} <= {line.split(",")[2] for line in series}
    with Image.open(folder / "files" / "agent.gif") as picture:
        assert picture.n_frames >= 2
        assert picture.size == (100, 100)
    assert {note["key"] for note in result["notes"]} == {"evaluation", "observations"}
    assert result["cost"]["backward_passes"] == 2 * 2 * 4  # rollouts, epochs, minibatches
    assert result["environment"]["threads"] == 1
    assert result["environment"]["stable_baselines3"]

    again, _ = result_of(tmp_path / "b", data="empty_random", loss="adadem", seed=1)
    assert again["rows"] == result["rows"]
    assert again["id"] == result["id"]


def test_none_is_the_weight_zero(tmp_path):
    without, _ = result_of(tmp_path, data="doorkey", loss="none")
    zero, _ = result_of(tmp_path, data="doorkey", loss="em", method__ent_coef=0.0)
    assert without["id"] != zero["id"]
    assert without["rows"] == zero["rows"]


def test_fast_and_stock_path_give_the_same_numbers(tmp_path):
    fast, _ = result_of(tmp_path, data="unlock", loss="adadem", method__ent_coef=0.01)
    stock, _ = result_of(tmp_path, data="unlock", loss="adadem", method__ent_coef=0.01, protocol__fast=False)
    for a, b in zip(fast["rows"], stock["rows"], strict=True):
        assert (a["slice"], a["metric"], a["n"]) == (b["slice"], b["metric"], b["n"])
        assert a["value"] == pytest.approx(b["value"], abs=1e-4)


def test_a2c_and_a_moving_weight(tmp_path):
    words = {"method": "a2c", "method.ent_coef": 0.1, "method.ent_coef_final": 0.0, "data": "empty_random"}
    tiny = {key: value for key, value in TINY.items() if key != "method.n_epochs"}
    outcome = experiment.run(experiment.prepare(compose({**tiny, **words, "out": str(tmp_path)})))
    lines = [line.split(",") for line in (outcome.path.parent / "series.csv").read_text().splitlines()]
    weights = [float(value) for _, _, metric, value in lines[1:] if metric == "weight"]
    assert weights == pytest.approx([0.05, 0.0], abs=0.005)


def test_learning_in_pauses_is_stable_baselines3s_learn():
    def agent():
        return PPO(
            AdaDEM(),
            lambda n_envs, gamma: stock_envs(EMPTY, n_envs, 5, gamma),
            policy_class=EntropyBonusPolicy,
            policy_kwargs={},
            rollout=32,
            seed=5,
            n_epochs=2,
        )

    ours, theirs = agent(), agent()
    # the second one's seed was the last to be set, for both: make them start alike
    states = []
    for one, learn in ((ours, lambda m: list(m.learn(700))), (theirs, lambda m: m.model.learn(700, m.callbacks))):
        one.model.set_random_seed(5)
        learn(one)
        states.append(one.model.policy.state_dict())
    assert ours.model.num_timesteps == theirs.model.num_timesteps == 768
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_configurations_are_the_zoos():
    """Steps and rollouts of rl-baselines3-zoo, hyperparams/ppo.yml, by environment; the others have 128 steps."""
    expected = {
        "MiniGrid-DoorKey-5x5-v0": 1e5, "MiniGrid-Empty-Random-5x5-v0": 1e5, "MiniGrid-Fetch-5x5-N2-v0": 5e6,
        "MiniGrid-FourRooms-v0": 5e6, "MiniGrid-GoToDoor-5x5-v0": 5e6, "MiniGrid-KeyCorridorS3R1-v0": 5e5,
        "MiniGrid-PutNear-6x6-N2-v0": 1e7, "MiniGrid-RedBlueDoors-6x6-v0": 1e6, "MiniGrid-Unlock-v0": 1e5,
    }  # fmt: skip
    found = {}
    for name in options("data", "minigrid"):
        if name != "env":
            node = compose({"task": "minigrid", "data": name}).data
            found[node.id] = node.steps
            long = node.id in ("MiniGrid-FourRooms-v0", "MiniGrid-RedBlueDoors-6x6-v0")
            assert node.n_steps == (512 if long else 128)
    assert found == expected
    assert set(found) == set(NINE)


def test_training_and_evaluation_use_seeds_apart(monkeypatch):
    """By what the environments themselves are reset with."""
    used, reset = [], MiniGridEnv.reset

    def watched(self, *, seed=None, options=None):
        used.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(MiniGridEnv, "reset", watched)
    seeds = {}
    for run_seed in (0, 1):
        used.clear()
        task = Minigrid(Environment(EMPTY, 256, 32), Protocol(episodes=10, picture=False), seed=run_seed)
        list(task.run(lambda **kwargs: PPO(AdaDEM(), n_epochs=1, **kwargs)))
        given = [seed for seed in used if seed is not None]
        seeds[run_seed] = {"training": set(given[:8]), "evaluation": set(given[8:])}
    assert seeds[0]["training"] == set(range(8))
    assert seeds[1]["training"] == set(range(1000, 1008))
    assert seeds[0]["evaluation"] == seeds[1]["evaluation"] == set(range(10_000_000, 10_000_010))


def test_seeded_resets_through_the_wrapper_repeat():
    views = Views(DOOR_KEY)
    env = LiveObs(gym.make(DOOR_KEY, disable_env_checker=True), views)
    layouts = []
    for seed in (3, 4, 3):
        env.reset(seed=seed)
        layouts.append(env.unwrapped.hash())
    assert layouts[0] == layouts[2] != layouts[1]


def test_play_counts_what_a_known_policy_earns():
    """Straight on reaches the goal of the empty 5x5 room: turn right at the wall; 1 - 0.9 steps / 100."""

    class Script:
        def predict(self, obs, deterministic):
            return np.array([self.plan[self.at]] * len(obs)), setattr(self, "at", self.at + 1)

    script = Script()
    script.plan, script.at = [2, 2, 1, 2, 2], 0
    env_id = "MiniGrid-Empty-5x5-v0"
    envs = [LiveObs(gym.make(env_id, disable_env_checker=True), Views(env_id)) for _ in range(2)]
    found = play(script, lambda obs: obs, envs, [0, 1], deterministic=True, pictures=True)
    assert found.lengths.tolist() == [5, 5]
    assert found.returns == pytest.approx([1 - 0.9 * 5 / 100] * 2)
    rows = {row.metric: row for row in found.rows("mean")}
    assert rows["success"] == Row("mean", "success", 1.0, "fraction", 2)
    assert rows["episode_sd"].value == 0
    assert len(found.frames) == 6
    with Image.open(io.BytesIO(gif(found.frames))) as picture:
        assert picture.n_frames == 6


def test_weights_that_are_not_finite_are_flagged():
    task = Minigrid(Environment(EMPTY, 256, 32), Protocol(episodes=10))

    def broken(**kwargs):
        method = PPO(AdaDEM(), n_epochs=1, **kwargs)
        learn = method.learn

        def spoiled(steps):
            for logged in learn(steps):
                with torch.no_grad():
                    method.model.policy.theta[0] = torch.nan
                yield logged

        method.learn = spoiled
        return method

    events = list(task.run(broken))
    assert [event.kind for event in events if type(event).__name__ == "Flag"] == ["nan"]
    assert not any(isinstance(event, Artifact) for event in events)
    assert len([event for event in events if isinstance(event, Scalars)]) <= len(task)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"data": "env", "data.id": "MiniGrid-DorKey-5x5-v0", "data.steps": 10}, "nearest: MiniGrid-DoorKey-5x5-v0"),
        ({"data": "env"}, r"data=env needs a value: data.id=... data.steps=...; data.id=MiniGrid-LavaCrossing"),
        ({"precision": "bf16"}, "minigrid trains in fp32, got precision=bf16"),
        ({"seed": 10_000}, "training would use the seeds of the evaluation"),
        ({"protocol.episodes": 5}, "expected episodes >= 10, got 5"),
        ({"data.steps": 0}, "expected steps >= 1, got 0"),
        ({"method": "a3c"}, "nearest: a2c"),
    ],
)
def test_errors_come_before_any_work(words, message):
    with pytest.raises(ConfigError, match=message):
        experiment.prepare(compose({"task": "minigrid", **words}))


def test_negative_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"weights of the bonus >= 0, got -0.1"):
        result_of(tmp_path, method__ent_coef=-0.1)


@pytest.mark.parametrize("example", ["ppo_adadem_sb3.py", "ppo_adadem_cleanrl.py"])
def test_examples_run(example, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, "1024"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    entropies = [float(x) for x in re.findall(r"entropy\s*(?:\|)?\s*([0-9.]+)", done.stdout)]
    assert entropies
    assert all(0 <= entropy <= np.log(2) + 1e-3 for entropy in entropies)
    assert not list(tmp_path.iterdir())


def test_five_lines_of_the_sb3_example_differ():
    """Undone, the marked lines leave a script that knows stable-baselines3 alone."""
    text = (ROOT / "examples" / "ppo_adadem_sb3.py").read_text()
    marked = re.findall(r"# ([1-5])\b", text.split('"""')[2])
    assert marked == ["1", "2", "3", "4", "5"]
    rest = [line for line in text.split('"""')[2].splitlines() if not re.search(r"# [1-5]\b", line)]
    assert not any("core" in line or "tasks" in line or "onus" in line for line in rest)
