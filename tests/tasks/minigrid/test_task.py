"""The task from a command's words to result.json: the same numbers twice, seeds apart, and errors before any work."""

from __future__ import annotations

import io
import json
import re
import runpy
import subprocess
import sys
from copy import deepcopy
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

from dembench.core import EM, AdaDEM
from dembench.harness import experiment
from dembench.harness.compose import ConfigError, compose, options
from dembench.tasks.base import Artifact, Row, Scalars
from dembench.tasks.minigrid.envs import Environment, Worlds, stock_envs
from dembench.tasks.minigrid.evaluation import gif, play
from dembench.tasks.minigrid.live import LiveObs, Views
from dembench.tasks.minigrid.masks import useful_actions
from dembench.tasks.minigrid.methods import PPO, OnPolicy
from dembench.tasks.minigrid.task import Minigrid, Protocol

ROOT = Path(__file__).parents[3]
TINY = {
    "task": "minigrid", "data.steps": 512, "data.n_steps": 32, "method.n_epochs": 2, "protocol.episodes": 10,
    "protocol.points": 2,
}  # fmt: skip
EMPTY = "MiniGrid-Empty-Random-5x5-v0"


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


@pytest.mark.parametrize("method", ["ppo", "recurrent_ppo", "maskable_ppo"])
def test_fast_and_stock_path_give_the_same_numbers(method, tmp_path):
    words = {"method": method, "data": "unlock", "loss": "adadem", "method__ent_coef": 0.01}
    if method == "recurrent_ppo":
        words["method__policy_kwargs.lstm_hidden_size"] = 8
    fast, _ = result_of(tmp_path, **words)
    stock, _ = result_of(tmp_path, **words, protocol__fast=False)
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
        return PPO(AdaDEM(), Worlds(EMPTY, 5), rollout=32, seed=5, n_epochs=2)

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
        def predict(self, obs, state, episode_start, deterministic):
            self.at += 1
            return np.array([self.plan[self.at - 1]] * len(obs)), state

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


@pytest.mark.parametrize("method", ["recurrent_ppo", "maskable_ppo"])
def test_methods_of_sb3_contrib_run_and_repeat(method, tmp_path):
    words = {"method": method, "data": "doorkey", "loss": "adadem", "method__update": "rollout"}
    if method == "recurrent_ppo":
        words["method__policy_kwargs.lstm_hidden_size"] = 8
    result, folder = result_of(tmp_path / "a", **words)
    assert (result["status"], result["method"]) == ("ok", method)
    rows = {(row["slice"], row["metric"]): row for row in result["rows"]}
    assert rows["deterministic", "return"]["n"] == 10
    notes = {note["key"]: note["text"] for note in result["notes"]}
    assert ("masks" in notes) == (method == "maskable_ppo")
    assert {"entropy", "bonus", "delta"} <= {line.split(",")[2] for line in (folder / "series.csv").open()}
    again, _ = result_of(tmp_path / "b", **words)
    assert again["rows"] == result["rows"]


def test_without_sb3_contrib_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    monkeypatch.delitem(sys.modules, "dembench.tasks.minigrid.contrib", raising=False)
    monkeypatch.delattr("dembench.tasks.minigrid.contrib", raising=False)
    with pytest.raises(ConfigError, match=r'needs sb3-contrib: pip install "dembench\[minigrid\]"') as found:
        experiment.prepare(compose({"task": "minigrid", "method": "maskable_ppo"}))
    assert "\n" not in str(found.value)
    experiment.prepare(compose({"task": "minigrid", "method": "ppo"}))


def test_em_in_the_task_is_sb3_contribs_agent_bit_for_bit():
    from sb3_contrib import MaskablePPO

    from dembench.tasks.minigrid.contrib import MaskablePPO as Ours

    settings = {"learning_rate": 2.5e-4, "batch_size": 64, "n_epochs": 2, "ent_coef": 0.01, "seed": 3, "device": "cpu"}
    theirs = MaskablePPO("MlpPolicy", stock_envs(DOOR_KEY, 8, 3, 0.99), n_steps=32, **settings).learn(512)
    ours = Ours(EM(), Worlds(DOOR_KEY, 3), rollout=32, **settings)
    list(ours.learn(512))
    expected, found = theirs.policy.state_dict(), ours.model.policy.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


MASKED = (*NINE, "MiniGrid-Dynamic-Obstacles-5x5-v0", "MiniGrid-MemoryS7-v0", "MiniGrid-BlockedUnlockPickup-v0")


@pytest.mark.parametrize("env_id", MASKED)
def test_an_action_is_ruled_out_only_where_it_changes_nothing(env_id):
    """By trying every action on a copy of the world, along a random walk; and what is left does change it."""
    env, rng = gym.make(env_id).unwrapped, np.random.default_rng(0)
    own_step = type(env).step is not MiniGridEnv.step
    ruled_out = idle = 0
    for episode in range(3):
        env.reset(seed=episode)
        for _ in range(40):
            allowed = useful_actions(env)
            assert allowed[:2].all()  # turning is always possible
            for action in range(env.action_space.n):
                world = deepcopy(env)
                _, reward, terminated, _, _ = world.step(action)
                moved = not all(np.array_equal(a, b) for a, b in zip(state_of(world), state_of(env), strict=True))
                if not allowed[action]:
                    ruled_out += 1
                    assert (reward, terminated, moved) == (0, False, False), action
                elif not moved and reward == 0 and not terminated:
                    idle += 1
                    assert own_step or action == 5, action  # a locked door and no key
            ended = env.step(int(rng.choice(np.flatnonzero(allowed))))[2]
            if ended:
                break
    assert ruled_out > idle or own_step


def state_of(env):
    return env.grid.encode(), env.agent_pos, env.agent_dir, env.carrying and env.carrying.encode()


