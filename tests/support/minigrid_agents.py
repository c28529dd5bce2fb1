"""Small agents on Minigrid with the zoo's settings, but shorter rollouts and fewer epochs."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import PPO
from torch import Tensor

from dembench.tasks.minigrid.envs import live_envs, stock_envs
from dembench.tasks.minigrid.fast import FastPolicy
from dembench.tasks.minigrid.live import Views

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
NINE = (
    "MiniGrid-DoorKey-5x5-v0", "MiniGrid-Empty-Random-5x5-v0", "MiniGrid-Fetch-5x5-N2-v0", "MiniGrid-FourRooms-v0",
    "MiniGrid-GoToDoor-5x5-v0", "MiniGrid-KeyCorridorS3R1-v0", "MiniGrid-PutNear-6x6-N2-v0",
    "MiniGrid-RedBlueDoors-6x6-v0", "MiniGrid-Unlock-v0",
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "n_steps": 32, "batch_size": 64, "n_epochs": 4, "gae_lambda": 0.95, "gamma": 0.99, "ent_coef": 0.01,
    "learning_rate": 2.5e-4, "clip_range": 0.2, "seed": 0, "device": "cpu",
}  # fmt: skip


def stock_agent(policy: Any, env_id: str = DOOR_KEY, policy_kwargs: Any = None, **settings: Any) -> PPO:
    """stable-baselines3's PPO on Minigrid's own environments."""
    chosen = {**SETTINGS, **settings}
    return PPO(policy, stock_envs(env_id, 8, chosen["seed"], 0.99), policy_kwargs=policy_kwargs, **chosen)


def fast_agent(bonus: Any, env_id: str = DOOR_KEY, **settings: Any) -> PPO:
    """The same on the fast path."""
    views, chosen = Views(env_id), {**SETTINGS, **settings}
    kwargs = {"bonus": bonus, "width": views.width, "columns": views.columns.tolist()}
    return PPO(FastPolicy, live_envs(env_id, 8, chosen["seed"], 0.99, views), policy_kwargs=kwargs, **chosen)


def weights(agent: Any) -> dict[str, Tensor]:
    """The networks' weights by name, without the bonus's own state."""
    return {k: v.clone() for k, v in agent.policy.state_dict().items() if not k.startswith(("bonus", "action_dist"))}
