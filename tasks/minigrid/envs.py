"""Minigrid environments by name, as stable-baselines3 trains on them: flat observations, normalised, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import minigrid  # noqa: F401  registers the environments
import numpy as np
from minigrid.wrappers import FlatObsWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from dembench.lookup import lookup
from dembench.tasks.minigrid.live import LiveObs, LiveVecEnv, Views
from dembench.tasks.minigrid.masks import useful_actions


@dataclass(frozen=True)
class Environment:
    """One environment and what the rl-baselines3-zoo sets for it.

    Args:
        id: of Gymnasium's registry, such as "MiniGrid-DoorKey-5x5-v0".
        steps: of training, over all copies of the environment; rounded up to whole rollouts.
        n_steps: of one rollout, per copy of the environment.
    Raises: ValueError for an unknown id, with the nearest ones, or for numbers below 1.
    """

    id: str
    steps: int
    n_steps: int = 128

    def __post_init__(self) -> None:
        lookup(self.id, minigrid_ids(), "Minigrid environment")
        for name in ("steps", "n_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.id}: expected {name} >= 1, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """The id without "MiniGrid-" and version: "DoorKey-5x5"."""
        return self.id.removeprefix("MiniGrid-").rpartition("-v")[0]


def minigrid_ids() -> tuple[str, ...]:
    """Ids of all registered environments whose name starts with MiniGrid, sorted."""
    return tuple(sorted(id for id in gym.registry if id.startswith("MiniGrid-")))


def float32_space(env: VecNormalize) -> VecNormalize:
    """Gives normalised observations their space, float32 within the clipping range; returns ``env``.

    stable-baselines3 from 2.7.1 on stores observations in the dtype of their space, and VecNormalize leaves that of
    flat uint8 observations as it was: without this, normalised numbers are stored as bytes, and the policy is trained
    on other inputs than those that it has acted on.
    """
    shape = env.observation_space.shape
    env.observation_space = gym.spaces.Box(-env.clip_obs, env.clip_obs, shape, np.float32)
    return env


@dataclass(frozen=True)
class Worlds:
    """The environments of one run.

    Args:
        id: of the environment.
        seed: of the first copy in training; the others follow.
        views: of the fast path; None takes Minigrid's own environments.
    """

    id: str
    seed: int
    views: Views | None = None

    def training(self, n_envs: int, gamma: float) -> VecNormalize:
        """``n_envs`` copies, side by side."""
        if self.views is None:
            return stock_envs(self.id, n_envs, self.seed, gamma)
        return live_envs(self.id, n_envs, self.seed, gamma, self.views)

    def single(self) -> gym.Env:
        """One copy, for the evaluation."""
        if self.views is None:
            return FlatObs(gym.make(self.id))
        return LiveObs(gym.make(self.id, disable_env_checker=True), self.views)


class FlatObs(FlatObsWrapper):
    """FlatObsWrapper, which also tells MaskablePPO what the agent can do."""

    def action_masks(self) -> np.ndarray:
        return useful_actions(self.unwrapped)


def stock_envs(id: str, n_envs: int, seed: int, gamma: float) -> VecNormalize:
    """``n_envs`` copies as the zoo makes them, seeded with seed, seed + 1, ..; observations of FlatObsWrapper."""
    venv = make_vec_env(id, n_envs, seed=seed, wrapper_class=FlatObs)
    return float32_space(VecNormalize(venv, gamma=gamma))


def live_envs(id: str, n_envs: int, seed: int, gamma: float, views: Views) -> VecNormalize:
    """``stock_envs``, with the same numbers in less time, restricted to the columns that ``views`` keeps."""
    venv: VecEnv = LiveVecEnv([lambda: LiveObs(gym.make(id, disable_env_checker=True), views) for _ in range(n_envs)])
    venv.seed(seed)
    env = float32_space(VecNormalize(venv, gamma=gamma))
    env.obs_rms, env.ret_rms = Moments(shape=env.observation_space.shape), Moments()
    return env


class Moments(RunningMeanStd):
    """RunningMeanStd, with the same bits from fewer passes over the data."""

    def update(self, arr: np.ndarray) -> None:
        n = len(arr)
        mean = np.add.reduce(arr, 0, np.float64) / n
        off = arr - mean
        off *= off
        self.update_from_moments(mean, np.add.reduce(off, 0) / n, n)
