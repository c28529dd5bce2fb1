"""PPO and A2C of stable-baselines3, untouched, on environments of the task.

Settings have the names that they have there; ``update`` is that of ``attach_bonus``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from stable_baselines3 import A2C as StockA2C
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from dembench.core import EM
from dembench.lookup import lookup
from dembench.tasks.base import Note
from dembench.tasks.common.keep import put
from dembench.tasks.minigrid.attach import attach_bonus
from dembench.tasks.minigrid.callbacks import BonusLog, BonusWeight
from dembench.tasks.minigrid.envs import Worlds
from dembench.tasks.minigrid.fast import FastPolicy
from dembench.tasks.minigrid.policy import Bonus, Update

_COUNTS = ("n_envs", "n_steps", "batch_size", "n_epochs", "lstm_hidden_size")
_POSITIVE = ("learning_rate", "clip_range", "max_grad_norm")
_FRACTIONS = ("gamma", "gae_lambda")
_WEIGHTS = ("ent_coef", "ent_coef_final", "vf_coef")

_OVER_A_BATCH = (
    " looks at a minibatch as a whole: a policy without any chance can have all of this bonus, so it need not explore"
)
OBSERVATIONS, STATISTICS = "observations.", ("mean", "var", "count")


def check_settings(**settings: Any) -> None:
    """Refuses what the algorithms would stop at, or train with to no purpose.

    Raises: ValueError for a setting out of range, or advantages that are normalised over a single sample.
    """
    for name, value in settings.items():
        right = isinstance(value, (int, float)) and math.isfinite(value)
        if name in _COUNTS:
            right, wanted = right and value >= 1 and value == int(value), "a whole number >= 1"
        elif name in _POSITIVE:
            right, wanted = right and value > 0, "a number > 0"
        elif name in _FRACTIONS:
            right, wanted = right and 0 <= value <= 1, "a number from 0 to 1"
        elif name in _WEIGHTS:
            right, wanted = right and value >= 0, "a weight >= 0"
        else:
            continue
        if not right:
            raise ValueError(f"expected {name} to be {wanted}, got {value}")
    samples = settings["n_envs"] * settings["n_steps"]
    batch = settings.get("batch_size", samples)
    if settings["normalize_advantage"] and 1 in (samples, batch, samples % batch):
        raise ValueError(
            f"n_envs * n_steps = {samples} samples in minibatches of {batch}: one sample has no advantage to normalise"
        )


class OnPolicy:
    """An algorithm that collects a rollout with its policy, and learns from it.

    Args:
        loss: the entropy bonus; None leaves it out, which is to give it the weight 0.
        worlds: the environments.
        policy_kwargs: of the policy; ``FastPolicy`` takes none.
        ent_coef, ent_coef_final: weight of the bonus, constant, or on a line from one to the other.
        update: when the state of the loss moves, see ``attach_bonus``.
        seed: of the weights and actions; environment i has seed + i.
        device: where the policy lives.
        options: the algorithm's own settings.
    Attributes:
        algorithm, policy: classes of stable-baselines3 or sb3-contrib.
        fast_policy: replaces the policy where ``worlds`` have ``views``; it also takes their columns.
        masked: whether the policy takes action masks.
        notes: on the bonus.
    Raises: ValueError for settings out of range, or that the policy does not have.
    """

    algorithm: type[OnPolicyAlgorithm]
    policy: type[BasePolicy] = ActorCriticPolicy
    fast_policy: type[BasePolicy] = FastPolicy
    masked = False

    def __init__(
        self,
        loss: Bonus | None,
        worlds: Worlds,
        policy_kwargs: Mapping[str, Any] | None = None,
        *,
        n_envs: int,
        gamma: float,
        ent_coef: float,
        ent_coef_final: float | None,
        update: Update = "minibatch",
        seed: int,
        device: str,
        **options: Any,
    ):
        kwargs, line = dict(policy_kwargs or {}), {} if ent_coef_final is None else {"ent_coef_final": ent_coef_final}
        check_settings(**kwargs, n_envs=n_envs, gamma=gamma, ent_coef=ent_coef, **line, **options)
        if loss is None:
            ent_coef, ent_coef_final = 0.0, None
        if kwargs and worlds.views is not None and self.fast_policy is FastPolicy:
            raise ValueError(f"policy_kwargs needs protocol.fast=false, got {kwargs}")
        for name in kwargs:
            lookup(name, list(inspect.signature(self.policy).parameters), "setting of the policy")
        policy, self.worlds = self.policy, worlds
        if worlds.views is not None:
            policy = self.fast_policy
            kwargs |= {"width": worlds.views.width, "columns": worlds.views.columns.tolist()}
        self.model = self.algorithm(
            policy,
            worlds.training(n_envs, gamma),
            policy_kwargs=kwargs,
            gamma=gamma,
            ent_coef=ent_coef,
            seed=seed,
            device=device,
            **options,
        )
        attach_bonus(self.model, EM() if loss is None else loss, update=update)
        moving = ent_coef_final is not None and ent_coef_final != ent_coef
        self.callbacks = [BonusWeight(ent_coef, ent_coef_final)] if moving else []
        self.callbacks.append(BonusLog())
        self.forward_passes = self.backward_passes = self.updated = 0
        self.notes = [Note("bonus", f"{type(loss).__name__}{_OVER_A_BATCH}")] if getattr(loss, "needs_batch", 0) else []

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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The policy's tensors as "policy.*", and float64 statistics of observations as "observations.*", by name."""
        statistics = self.model.get_vec_normalize_env().obs_rms
        own = {f"policy.{name}": tensor for name, tensor in self.model.policy.state_dict().items()}
        return own | {f"{OBSERVATIONS}{name}": torch.as_tensor(getattr(statistics, name)) for name in STATISTICS}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over what ``tensors`` gave; ValueError where it does not fit."""
        statistics = self.model.get_vec_normalize_env().obs_rms
        own = {name: tensors.get(f"{OBSERVATIONS}{name}") for name in STATISTICS}
        if own["mean"] is None or tuple(own["mean"].shape) != statistics.mean.shape:
            raise ValueError("the weights that were kept are of an agent with other observations")
        put(self.model.policy, {k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")})
        for name, value in own.items():
            setattr(statistics, name, value.numpy() if value.ndim else float(value))

    @property
    def finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.policy.parameters())


class PPO(OnPolicy):
    """Proximal policy optimisation with clipped ratios (Schulman et al. 2017); by default with the zoo's settings."""

    algorithm = StockPPO

    def __init__(
        self,
        loss: Bonus | None,
        worlds: Worlds,
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
        update: Update = "minibatch",
        policy_kwargs: Mapping[str, Any] | None = None,
    ):
        super().__init__(
            loss,
            worlds,
            policy_kwargs,
            n_envs=n_envs,
            gamma=gamma,
            ent_coef=ent_coef,
            ent_coef_final=ent_coef_final,
            update=update,
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

    algorithm = StockA2C

    def __init__(
        self,
        loss: Bonus | None,
        worlds: Worlds,
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
        policy_kwargs: Mapping[str, Any] | None = None,
    ):
        super().__init__(
            loss,
            worlds,
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
