"""The entropy bonus: stock stable-baselines3 where it must be, else the loss's own gradient; and its state."""

from __future__ import annotations

from copy import deepcopy

import gymnasium as gym
import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("stable_baselines3", reason='needs pip install "dembench[minigrid]"')
pytest.importorskip("minigrid", reason='needs pip install "dembench[minigrid]"')

from minigrid_agents import SETTINGS, stock_agent, weights
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from dembench.core import DEM, EM, AdaDEM
from dembench.core.functional import adadem, dem, uniform_table, update_table
from dembench.tasks.minigrid import EntropyBonusPolicy
from dembench.tasks.minigrid.callbacks import BonusLog, BonusWeight


def equal(first, second):
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def learned(policy, bonus=None, **settings):
    kwargs = {} if policy == "MlpPolicy" else {"bonus": bonus}
    return stock_agent(policy, policy_kwargs=kwargs, **settings).learn(512)


def cartpole(policy, algorithm=PPO, policy_kwargs=None, **settings):
    chosen = {"n_steps": 32, "seed": 3, "ent_coef": 0.01, "device": "cpu", **settings}
    if algorithm is PPO:
        chosen = {"batch_size": 32, "n_epochs": 2, **chosen}
    return algorithm(policy, make_vec_env("CartPole-v1", 2, seed=3), policy_kwargs=policy_kwargs, **chosen)


@pytest.fixture(scope="module")
def stock():
    return learned("MlpPolicy")


@pytest.mark.parametrize("bonus", [None, EM()], ids=["none given", "EM"])
def test_em_is_stock_ppo_bit_for_bit(stock, bonus):
    assert equal(learned(EntropyBonusPolicy, bonus), stock)


def test_another_bonus_trains_otherwise(stock):
    assert not equal(learned(EntropyBonusPolicy, AdaDEM()), stock)


def test_weight_zero_is_stock_weight_zero_bit_for_bit():
    stock = learned("MlpPolicy", ent_coef=0.0)
    assert equal(learned(EntropyBonusPolicy, AdaDEM(), ent_coef=0.0), stock)


def test_a2c_too():
    stock = cartpole("MlpPolicy", A2C).learn(320)
    assert equal(cartpole(EntropyBonusPolicy, A2C, {"bonus": EM()}).learn(320), stock)
    assert not equal(cartpole(EntropyBonusPolicy, A2C, {"bonus": AdaDEM()}).learn(320), stock)


def gradient_of_the_bonus(bonus, observations):
    """(raw logits, gradient of the mean bonus with respect to them), as PPO's loss would see them."""
    policy = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": bonus}).policy
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.tensor([3.0, 1.5]))
    policy.set_training_mode(True)
    seen = []

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    policy.action_net.register_forward_hook(keep)
    _, _, entropy = policy.evaluate_actions(observations, torch.zeros(len(observations)))
    entropy.sum().backward()
    return seen[0].detach(), seen[0].grad, entropy.detach()


def test_bonus_is_the_loss_of_the_raw_logits_and_so_is_its_gradient():
    observations = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    z, grad, value = gradient_of_the_bonus(DEM(tau=0.8, alpha=0.5), observations)
    free = z.clone().requires_grad_()
    expected = -((free / 0.8).softmax(1) * free).sum(1) + 0.5 * free.logsumexp(1)  # equation 11
    expected.sum().backward()
    assert_close(value, expected.detach())
    assert_close(grad, free.grad)
    shifted = dem(z.log_softmax(1), tau=0.8, alpha=0.5)
    assert (value - shifted).abs().min() > 0.5  # what normalised logits would have given

    z, grad, value = gradient_of_the_bonus(AdaDEM(), observations)
    table = update_table(uniform_table(2), z)
    p = z.softmax(1)
    moment = (p * z).sum(1, keepdim=True)
    reward = p * (z - moment + 1)  # equation 12
    delta = reward.abs().sum(1, keepdim=True)
    rows = table[z.argmax(1)]
    assert (delta >= 1).all()
    assert_close(value, (-((p - rows) * z).sum(1, keepdim=True) / delta).squeeze(1))
    assert_close(grad, -(reward - rows) / delta)


