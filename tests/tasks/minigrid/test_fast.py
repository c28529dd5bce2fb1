"""The fast path against Minigrid and stable-baselines3: the same observations to the byte, the same steps but for
rounding."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("stable_baselines3", reason='needs pip install "dembench[minigrid]"')
pytest.importorskip("minigrid", reason='needs pip install "dembench[minigrid]"')

from copy import deepcopy

import gymnasium as gym
import numpy as np
from minigrid.wrappers import FlatObsWrapper
from minigrid_agents import DOOR_KEY, NINE, fast_agent, stock_agent
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd

from dembench.core import EM, AdaDEM
from dembench.tasks.minigrid.envs import Moments, live_envs, minigrid_ids, stock_envs
from dembench.tasks.minigrid.fast import FastPolicy
from dembench.tasks.minigrid.live import LiveObs, Views
from dembench.tasks.minigrid.policy import EntropyBonusPolicy

# environments with moving obstacles, lava, other views and boxes besides the paper's nine
MORE = ("MiniGrid-Dynamic-Obstacles-Random-5x5-v0", "MiniGrid-ObstructedMaze-2Dlh-v0", "MiniGrid-LavaGapS5-v0")


@pytest.mark.parametrize("env_id", NINE + MORE)
def test_observations_equal_flat_obs_wrapper(env_id):
    views, rng = Views(env_id), np.random.default_rng(0)
    ours = LiveObs(gym.make(env_id, disable_env_checker=True), views)
    stock = FlatObsWrapper(gym.make(env_id))
    for seed in range(4):
        a, b = ours.reset(seed=seed)[0], stock.reset(seed=seed)[0]
        start = 0
        for step in range(120):
            assert np.array_equal(a, b[views.columns]), (seed, step)
            assert np.delete(b, views.columns).sum() == 0
            action = int(rng.choice(7, p=[0.15, 0.15, 0.3, 0.15, 0.05, 0.15, 0.05]))
            (a, *rest), (b, *same) = ours.step(action), stock.step(action)
            assert rest[:3] == same[:3]
            if rest[1] or rest[2]:
                assert rest[3]["episode"]["l"] == step + 1 - start
                start = step + 1
                a, b = ours.reset()[0], stock.reset()[0]


@pytest.mark.parametrize("env_id", [DOOR_KEY, "MiniGrid-PutNear-6x6-N2-v0"])
def test_vectorised_environments_give_the_same_bits(env_id):
    views, rng = Views(env_id), np.random.default_rng(1)
    ours, stock = live_envs(env_id, 3, 7, 0.99, views), stock_envs(env_id, 3, 7, 0.99)
    a, b = ours.reset(), stock.reset()
    ended = 0
    for _ in range(600):
        assert a.dtype == b.dtype == np.float32
        assert np.array_equal(a, b[:, views.columns])
        actions = rng.integers(0, 7, 3)
        (a, rewards, dones, infos), (b, rewards_, dones_, infos_) = ours.step(actions), stock.step(actions)
        assert np.array_equal(rewards, rewards_)
        assert np.array_equal(dones, dones_)
        for info, info_ in zip(infos, infos_, strict=True):
            assert info["TimeLimit.truncated"] == info_["TimeLimit.truncated"]
            if "episode" in info_:
                ended += 1
                assert {k: info["episode"][k] for k in "rl"} == {k: info_["episode"][k] for k in "rl"}
                assert np.array_equal(info["terminal_observation"], info_["terminal_observation"][views.columns])
    assert ended > 3
    assert np.array_equal(ours.obs_rms.mean, stock.obs_rms.mean[views.columns])
    assert np.array_equal(ours.obs_rms.var, stock.obs_rms.var[views.columns])
    assert ours.ret_rms.var == stock.ret_rms.var
    dead = np.delete(np.arange(views.width), views.columns)
    assert (b[:, dead] == 0).all()  # so that weights on them have no gradient


def test_moments_equal_stable_baselines3():
    rng, ours, theirs = np.random.default_rng(0), Moments(shape=(5,)), RunningMeanStd(shape=(5,))
    for batch in (rng.integers(0, 256, (8, 5), dtype=np.uint8), rng.normal(size=(3, 5)), rng.normal(size=(8, 5))):
        ours.update(batch)
        theirs.update(batch)
        assert np.array_equal(ours.mean, theirs.mean)
        assert np.array_equal(ours.var, theirs.var)
        assert ours.count == theirs.count


def fast_and_modules(env_id=DOOR_KEY, bonus=None):
    """The fast policy, and the stock one with the same seed, both over all inputs that can be set."""
    views = Views(env_id)
    space, actions = gym.spaces.Box(-10, 10, (views.width,)), gym.spaces.Discrete(7)
    torch.manual_seed(0)
    stock = EntropyBonusPolicy(space, actions, lambda _: 1e-3, bonus=bonus)
    torch.manual_seed(0)
    live = gym.spaces.Box(-10, 10, views.columns.shape)
    fast = FastPolicy(live, actions, lambda _: 1e-3, bonus=bonus, width=views.width, columns=views.columns.tolist())
    return fast, stock, views


def test_first_weights_are_stock_to_the_bit():
    fast, stock, views = fast_and_modules()
    w, nets = fast.weights, (stock.mlp_extractor.policy_net, stock.mlp_extractor.value_net)
    assert torch.equal(w.w1, torch.cat([net[0].weight[:, views.columns] for net in nets]))
    assert torch.equal(w.w2, torch.stack([net[2].weight for net in nets]))
    assert torch.equal(w.action, stock.action_net.weight)
    assert torch.equal(w.value, stock.value_net.weight)
    assert sum(part.numel() for part in w) == fast.theta.numel()


def test_written_out_passes_equal_autograd():
    fast, stock, views = fast_and_modules()
    x = torch.zeros(64, views.width)
    x[:, views.columns] = torch.randn(64, len(views.columns), generator=torch.Generator().manual_seed(1))
    actions = torch.arange(64) % 7
    outputs = []
    for policy, seen in ((fast, x[:, views.columns]), (stock, x)):
        values, log_prob, entropy = policy.evaluate_actions(seen, actions)
        (values.square().mean() + log_prob.sin().mean() + entropy.mean()).backward()
        outputs.append((values.detach(), log_prob.detach(), entropy.detach()))
    assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-5)
    g, nets = fast.theta.grad, (stock.mlp_extractor.policy_net, stock.mlp_extractor.value_net)
    expected = [
        torch.cat([net[0].weight.grad[:, views.columns] for net in nets]),
        torch.cat([net[0].bias.grad for net in nets]),
        torch.stack([net[2].weight.grad for net in nets]),
        torch.stack([net[2].bias.grad for net in nets]),
        *(p.grad for p in (*stock.action_net.parameters(), *stock.value_net.parameters())),
    ]
    assert_close(g, torch.cat([part.flatten() for part in expected]), atol=1e-6, rtol=1e-4)
    dead = np.delete(np.arange(views.width), views.columns)
    assert all((net[0].weight.grad[:, dead] == 0).all() for net in nets)


@pytest.mark.parametrize("bonus", [EM(), AdaDEM()], ids=["EM", "AdaDEM"])
def test_training_equals_the_stock_path_but_for_rounding(bonus):
    stock = stock_agent(EntropyBonusPolicy, policy_kwargs={"bonus": bonus}).learn(1024)
    columns = Views(DOOR_KEY).columns
    fast = fast_agent(bonus).learn(1024)
    assert np.array_equal(fast.rollout_buffer.actions, stock.rollout_buffer.actions)
    assert np.array_equal(fast.rollout_buffer.observations, stock.rollout_buffer.observations[:, columns])
    assert np.allclose(fast.rollout_buffer.log_probs, stock.rollout_buffer.log_probs, atol=1e-5)
    w, nets = fast.policy.weights, (stock.policy.mlp_extractor.policy_net, stock.policy.mlp_extractor.value_net)
    assert_close(w.w1, torch.cat([net[0].weight[:, columns] for net in nets]), atol=1e-5, rtol=0)
    assert_close(w.w2, torch.stack([net[2].weight for net in nets]), atol=1e-5, rtol=0)
    assert_close(w.action, stock.policy.action_net.weight.detach(), atol=1e-5, rtol=0)
    group = fast.policy.optimizer.param_groups[0]
    assert group["eps"] == stock.policy.optimizer.param_groups[0]["eps"] == 1e-5
    if isinstance(bonus, AdaDEM):
        assert_close(fast.policy.bonus.table, stock.policy.bonus.table, atol=1e-5, rtol=0)


def test_fast_training_repeats_to_the_bit():
    a, b = fast_agent(AdaDEM()).learn(512), fast_agent(AdaDEM()).learn(512)
    assert torch.equal(a.policy.theta, b.policy.theta)
    assert torch.equal(a.policy.bonus.table, b.policy.bonus.table)


def test_fast_policy_saves_and_loads(tmp_path):
    agent = fast_agent(AdaDEM()).learn(256)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    assert torch.equal(loaded.policy.theta, agent.policy.theta)
    assert torch.equal(loaded.policy.bonus.table, agent.policy.bonus.table)
    seen = np.random.default_rng(0).normal(size=(4, *agent.observation_space.shape)).astype(np.float32)
    assert (loaded.predict(seen, deterministic=True)[0] == agent.predict(seen, deterministic=True)[0]).all()
    copied = deepcopy(agent.policy)
    assert torch.equal(copied.theta, agent.policy.theta)
    with torch.no_grad():
        copied.theta.zero_()  # what it computes with is its own
    assert (copied.predict(seen, deterministic=True)[0] == 0).all()
    assert agent.policy.theta.any()
    agent.policy.save(tmp_path / "policy.pt")
    policy = FastPolicy.load(tmp_path / "policy.pt", device="cpu")
    assert torch.equal(policy.theta, agent.policy.theta)


def test_fast_training_resumes_where_it_was_saved(tmp_path):
    """Agent, environments and normalisation go on from a file as they do without one."""
    whole = fast_agent(AdaDEM()).learn(256)
    whole.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=deepcopy_of(whole.env), device="cpu")
    loaded._last_obs, loaded._last_episode_starts = whole._last_obs.copy(), whole._last_episode_starts.copy()
    for agent in (whole, loaded):
        torch.manual_seed(0)
        np.random.seed(0)
        agent.learn(256, reset_num_timesteps=False)
    assert torch.equal(whole.policy.theta, loaded.policy.theta)
    assert torch.equal(whole.policy.bonus.table, loaded.policy.bonus.table)
    assert whole.num_timesteps == loaded.num_timesteps == 512


def deepcopy_of(env):
    """Environments in the state that ``env`` is in."""
    made = deepcopy(env.venv)
    copied = deepcopy(env)
    copied.set_venv(made)
    copied.returns = env.returns.copy()
    return copied


def test_missions_outside_the_mission_space_are_refused():
    views = Views(DOOR_KEY)
    with pytest.raises(ValueError, match="is not in the mission space"):
        views.mission("dance on the table")


def test_a_sample_of_the_registry_gives_flat_obs_too():
    for env_id in [name for name in minigrid_ids() if "WFC" not in name][::9]:  # those need pictures of their own
        views = Views(env_id)
        ours, stock = LiveObs(gym.make(env_id, disable_env_checker=True), views), FlatObsWrapper(gym.make(env_id))
        assert np.array_equal(ours.reset(seed=1)[0], stock.reset(seed=1)[0][views.columns]), env_id


def test_observations_made_in_another_way_are_refused(monkeypatch):
    kind = type(gym.make(DOOR_KEY).unwrapped)
    monkeypatch.setattr(kind, "gen_obs", lambda self: None, raising=False)
    with pytest.raises(ValueError, match=f"{DOOR_KEY} makes observations of its own"):
        Views(DOOR_KEY)
