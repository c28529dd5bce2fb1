"""The entropy bonus of PPO and A2C as any loss of ``core``: a policy for stable-baselines3, whose algorithms stay as
they are.

    PPO(EntropyBonusPolicy, env, policy_kwargs=dict(bonus=AdaDEM()), ent_coef=0.01)

stable-baselines3 maximises ``ent_coef`` times the mean of what ``evaluate_actions`` returns as the entropy. A loss that
is minimised elsewhere is maximised here: it stands in the place of the entropy, with the entropy's sign.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from dembench.core import EM

Bonus = Callable[[Tensor], Tensor]  # logits (N, C) to a bonus per sample (N,)
_MASKED = -1e7  # a finite logit below this is a mask (sb3-contrib writes -1e8)


def is_entropy(bonus: Bonus | None) -> bool:
    """Whether the bonus is the entropy itself, which stable-baselines3 computes: None, or ``core.EM``."""
    return bonus is None or type(bonus) is EM


def policy_with(bonus: Bonus | None) -> partial[EntropyBonusPolicy]:
    """``EntropyBonusPolicy`` with its bonus, where a policy class is called rather than named."""
    return partial(EntropyBonusPolicy, bonus=bonus)


class BonusDistribution(CategoricalDistribution):
    """A categorical distribution whose ``entropy()`` is a bonus of the raw logits.

    torch's Categorical keeps normalised logits, of which a loss that depends on a constant added to all of them (DEM
    with alpha other than 1) would lose a part. Sampling and log-probabilities are untouched; where the bonus is None,
    so is the entropy.
    """

    def __init__(self, action_dim: int, bonus: Bonus | None):
        super().__init__(action_dim)
        self.bonus = bonus

    def proba_distribution(self, action_logits: Tensor) -> BonusDistribution:
        self._logits = action_logits
        return super().proba_distribution(action_logits)

    def entropy(self) -> Tensor:
        return super().entropy() if self.bonus is None else self.bonus(self._logits.float())

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the latest batch, whose graph can be neither copied nor saved."""
        return {"action_dim": self.action_dim, "bonus": self.bonus}


class Masked(nn.Module):
    """A loss that takes a logit of -1e8 for what it means, an action that is ruled out, as it takes minus infinity."""

    def __init__(self, loss: Bonus):
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor) -> Tensor:
        return self.loss(logits.masked_fill(logits < _MASKED, -torch.inf))


class EntropyBonusPolicy(ActorCriticPolicy):
    """Actor and critic for discrete actions, whose entropy bonus is any loss on raw logits.

    Args:
        observation_space, action_space, lr_schedule: as stable-baselines3 gives them.
        bonus: (N, C) float32 logits to a bonus per sample (N,), such as ``core.AdaDEM()``. The policy has its own
            copy, whose state is part of the policy's state dict. None or ``core.EM()`` is the entropy of
            stable-baselines3, to the last bit.
        kwargs: of ``ActorCriticPolicy``.
    Raises: ValueError for actions that are not ``Discrete``.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Callable[[float], float],
        *args: Any,
        bonus: Bonus | None = None,
        **kwargs: Any,
    ):
        check_discrete(action_space)
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)
        self.bonus = own_copy(bonus, int(action_space.n))
        self.action_dist = BonusDistribution(int(action_space.n), None if is_entropy(bonus) else Masked(self.bonus))

    def action_logits(self, obs: PyTorchObs) -> Tensor:
        """Raw logits (N, C) of the actions."""
        features = self.extract_features(obs)
        if not self.share_features_extractor:
            features = features[0]
        return self.action_net(self.mlp_extractor.forward_actor(features))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "bonus": self.bonus}


def check_discrete(action_space: spaces.Space) -> None:
    """Raises ValueError for actions other than ``Discrete``, the only ones with one softmax per state."""
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"the entropy bonus needs a Discrete action space, got {action_space}")


def own_copy(bonus: Bonus | None, actions: int) -> Bonus | None:
    """A copy that shares no state with its original, and whose state, such as AdaDEM's table, has its size already."""
    bonus = deepcopy(bonus)
    if isinstance(bonus, nn.Module):
        training = bonus.training
        bonus.eval()(torch.zeros(1, actions))
        bonus.train(training)
    return bonus