def test_ascent_raises_the_entropy_to_its_maximum():
    """The sign: what the algorithms maximise leads to the uniform policy, also from a confident one."""
    for bonus in (EM(), DEM(tau=0.8, alpha=1.0), AdaDEM()):
        z = torch.tensor([[4.0, 0, 0, 0, 0, 0, 0]], requires_grad=True)
        optimizer = torch.optim.Adam([z], lr=0.1)
        before = torch.distributions.Categorical(logits=z.detach()).entropy()
        for _ in range(200):
            optimizer.zero_grad()
            (-bonus(z)).mean().backward()
            optimizer.step()
        after = torch.distributions.Categorical(logits=z.detach()).entropy()
        assert after > before + 1, bonus


def test_save_load_resume_and_deepcopy_keep_the_table(tmp_path):
    agent = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": AdaDEM()}).learn(256)
    table = agent.policy.bonus.table
    assert (table != 0.5).any()
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=make_vec_env("CartPole-v1", 2, seed=5), device="cpu")
    assert torch.equal(loaded.policy.bonus.table, table)
    copied = deepcopy(agent.policy)  # also right after training, when stable-baselines3's own policy cannot be copied
    assert torch.equal(copied.bonus.table, table)
    assert copied.action_dist.bonuses[0] is copied.bonus
    agent.policy.save(tmp_path / "policy.pt")
    assert torch.equal(EntropyBonusPolicy.load(tmp_path / "policy.pt", device="cpu").bonus.table, table)
    kept = table.clone()
    loaded.learn(64, reset_num_timesteps=False)
    assert not torch.equal(loaded.policy.bonus.table, kept)
    assert loaded.num_timesteps == 256 + 64


def test_resumed_training_takes_the_steps_of_the_uninterrupted_one(tmp_path):
    """From one state, saved and loaded, the same minibatches move weights and table to the same bits."""
    agent = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": AdaDEM()}).learn(64)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    observations = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    for one in (agent, loaded):
        one.policy.set_training_mode(True)
        one.policy.optimizer.zero_grad()
        one.policy.evaluate_actions(observations, torch.ones(32))[2].mean().backward()
        one.policy.optimizer.step()
    a, b = agent.policy.state_dict(), loaded.policy.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_agents_do_not_share_a_table():
    bonus = AdaDEM()
    first = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": bonus}).learn(64)
    second = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": bonus})
    assert (first.policy.bonus.table != 0.5).any()
    assert (second.policy.bonus.table == 0.5).all()


def test_acting_does_not_move_the_table():
    agent = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": AdaDEM()})
    agent.policy.set_training_mode(False)
    agent.policy.evaluate_actions(torch.randn(8, 4), torch.zeros(8))
    assert (agent.policy.bonus.table == 0.5).all()


class MaskedNet(torch.nn.Module):
    """Rules out the first action, as sb3-contrib does, or by minus infinity."""

    def __init__(self, net, value):
        super().__init__()
        self.net, self.value = net, value

    def forward(self, x):
        z = self.net(x)
        return torch.cat([torch.full_like(z[:, :1], self.value), z[:, 1:]], 1)


@pytest.mark.parametrize("value", [-1e8, -torch.inf])
@pytest.mark.parametrize("bonus", [AdaDEM(), DEM(tau=0.8, alpha=1.0)], ids=["AdaDEM", "DEM"])
def test_masked_actions_have_no_part(bonus, value):
    space = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(5)
    policy = EntropyBonusPolicy(*space, lambda _: 1e-3, bonus=bonus)
    policy.action_net = MaskedNet(policy.action_net, value)
    policy.set_training_mode(True)
    values, log_prob, entropy = policy.evaluate_actions(torch.randn(32, 4), torch.ones(32))
    (entropy.mean() + log_prob.mean() + values.mean()).backward()
    assert entropy.isfinite().all()
    assert entropy.abs().max() < 10
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


