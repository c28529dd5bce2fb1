"""A loss as the entropy bonus of any on-policy agent, and what the agent's rollout says about it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from dembench.tasks.minigrid.policy import Bonus, EntropyBonusPolicy, Update, bonus_policy, give_bonus

MOST_ROWS = 4096  # of a rollout at once
_INPUTS = ("lstm_states", "episode_starts", "action_masks")  # of evaluate_actions, where a rollout has them


def attach_bonus(model: Any, bonus: Bonus | None = None, *, update: Update = "minibatch") -> None:
    """Puts a loss in the place of the entropy bonus of an agent, in place.

        agent = RecurrentPPO("MlpLstmPolicy", env, ent_coef=0.01)
        attach_bonus(agent, AdaDEM())
        agent.learn(100_000, callback=BonusLog())

    The loss belongs to the policy: ``agent.save`` keeps its state, and ``load`` of the agent's class brings it back.
    A policy that is saved without its agent cannot be loaded by its own class; take ``EntropyBonusPolicy`` for that.

    How often AdaDEM's table moves: PPO passes each minibatch through the loss, in every epoch. With 1,024 samples,
    minibatches of 64 and 10 epochs these are 160 moves per rollout, each with momentum 0.1, so that after a rollout
    the table holds the policy's last 20 minibatches or so, and every sample has entered it 10 times. A2C has one move
    per rollout. With ``update="rollout"`` the table moves once, by all samples of a rollout together, before the
    first of its epochs, and not again until the next one.

    Args:
        model: PPO or A2C of stable-baselines3, RecurrentPPO or MaskablePPO of sb3-contrib, or a subclass of them,
            with Discrete or MultiDiscrete actions and any observations. The weight is its own ``ent_coef`` (PPO's
            default is 0, which leaves every bonus out).
        bonus: (N, C) raw logits to a bonus (N,), maximised; of MultiDiscrete actions each factor has a copy of its
            own, and their bonuses add up. Padding of recurrent batches and actions that are masked have no part in
            it. None goes on with the bonus that the agent was loaded with: needed before a loaded RecurrentPPO, or an
            agent with ``update="rollout"``, learns on.
        update: when the loss's state moves.
    Raises: ValueError for algorithms without an entropy term, other actions, or None where there is no bonus.
    """
    _check_algorithm(model)
    policy = model.policy
    if bonus is not None:
        give_bonus(policy, bonus, update)
        kind = model.policy_class
        if not isinstance(kind, partial) and not issubclass(kind, EntropyBonusPolicy):
            model.policy_class = partial(bonus_policy, kind)
            model.policy_class.__name__ = kind.__name__  # which stable-baselines3 asks for
        kwargs = {**model.policy_kwargs, "bonus": bonus}
        model.policy_kwargs = kwargs if update == "minibatch" else {**kwargs, "update": update}
    elif not hasattr(policy, "bonus"):
        raise ValueError(f"this {type(model).__name__} has no bonus yet; give one, such as AdaDEM()")
    if policy.action_dist.unwatched:
        _watch(model)


def _check_algorithm(model: Any) -> None:
    name = type(model).__name__
    if any(kind.__name__ == "TRPO" for kind in type(model).__mro__):
        raise ValueError(f"{name} has no entropy term, so there is no bonus to replace")
    if not isinstance(model, OnPolicyAlgorithm):
        known = "PPO, A2C, RecurrentPPO and MaskablePPO"
        raise ValueError(f"expected an on-policy algorithm with an entropy bonus ({known}), got {name}")


def _watch(model: OnPolicyAlgorithm) -> None:
    """Lets the distribution know of each minibatch which of its rows are padding, and of each new rollout."""
    buffer, found = model.rollout_buffer, model.policy.action_dist
    stock = type(buffer).get

    def get(batch_size: int | None = None) -> Iterator[Any]:
        if found.once and not buffer.generator_ready:  # the first epoch of this rollout
            found.move(see_rollout(model).factors)
        try:
            for data in stock(buffer, batch_size):
                found.rows = _rows(data)
                yield data
        finally:
            found.rows = None

    buffer.get, found.unwatched = get, False


def _rows(data: Any) -> Tensor | None:
    return data.mask > 1e-8 if hasattr(data, "mask") else None


class Seen(NamedTuple):
    """A whole rollout as the policy sees it now, in no particular order and without padding."""

    factors: list[Tensor]  # raw logits (N, C) of each factor of the actions
    log_prob: Tensor  # (N,) of the actions taken
    acted: Tensor  # (N,) the same when they were taken
    bonus: Tensor  # (N,)


@torch.no_grad()
def see_rollout(model: OnPolicyAlgorithm) -> Seen:
    """Passes the rollout in the model's buffer through its policy, in evaluation mode; changes neither."""
    policy, training = model.policy, model.policy.training
    policy.set_training_mode(False)
    parts = []
    for data in _batches(model.rollout_buffer):
        rows = _rows(data)
        policy.action_dist.rows = rows
        actions = data.actions
        if isinstance(model.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        more = {name: getattr(data, name) for name in _INPUTS if hasattr(data, name)}
        _, log_prob, bonus = policy.evaluate_actions(data.observations, actions, **more)
        found = (*policy.action_dist.factors(), log_prob, data.old_log_prob, bonus)
        parts.append(found if rows is None else [part[rows] for part in found])
    policy.action_dist.rows = None
    policy.set_training_mode(training)
    *factors, log_prob, acted, bonus = (torch.cat(part) for part in zip(*parts, strict=True))
    return Seen(factors, log_prob, acted, bonus)


def _batches(buffer: RolloutBuffer) -> list[Any]:
    """All samples of a buffer, which stays as it is, as NumPy's global generator does."""
    copied = copy(buffer)
    if isinstance(copied.observations, dict):
        copied.observations = dict(copied.observations)  # it is flattened in place
    state = np.random.get_state()
    np.random.seed(0)
    try:
        return list(type(buffer).get(copied, MOST_ROWS))
    finally:
        np.random.set_state(state)
