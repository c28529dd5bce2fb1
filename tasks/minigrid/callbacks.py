"""Callbacks for stable-baselines3 that any run with ``EntropyBonusPolicy`` can use."""

from __future__ import annotations

import torch
from stable_baselines3.common.callbacks import BaseCallback

from dembench.tasks.minigrid.policy import Masked

MOST_RATIO_ERROR = 1e-3  # rounding gives 1e-6


class BonusLog(BaseCallback):
    """Logs over each rollout what stable-baselines3's ``train/entropy_loss`` mixes up or leaves out.

    ``bonus/entropy`` is the true entropy of the policy in nats, ``bonus/value`` the mean bonus, ``bonus/delta`` the
    mean L1 norm of CADF's gradient (1 or more), ``bonus/weight`` the weight of the bonus. All belong to the policy
    that collected the rollout. After the first rollout it checks that the stored observations are those that the
    policy has acted on, for which the ratio of PPO is 1.

    Raises: RuntimeError where it is not.
    """

    def _on_step(self) -> bool:
        return True

    @torch.no_grad()
    def _on_rollout_end(self) -> None:
        model, policy, buffer = self.model, self.model.policy, self.model.rollout_buffer
        logits = policy.action_logits(buffer.to_torch(buffer.observations.reshape(-1, *buffer.obs_shape))).float()
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        entropy = torch.special.entr(p).sum(1)
        if model._n_updates == 0:
            actions = buffer.to_torch(buffer.actions.reshape(-1, 1)).long()
            acted = buffer.to_torch(buffer.log_probs.reshape(-1))
            error = (log_p.gather(1, actions).squeeze(1) - acted).exp().sub(1).abs().max().item()
            if not error < MOST_RATIO_ERROR:
                raise RuntimeError(
                    f"before any update PPO's ratio is off 1 by {error:.1e}: the stored observations "
                    f"({buffer.observations.dtype}) are not those that the policy has acted on; "
                    "see tasks.minigrid.envs.float32_space"
                )
        reward = p * (log_p.masked_fill(p == 0, 0) + entropy.unsqueeze(1) + 1)
        value = entropy if policy.bonus is None else Masked(policy.bonus)(logits)
        for name, values in (("entropy", entropy), ("value", value), ("delta", reward.abs().sum(1))):
            self.logger.record(f"bonus/{name}", values.mean().item())
        self.logger.record("bonus/weight", float(model.ent_coef))


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
