"""``attach_bonus`` on every algorithm, against what stable-baselines3 and sb3-contrib do by themselves."""

from __future__ import annotations

import copy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("stable_baselines3", reason='needs pip install "dembench[minigrid]"')
pytest.importorskip("sb3_contrib", reason='needs pip install "dembench[minigrid]"')

from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from dembench.core import EM, AdaDEM, family
from dembench.tasks.minigrid import BonusLog, attach_bonus
from dembench.tasks.minigrid.attach import see_rollout

ONE, TWO = gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([3, 2])
ALGORITHMS = {"PPO": PPO, "A2C": A2C, "RecurrentPPO": RecurrentPPO, "MaskablePPO": MaskablePPO}


class Walk(gym.Env):
    """A drifting point; episodes of 3 to 7 steps; the first action of each factor is out at odd steps."""

    def __init__(self, actions, dictionary):
        self.action_space, self.dictionary = actions, dictionary
        box = gym.spaces.Box(-9, 9, (4,))
        self.observation_space = gym.spaces.Dict(place=box, near=gym.spaces.Box(-9, 9, (2,))) if dictionary else box

    def _seen(self):
        return {"place": self.place, "near": self.place[:2]} if self.dictionary else self.place

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.left = self.np_random.normal(size=4).astype(np.float32), int(self.np_random.integers(3, 8))
        return self._seen(), {}

    def step(self, action):
        self.left -= 1
        chosen = np.atleast_1d(action)
        self.place = (0.9 * self.place + 0.1 * (chosen.sum() - 1)).astype(np.float32)
        return self._seen(), float(self.place[0] * (chosen[0] - 1)), self.left == 0, False, {}

    def action_masks(self):
        sizes = [3] if self.action_space is ONE else [3, 2]
        return np.concatenate([[self.left % 2 == 0] + [True] * (size - 1) for size in sizes])


def agent(name, actions=ONE, dictionary=False, **settings):
    lstm = "Lstm" if name == "RecurrentPPO" else ""
    chosen = {"n_steps": 16, "seed": 3, "ent_coef": 0.05, "device": "cpu", **settings}
    if name != "A2C":
        chosen = {"batch_size": 16, "n_epochs": 2, **chosen}
    if lstm:
        chosen["policy_kwargs"] = {"lstm_hidden_size": 8}
    env = DummyVecEnv([partial(Walk, actions, dictionary)] * 3)
    return ALGORITHMS[name](f"{'MultiInput' if dictionary else 'Mlp'}{lstm}Policy", env, **chosen)


def attached(bonus, *args, update="minibatch", **settings):
    made = agent(*args, **settings)
    attach_bonus(made, bonus, update=update)
    return made


def networks(model):
    return {name: value for name, value in model.policy.state_dict().items() if not name.startswith("bonus")}