class Named:
    """Tells its name once, at the start, and rewards every action that repeats it; a name ends after as many steps."""

    def reset(self, seed):
        self.name = self.left = seed
        return np.array([seed]), {}

    def step(self, action):
        self.left -= 1
        return np.array([-1]), float(action == self.name), self.left == 0, False, {}


class Remembers:
    def predict(self, obs, state, episode_start, deterministic):
        told = np.where(episode_start, obs[:, 0], 0 if state is None else state[0][0, :, 0])
        return told, (told[None, :, None], told[None, :, None])


def test_play_gives_each_episode_the_memory_of_its_own():
    found = play(Remembers(), lambda obs: obs, [Named() for _ in range(5)], [4, 2, 5, 1, 3], deterministic=True)
    assert found.lengths.tolist() == found.returns.tolist() == [4, 2, 5, 1, 3]


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
        ({"data.steps": 0}, "data.steps: expected an integer >= 1, got 0"),
        ({"method": "a3c"}, "nearest: a2c"),
    ],
)
def test_errors_come_before_any_work(words, message):
    with pytest.raises(ConfigError, match=message):
        experiment.prepare(compose({"task": "minigrid", **words}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"method.n_envs": 0}, "n_envs: expected an integer >= 1, got 0"),
        ({"method.n_steps": 0}, "n_steps: expected an integer >= 1, got 0"),
        ({"method.n_epochs": 1.5}, "method.n_epochs: expected an integer, got 1.5"),
        ({"method.batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
        ({"method.batch_size": 1}, "1024 samples in minibatches of 1: one sample has no advantage to normalise"),
        ({"method": "recurrent_ppo", "method.batch_size": 31}, "1024 samples in minibatches of 31: one sample"),
        ({"method.clip_range": -1}, "clip_range: expected a number > 0, got -1"),
        ({"method.learning_rate": "null"}, "method.learning_rate: expected a number, got 'null'"),
        ({"method.learning_rate": 0}, "learning_rate: expected a number > 0, got 0"),
        ({"method.gamma": 2}, "gamma: expected a number from 0 to 1, got 2"),
        ({"method.ent_coef": -0.1}, "ent_coef: expected a number >= 0, got -0.1"),
        ({"method.ent_coef_final": -0.1}, "ent_coef_final: expected a number >= 0, got -0.1"),
        ({"method": "a2c", "method.gae_lambda": -0.5}, "gae_lambda: expected a number from 0 to 1, got -0.5"),
        (
            {"method": "recurrent_ppo", "method.policy_kwargs.lstm_hidden_size": 0},
            "lstm_hidden_size: expected an integer >= 1, got 0",
        ),
        ({"method": "recurrent_ppo", "+method.policy_kwargs.lstm_size": 8}, "'lstm_size'; nearest: "),
        ({"+method.policy_kwargs": {"net_arch": [8]}}, "policy_kwargs needs protocol.fast=false, got"),
        ({"+method.update": "epoch"}, "unknown method.update 'epoch'"),
        ({"protocol.seed_spacing": 4}, "expected seed_spacing >= n_envs, got 4"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line_before_training(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(OnPolicy, "learn", lambda self, steps: pytest.fail("training has begun"))
    with pytest.raises(ConfigError, match=re.escape(message)) as found:
        experiment.run(experiment.prepare(compose({"task": "minigrid", "out": str(tmp_path), **words})))
    assert "\n" not in str(found.value)
    assert not list(tmp_path.rglob("result.json"))


def entropies_of_two_actions(said):
    found = [float(x) for x in re.findall(r"entropy\s*(?:\|)?\s*([0-9.]+)", said)]
    return bool(found) and all(0 <= entropy <= np.log(2) + 1e-3 for entropy in found)


def test_the_sb3_example_runs(tmp_path):
    words = [sys.executable, ROOT / "examples" / "ppo_adadem_sb3.py", "1024"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert entropies_of_two_actions(done.stdout)
    assert not list(tmp_path.iterdir())


def test_the_cleanrl_example_lowers_its_rate_and_clips_its_value(tmp_path, monkeypatch, capsys):
    """Two updates of 4 epochs of 4 minibatches; with a clip of 0 the clipped value is the old one, in every epoch."""
    monkeypatch.chdir(tmp_path)
    train = runpy.run_path(str(ROOT / "examples" / "ppo_adadem_cleanrl.py"))["main"]
    train.__globals__["CLIP"] = 0.0
    rates, clipped = [], []
    adam, most = torch.optim.Adam.step, torch.max
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *_: (rates.append(self.param_groups[0]["lr"]), adam(self))[1]
    )
    monkeypatch.setattr(torch, "max", lambda free, other: (clipped.append(other.detach()), most(free, other))[1])
    with torch.random.fork_rng():
        train(1024)
    assert entropies_of_two_actions(capsys.readouterr().out)
    assert rates == [2.5e-4] * 16 + [1.25e-4] * 16
    epochs = torch.cat(clipped).view(8, 512).sort(1).values
    for update in epochs.split(4):
        assert torch.equal(update, update[:1].expand(4, -1))
    assert not torch.equal(epochs[0], epochs[4])
    assert not list(tmp_path.iterdir())


def test_four_lines_of_the_sb3_example_differ():
    """Undone, the marked lines leave a script that knows stable-baselines3 alone."""
    text = (ROOT / "examples" / "ppo_adadem_sb3.py").read_text()
    marked = re.findall(r"# ([1-4])\b", text.split('"""')[2])
    assert marked == ["1", "2", "3", "4"]
    rest = [line for line in text.split('"""')[2].splitlines() if not re.search(r"# [1-4]\b", line)]
    assert not any("core" in line or "tasks" in line or "onus" in line for line in rest)
