"""Callbacks for stable-baselines3 that any agent with ``attach_bonus`` can use."""

from __future__ import annotations

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from dembench.tasks.minigrid.attach import see_rollout

MOST_RATIO_ERROR = 1e-3  # rounding gives 1e-6


class BonusLog(BaseCallback):
    """Logs over each rollout what stable-baselines3's ``train/entropy_loss`` mixes up or leaves out.

    ``bonus/entropy`` is the true entropy of the policy in nats, ``bonus/value`` the mean bonus, both summed over the
    factors of MultiDiscrete actions; ``bonus/delta`` the mean L1 norm of CADF's gradient (1 or more), ``bonus/weight``
    the weight of the bonus. All belong to the policy that collected the rollout. After the first rollout it checks
    that the stored observations are those that the policy has acted on, for which the ratio of PPO is 1.

    Raises: RuntimeError where it is not.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model, seen = self.model, see_rollout(self.model)
        if model._n_updates == 0:
            error = (seen.log_prob - seen.acted).exp().sub(1).abs().max().item()
            if not error < MOST_RATIO_ERROR:
                stored = model.rollout_buffer.observations
                raise RuntimeError(
                    f"before any update PPO's ratio is off 1 by {error:.1e}: the stored observations "
                    f"({getattr(stored, 'dtype', 'of several kinds')}) are not those that the policy has acted on; "
                    "see tasks.minigrid.envs.float32_space"
                )
        entropies, deltas = zip(*map(entropy_and_delta, seen.factors), strict=True)
        self.logger.record("bonus/entropy", sum(entropies).mean().item())
        self.logger.record("bonus/value", seen.bonus.mean().item())
        self.logger.record("bonus/delta", torch.stack(deltas).mean().item())
        self.logger.record("bonus/weight", float(model.ent_coef))


def entropy_and_delta(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats and L1 norm of CADF's gradient, (N,) each, of logits (N, C)."""
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    entropy = torch.special.entr(p).sum(1)
    reward = p * (log_p.masked_fill(p == 0, 0) + entropy.unsqueeze(1) + 1)
    return entropy, reward.abs().sum(1)


class BonusWeight(BaseCallback):
    """Moves ``ent_coef`` along a line, from ``start`` before the first step to ``end`` at the last update."""

    def __init__(self, start: float, end: float):
        super().__init__()
        self.start, self.end = start, end

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        done = min(1.0, self.num_timesteps / self.model._total_timesteps)
        self.model.ent_coef = self.start + (self.end - self.start) * done
