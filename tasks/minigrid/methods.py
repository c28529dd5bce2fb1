"""PPO and A2C of stable-baselines3, untouched, on environments and with a policy that the task gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from stable_baselines3 import A2C as StockA2C
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from dembench.tasks.minigrid.callbacks import BonusLog, BonusWeight
from dembench.tasks.minigrid.policy import Bonus

MakeEnvs = Callable[[int, float], VecNormalize]  # copies of the environment and the discount, to environments


class OnPolicy:
    """An algorithm that collects a rollout with its policy, and learns from it.

    Args:
        algorithm: the constructor of stable-baselines3, given policy class and environments.
        loss: the entropy bonus; None leaves it out, which is to give it the weight 0.
        make_envs, n_envs, gamma: ``make_envs(n_envs, gamma)`` gives the environments.
        policy_class, policy_kwargs: what the algorithm gets, beside the bonus.
        ent_coef, ent_coef_final: weight of the bonus, constant, or on a line from one to the other.
        seed: of the weights and actions; environment i has seed + i.
        device: where the policy lives.
        options: the algorithm's own settings.
    Raises: ValueError for weights below 0.
    """

    def __init__(
        self,
        algorithm: type[OnPolicyAlgorithm],
        loss: Bonus | None,
        make_envs: MakeEnvs,
        policy_class: type,
        policy_kwargs: dict[str, Any],
        *,
        n_envs: int,
        gamma: float,
        ent_coef: float,
        ent_coef_final: float | None,
        seed: int,
        device: str,
        **options: Any,
    ):
        if ent_coef < 0 or (ent_coef_final is not None and ent_coef_final < 0):
            raise ValueError(f"expected weights of the bonus >= 0, got {ent_coef} and {ent_coef_final}")
        if loss is None:
            ent_coef, ent_coef_final = 0.0, None
        self.model = algorithm(
            policy_class,
            make_envs(n_envs, gamma),
            policy_kwargs={**policy_kwargs, "bonus": loss},
            gamma=gamma,
            ent_coef=ent_coef,
            seed=seed,
            device=device,
            **options,
        )
        moving = ent_coef_final is not None and ent_coef_final != ent_coef
        self.callbacks = [BonusWeight(ent_coef, ent_coef_final)] if moving else []
        self.callbacks.append(BonusLog())
        self.forward_passes = self.backward_passes = self.updated = 0

    def learn(self, steps: int) -> Iterator[dict[str, float]]:
        """``OnPolicyAlgorithm.learn``, which pauses after each update to give what has been logged."""
        model, buffer = self.model, self.model.rollout_buffer
        total, callback = model._setup_learn(steps, self.callbacks)
        callback.on_training_start(locals(), globals())
        while model.num_timesteps < total:
            model.collect_rollouts(model.env, callback, buffer, n_rollout_steps=model.n_steps)
            model._update_current_progress_remaining(model.num_timesteps, total)
            model.train()
            self._count(buffer.buffer_size * buffer.n_envs)
            yield dict(model.logger.name_to_value)
        callback.on_training_end()

    def _count(self, samples: int) -> None:
        epochs, batch = getattr(self.model, "n_epochs", 1), getattr(self.model, "batch_size", samples)
        batches = epochs * -(-samples // batch)
        self.updated += epochs * samples
        self.backward_passes += batches
        self.forward_passes += batches + self.model.n_steps

    @property
    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.policy.parameters())


class PPO(OnPolicy):
    """Proximal policy optimisation with clipped ratios (Schulman et al. 2017); settings by their names there."""

    def __init__(
        self,
        loss: Bonus | None,
        make_envs: MakeEnvs,
        policy_class: type,
        policy_kwargs: dict[str, Any],
        rollout: int,
        *,
        seed: int = 0,
        device: str = "cpu",
        n_envs: int = 8,
        n_steps: int | None = None,
        batch_size: int = 64,
        n_epochs: int = 10,
        learning_rate: float = 2.5e-4,
        clip_range: float = 0.2,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        normalize_advantage: bool = True,
        ent_coef: float = 0.001,
        ent_coef_final: float | None = None,
    ):
        super().__init__(
            StockPPO,
            loss,
            make_envs,
            policy_class,
            policy_kwargs,
            n_envs=n_envs,
            gamma=gamma,
            ent_coef=ent_coef,
            ent_coef_final=ent_coef_final,
            seed=seed,
            device=device,
            n_steps=rollout if n_steps is None else n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            learning_rate=learning_rate,
            clip_range=clip_range,
            gae_lambda=gae_lambda,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            normalize_advantage=normalize_advantage,
        )


class A2C(OnPolicy):
    """Advantage actor critic (Mnih et al. 2016), with stable-baselines3's settings; one update per rollout."""

    def __init__(
        self,
        loss: Bonus | None,
        make_envs: MakeEnvs,
        policy_class: type,
        policy_kwargs: dict[str, Any],
        rollout: int,
        *,
        seed: int = 0,
        device: str = "cpu",
        n_envs: int = 8,
        n_steps: int | None = 5,
        learning_rate: float = 7e-4,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        normalize_advantage: bool = False,
        ent_coef: float = 0.001,
        ent_coef_final: float | None = None,
    ):
        super().__init__(
            StockA2C,
            loss,
            make_envs,
            policy_class,
            policy_kwargs,
            n_envs=n_envs,
            gamma=gamma,
            ent_coef=ent_coef,
            ent_coef_final=ent_coef_final,
            seed=seed,
            device=device,
            n_steps=rollout if n_steps is None else n_steps,
            learning_rate=learning_rate,
            gae_lambda=gae_lambda,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            normalize_advantage=normalize_advantage,
        )