def equal(first, second):
    a, b = networks(first), networks(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dictionary", [False, True], ids=["box", "dict"])
@pytest.mark.parametrize("actions", [ONE, TWO], ids=["discrete", "multidiscrete"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_em_is_the_librarys_own_bonus_bit_for_bit(name, actions, dictionary):
    """Also with ``BonusLog``, which reads every rollout and must leave no trace."""
    stock = agent(name, actions, dictionary).learn(96)
    assert equal(attached(EM(), name, actions, dictionary).learn(96, callback=BonusLog()), stock)
    other = attached(AdaDEM(), name, actions, dictionary).learn(96, callback=BonusLog())
    assert not equal(other, stock)
    assert all(value.isfinite().all() for value in networks(other).values())


def textbook_entropy(z):
    p = z.softmax(1)
    return -(p * p.clamp(min=1e-30).log()).sum(1)


@pytest.mark.parametrize("actions", [ONE, TWO], ids=["discrete", "multidiscrete"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_bonus_sees_logits_masks_and_padding_as_the_librarys_entropy_does(name, actions):
    """The entropy, written out on what a bonus is given, is what the library computes by itself, in value and step."""
    a = networks(agent(name, actions).learn(96))
    b = networks(attached(textbook_entropy, name, actions).learn(96))
    for key in a:
        assert_close(a[key], b[key], atol=2e-5, rtol=1e-4)


def surprise(p):
    return -(p * p.clamp(min=1e-30).log()).sum(-1)


FAMILY = {  # of the probabilities (N, C) of a minibatch, masked actions 0, to (N,) or what each of them has
    family.GCE: lambda p: (1 - p.max(1).values ** 0.8) / 0.8,
    family.SLR: lambda p: -(p.clamp(1e-30, 0.99) * torch.logit(p.clamp(1e-30, 0.99))).sum(1),
    family.MarginalEntropy: lambda p: surprise(p.mean(0)).expand(len(p)),
    family.InformationMaximisation: lambda p: surprise(p) - surprise(p.mean(0)),
    family.Tsallis: lambda p: 1 - (p**2).sum(1),
    family.Renyi: lambda p: -(p**2).sum(1).log(),
}


@pytest.mark.parametrize("loss", FAMILY)
def test_the_family_of_losses_as_a_bonus(loss):
    """Against their definitions, on minibatches that are padded, masked, or neither, of an uneven policy."""
    for name in ALGORITHMS if loss is family.InformationMaximisation else ("MaskablePPO", "RecurrentPPO"):
        found = []
        for bonus in (loss(), lambda z: FAMILY[loss](z.softmax(1)), EM()):
            model = attached(bonus, name, ent_coef=1.0, learning_rate=5e-3)
            torch.nn.init.orthogonal_(model.policy.action_net.weight, 5.0)
            found.append(networks(model.learn(48)))
        for key, value in found[0].items():
            assert_close(value, found[1][key], atol=1e-4, rtol=1e-3)
        assert max(float((value - found[2][key]).abs().max()) for key, value in found[0].items()) > 5e-3


@pytest.mark.parametrize("name", ["RecurrentPPO", "MaskablePPO"])
def test_padding_and_masked_actions_have_no_part(name):
    rows, ruled_out = [], []

    def spy(z):
        rows.append(len(z))
        ruled_out.append(int((z == -torch.inf).sum()))
        return textbook_entropy(z)

    model = attached(spy, name)
    buffer, padded = model.rollout_buffer, []
    watched = buffer.get

    def get(batch_size=None):
        for data in watched(batch_size):
            padded.append(len(data.observations))
            yield data

    buffer.get = get
    model.learn(48)
    assert sum(rows) == 2 * 48  # epochs, samples
    if name == "RecurrentPPO":
        assert sum(padded) > 2 * 48
    else:
        masks = buffer.action_masks
        assert sum(ruled_out) == 2 * int((masks == 0).sum()) > 0


def test_each_factor_of_multidiscrete_actions_has_a_loss_of_its_own():
    model = attached(AdaDEM(), "PPO", TWO)
    policy = model.policy
    assert [tuple(one.table.shape) for one in policy.bonus] == [(3, 3), (2, 2)]
    with torch.no_grad():
        policy.action_net.bias.copy_(torch.tensor([0.5, -0.2, 0.1, 0.7, 0.0]))
    policy.set_training_mode(True)
    observations = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    value = policy.evaluate_actions(observations, torch.zeros(12, 2))[2].detach().numpy()
    logits = policy.action_net(policy.mlp_extractor.forward_actor(observations)).detach().double().numpy()
    expected = 0
    for one, z in zip(policy.bonus, np.split(logits, [3], axis=1), strict=True):
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        table, label = np.full((z.shape[1],) * 2, 1 / z.shape[1]), z.argmax(1)
        for k in set(label):
            table[k] = 0.9 * table[k] + 0.1 * p[label == k].mean(0)
        delta = np.abs(p * (z - (p * z).sum(1, keepdims=True) + 1)).sum(1)
        expected = expected - ((p - table[label]) * z).sum(1) / delta
        assert np.allclose(one.table.numpy(), table, atol=1e-6)
    assert np.allclose(value, expected, atol=1e-5)


def test_shallow_copies_of_the_distribution_keep_bonus_and_batch():
    """As trust-region methods take them, to compare the policy with itself before a step."""
    for name in ("PPO", "MaskablePPO"):
        policy = attached(textbook_entropy, name).policy
        observations = torch.randn(6, 4)
        before = copy.copy(policy.get_distribution(observations))
        entropy, log_prob = before.entropy(), before.log_prob(torch.ones(6))
        policy.get_distribution(torch.randn(5, 4) + 3)
        assert_close(before.entropy(), entropy)
        assert_close(before.log_prob(torch.ones(6)), log_prob)
        assert_close(entropy, before.distribution.entropy())
        assert before.bonuses is policy.action_dist.bonuses


class Moves(torch.nn.Module):
    """A loss whose state counts how often, and with how many samples, it moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("moves", torch.zeros(2))

    def forward(self, z):
        if self.training:
            self.moves += torch.tensor([1.0, len(z)])
        return textbook_entropy(z)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_how_often_a_state_moves(name):
    """As the documentation of ``attach_bonus`` says: each minibatch of each epoch, or once by the whole rollout."""
    rollouts, samples, epochs, batches = 2, 48, *((1, 1) if name == "A2C" else (2, 3))
    each = attached(Moves(), name).learn(96, callback=BonusLog())
    assert each.policy.bonus.moves.tolist() == [rollouts * epochs * batches, rollouts * epochs * samples]
    once = attached(Moves(), name, update="rollout").learn(96, callback=BonusLog())
    assert once.policy.bonus.moves.tolist() == [rollouts, rollouts * samples]


def test_once_per_rollout_is_one_step_of_the_recurrence_over_all_its_samples():
    model = attached(AdaDEM(), "PPO", update="rollout")
    collected = {}

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = self.model.rollout_buffer
            with torch.no_grad():
                found = self.model.policy.get_distribution(torch.tensor(buffer.observations.reshape(-1, 4)))
            collected["p"] = found.distribution.probs.double().numpy()

    model.learn(48, callback=Look())
    p = collected["p"]
    table, label = np.full((3, 3), 1 / 3), p.argmax(1)
    for k in set(label):
        table[k] = 0.9 * table[k] + 0.1 * p[label == k].mean(0)
    assert np.allclose(model.policy.bonus.table.numpy(), table, atol=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("actions", [ONE, TWO], ids=["discrete", "multidiscrete"])
def test_log_of_a_rollout_is_what_the_textbook_gives(name, actions):
    model, recorded = attached(AdaDEM(), name, actions, dictionary=True), {}

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            recorded.update(self.logger.name_to_value)
            recorded["factors"] = see_rollout(self.model).factors

    model.learn(48, callback=[BonusLog(), Look()])
    entropy = delta = 0.0
    for z in recorded["factors"]:
        assert len(z) == 48
        p = z.double().softmax(1).numpy()
        h = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
        entropy += h.mean()
        log_p = np.log(np.where(p > 0, p, 1))
        delta += np.abs(p * (log_p + h[:, None] + 1)).sum(1).mean() / len(recorded["factors"])
    assert recorded["bonus/entropy"] == pytest.approx(entropy, abs=1e-5)
    assert recorded["bonus/delta"] == pytest.approx(delta, abs=1e-5)
    assert recorded["bonus/weight"] == 0.05
    stock = agent(name, actions, dictionary=True).learn(48)  # the same rollout; its entropy, before any update
    if name == "A2C":
        assert recorded["bonus/entropy"] == pytest.approx(-stock.logger.name_to_value["train/entropy_loss"], abs=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_save_and_load_keep_the_table(name, tmp_path):
    model = attached(AdaDEM(), name).learn(48)
    table = model.policy.bonus.table.clone()
    assert (table != 1 / 3).any()
    model.save(tmp_path / "agent.zip")
    loaded = ALGORITHMS[name].load(tmp_path / "agent.zip", env=DummyVecEnv([partial(Walk, ONE, False)] * 3))
    assert torch.equal(loaded.policy.bonus.table, table)
    if name == "RecurrentPPO":  # its batches are padded, which nobody tells the policy of
        with pytest.raises(RuntimeError, match=r"was loaded from a file; .* call attach_bonus\(agent\)"):
            loaded.learn(48)
        loaded = ALGORITHMS[name].load(tmp_path / "agent.zip", env=loaded.env)
        attach_bonus(loaded)
        assert torch.equal(loaded.policy.bonus.table, table)
    loaded.learn(48, reset_num_timesteps=False)
    assert not torch.equal(loaded.policy.bonus.table, table)


def test_a_loaded_agent_with_one_move_per_rollout_asks_for_attach_bonus(tmp_path):
    attached(Moves(), "PPO", update="rollout").learn(48).save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=DummyVecEnv([partial(Walk, ONE, False)] * 3))
    with pytest.raises(RuntimeError, match="call attach_bonus"):
        loaded.learn(48)
    loaded = PPO.load(tmp_path / "agent.zip", env=loaded.env)
    attach_bonus(loaded)
    loaded.learn(48)
    assert loaded.policy.bonus.moves.tolist() == [2, 96]


def test_a_bonus_can_be_replaced():
    model = attached(AdaDEM(), "PPO")
    attach_bonus(model, EM())
    assert equal(model.learn(48), agent("PPO").learn(48))


def test_what_has_no_entropy_bonus_is_refused():
    env = DummyVecEnv([partial(Walk, ONE, False)])
    with pytest.raises(ValueError, match="TRPO has no entropy term, so there is no bonus to replace"):
        attach_bonus(TRPO("MlpPolicy", env), AdaDEM())
    with pytest.raises(ValueError, match=r"expected an on-policy algorithm with an entropy bonus \(PPO, .*, got DQN"):
        attach_bonus(DQN("MlpPolicy", env), AdaDEM())
    with pytest.raises(ValueError, match="needs Discrete or MultiDiscrete actions, got Box"):
        attach_bonus(PPO("MlpPolicy", "Pendulum-v1"), AdaDEM())
    with pytest.raises(ValueError, match="this PPO has no bonus yet; give one, such as AdaDEM"):
        attach_bonus(PPO("MlpPolicy", env))
    with pytest.raises(ValueError, match="expected update 'minibatch' or 'rollout', got 'epoch'"):
        attach_bonus(PPO("MlpPolicy", env), AdaDEM(), update="epoch")