def test_other_actions_are_refused():
    space = gym.spaces.Box(-1, 1, (4,))
    with pytest.raises(ValueError, match=r"needs Discrete or MultiDiscrete actions, got Box"):
        EntropyBonusPolicy(space, space, lambda _: 1e-3, bonus=AdaDEM())


def test_plain_functions():
    space = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(3)
    policy = EntropyBonusPolicy(*space, lambda _: 1e-3, bonus=lambda z: adadem(z))
    assert policy.evaluate_actions(torch.randn(8, 4), torch.ones(8))[2].shape == (8,)


class Ratio(BaseCallback):
    """max |ratio - 1| of the first rollout, by PPO's own way to evaluate it."""

    def _on_step(self):
        return True

    def _on_training_start(self):
        self.error = None

    def _on_rollout_end(self):
        if self.error is None:
            buffer = self.model.rollout_buffer
            flat = buffer.to_torch(buffer.observations.reshape(-1, *buffer.obs_shape))
            actions = buffer.to_torch(buffer.actions.reshape(-1)).long()
            with torch.no_grad():
                log_prob = self.model.policy.evaluate_actions(flat, actions)[1]
            self.error = (log_prob - buffer.to_torch(buffer.log_probs.reshape(-1))).exp().sub(1).abs().max().item()


def test_ratio_is_one_before_the_first_update():
    agent, ratio = stock_agent(EntropyBonusPolicy), Ratio()
    agent.learn(256, callback=ratio)
    assert ratio.error < 1e-5
    assert agent.rollout_buffer.observations.dtype == "float32"


def test_log_names_the_byte_buffer():
    """Without the float32 space, stable-baselines3 from 2.7.1 on stores bytes; the log notices."""
    agent = stock_agent(EntropyBonusPolicy)
    bytes_space = gym.spaces.Box(0, 255, agent.observation_space.shape, "uint8")
    agent.env.observation_space = bytes_space
    broken = PPO(EntropyBonusPolicy, agent.env, **SETTINGS)
    if broken.rollout_buffer.observations.dtype != "uint8":
        pytest.skip("this stable-baselines3 stores float32 in any case")
    with pytest.raises(RuntimeError, match=r"ratio is off 1 by .* \(uint8\) are not those"):
        broken.learn(256, callback=BonusLog())


def test_log_keeps_entropy_bonus_and_delta_apart():
    agent = cartpole(EntropyBonusPolicy, policy_kwargs={"bonus": AdaDEM()})
    with torch.no_grad():
        agent.policy.action_net.bias.copy_(torch.tensor([0.0, 1.0]))
    recorded = {}

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            recorded.update(self.logger.name_to_value)
            observations = torch.tensor(self.model.rollout_buffer.observations.reshape(-1, 4))
            recorded["logits"] = self.model.policy.get_distribution(observations).logits.detach()

    agent.learn(64, callback=[BonusLog(), Look()])
    z = recorded["logits"]
    p = z.softmax(1)
    reward = p * (z - (p * z).sum(1, keepdim=True) + 1)
    assert recorded["bonus/entropy"] == pytest.approx(torch.distributions.Categorical(logits=z).entropy().mean().item())
    assert recorded["bonus/delta"] == pytest.approx(reward.abs().sum(1).mean().item())
    assert recorded["bonus/value"] == pytest.approx(adadem(z, uniform_table(2)).mean().item(), abs=1e-6)
    assert recorded["bonus/weight"] == 0.01
    assert recorded["bonus/delta"] >= 1


def test_linear_weight_reaches_its_end_at_the_last_update():
    agent, seen = cartpole(EntropyBonusPolicy), []

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            seen.append(self.model.ent_coef)

    agent.learn(256, callback=[BonusWeight(0.1, 0.02), Look()])
    assert seen == pytest.approx([0.08, 0.06, 0.04, 0.02])
