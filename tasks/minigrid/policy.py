"""The entropy bonus of on-policy algorithms as any loss of ``core``, in policies of stable-baselines3 and sb3-contrib.

These algorithms maximise ``ent_coef`` times the mean of what ``evaluate_actions`` returns as the entropy. A loss that
is minimised elsewhere is maximised here: it takes the place of the entropy, with the entropy's sign. Nothing but the
policy's action distribution changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor, nn

from dembench.core import EM

Bonus = Callable[[Tensor], Tensor]  # logits (N, C) to a bonus per sample (N,)
Update = Literal["minibatch", "rollout"]  # when the state of a bonus, such as AdaDEM's table, moves
_MASKED = -1e7  # a finite logit below this is a mask (sb3-contrib writes -1e8)


def is_entropy(bonus: Bonus | None) -> bool:
    """Whether the bonus is the entropy itself, which the library computes: None, or ``core.EM``."""
    return bonus is None or type(bonus) is EM


class BonusDistribution:
    """What a distribution over discrete actions gains: its ``entropy()`` is a bonus of the raw logits.

    torch's Categorical keeps normalised logits, of which a loss that depends on a constant added to all of them (DEM
    with alpha other than 1) would lose a part. Actions that are ruled out have a logit of minus infinity here.
    Sampling and log-probabilities are untouched; so is the entropy where ``bonuses`` is None.

    Attributes:
        bonuses: one per factor of the action space.
        sizes: actions of each factor.
        rows: (N,) bool, False where a batch is padded (recurrent policies); None counts all.
        once: the state of the bonuses moves by ``move``, not with each minibatch.
        unwatched: nobody sets ``rows``, or calls ``move``, as this distribution needs it.
    """

    bonuses: Sequence[Bonus] | None
    sizes: list[int]
    logits: Tensor
    masks: Tensor | np.ndarray | None = None
    rows: Tensor | None = None
    once = False
    unwatched = False

    def proba_distribution(self, action_logits: Tensor) -> BonusDistribution:
        self.logits, self.masks = action_logits, None
        return super().proba_distribution(action_logits)

    def apply_masking(self, masks: Tensor | np.ndarray | None) -> None:
        """Of sb3-contrib's maskable distributions; True is an action that is allowed."""
        self.masks = masks
        super().apply_masking(masks)

    def factors(self) -> tuple[Tensor, ...]:
        """Raw logits (N, C) of each factor in float32, minus infinity where an action is ruled out."""
        z = self.logits.float()
        z = z.masked_fill(z < _MASKED, -torch.inf)
        if self.masks is not None:
            allowed = torch.as_tensor(self.masks, dtype=torch.bool, device=z.device).reshape(z.shape)
            z = z.masked_fill(~allowed, -torch.inf)
        return z.split(self.sizes, 1)

    def entropy(self) -> Tensor:
        """The bonus (N,), summed over factors as entropies are; 0 where ``rows`` is False."""
        if self.bonuses is None:
            return super().entropy()
        if self.unwatched and torch.is_grad_enabled():
            raise RuntimeError("this agent was loaded from a file; before it learns on, call attach_bonus(agent)")
        if self.once:
            _set_training(self.bonuses, False)
        return sum(self._bonus(bonus, z) for bonus, z in zip(self.bonuses, self.factors(), strict=True))

    def _bonus(self, bonus: Bonus, z: Tensor) -> Tensor:
        if self.rows is None:
            return bonus(z)
        value = z.new_zeros(len(z))
        value[self.rows] = bonus(z[self.rows])
        return value

    def move(self, factors: Sequence[Tensor]) -> None:
        """Moves the state of the bonuses by one batch of logits (N, C) per factor."""
        _set_training(self.bonuses or (), True)
        for bonus, z in zip(self.bonuses or (), factors, strict=True):
            bonus(z)
        _set_training(self.bonuses or (), False)

    def __copy__(self) -> BonusDistribution:
        """With all that it holds: trust-region methods compare a distribution with its shallow copy."""
        return _with_bonus(self)

    def __getstate__(self) -> dict[str, Any]:
        """For deep copies and files: without the latest batch, whose graph can be neither copied nor saved."""
        batch = ("logits", "masks", "rows", "distribution", "distributions")
        return {name: value for name, value in self.__dict__.items() if name not in batch}


def _set_training(bonuses: Sequence[Bonus], mode: bool) -> None:
    for bonus in bonuses:
        if isinstance(bonus, nn.Module):
            bonus.train(mode)


@cache
def _kind_with_bonus(kind: type) -> type:
    return kind if issubclass(kind, BonusDistribution) else type(f"Bonus{kind.__name__}", (BonusDistribution, kind), {})


def _with_bonus(distribution: Any) -> Any:
    """A distribution of the same kind and content that is a ``BonusDistribution``."""
    made = object.__new__(_kind_with_bonus(type(distribution)))
    made.__dict__.update(distribution.__dict__)
    return made


def give_bonus(policy: BasePolicy, bonus: Bonus | None, update: Update = "minibatch") -> None:
    """Replaces the bonus of a policy, in place; the policy's own copies of it are in its state dict, as ``bonus``.

    Args:
        policy: of stable-baselines3 or sb3-contrib, for discrete actions. Of MultiDiscrete actions each factor has a
            copy of its own.
        bonus: (N, C) float32 logits to a bonus (N,), such as ``core.AdaDEM()``. None or ``core.EM()`` is the
            library's entropy, to the last bit.
        update: "rollout" keeps the state of a bonus while a rollout is learned from; see ``attach_bonus``.
    Raises: ValueError for other actions, or another ``update``.
    """
    sizes = action_sizes(policy.action_space)
    if update not in ("minibatch", "rollout"):
        raise ValueError(f"expected update 'minibatch' or 'rollout', got {update!r}")
    copies = [own_copy(bonus, size) for size in sizes]
    if isinstance(bonus, nn.Module):
        copies = nn.ModuleList(copies).to(policy.device)
    policy.bonus = copies[0] if isinstance(policy.action_space, spaces.Discrete) else copies
    policy.action_dist = found = _with_bonus(policy.action_dist)
    found.bonuses, found.sizes, found.once = None if is_entropy(bonus) else list(copies), sizes, update == "rollout"
    found.unwatched = found.once or hasattr(policy, "lstm_actor")


def bonus_policy(kind: type[BasePolicy], *args: Any, bonus: Bonus, update: Update = "minibatch", **kwargs: Any) -> Any:
    """A policy of class ``kind`` with a bonus, for algorithms that call a policy class with keywords."""
    policy = kind(*args, **kwargs)
    give_bonus(policy, bonus, update)
    return policy


class EntropyBonusPolicy(ActorCriticPolicy):
    """stable-baselines3's actor and critic with a bonus from the start, where a class is asked for.

        PPO(EntropyBonusPolicy, env, policy_kwargs={"bonus": AdaDEM()}, ent_coef=0.01)

    Args:
        bonus: as ``give_bonus`` takes it.
        args, kwargs: of ``ActorCriticPolicy``.
    Raises: ValueError for actions that are neither Discrete nor MultiDiscrete.
    """

    def __init__(self, *args: Any, bonus: Bonus | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._given = (deepcopy(bonus),)  # in a tuple, so that it is no part of the state dict
        give_bonus(self, bonus)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "bonus": self._given[0]}


def action_sizes(space: spaces.Space) -> list[int]:
    """Number of actions of each factor.

    Raises: ValueError for actions other than Discrete and MultiDiscrete, the ones with a softmax per factor.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec]
    raise ValueError(f"the entropy bonus needs Discrete or MultiDiscrete actions, got {space}")


def own_copy(bonus: Bonus | None, actions: int) -> Bonus | None:
    """A copy that shares no state with its original, and whose state, such as AdaDEM's table, has its size already."""
    bonus = deepcopy(bonus)
    if isinstance(bonus, nn.Module):
        training = bonus.training
        bonus.eval()(torch.zeros(1, actions))
        bonus.train(training)
    return bonus
