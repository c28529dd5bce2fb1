"""Minigrid at several times its speed, with the same observations: what the agent sees is remembered, and of flat
observations only the columns are kept that can be other than zero.

FlatObsWrapper gives 147 numbers of the image and 2,688 of the mission, letter by letter; an environment with one
mission of 53 letters can set 53 of the latter. The others are zero in every state, also after normalisation, so that
weights on them never move and the policy does not depend on them.
"""

from __future__ import annotations

import itertools
import math
from operator import itemgetter
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Wall
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FlatObsWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from dembench.tasks.minigrid.masks import useful_actions

MOST_MISSIONS = 10_000  # beyond which all columns are kept
MOST_IMAGES = 100_000  # remembered; about 1 KB each
_OUTSIDE = [Wall()]  # Minigrid shows walls where its grid ends


class Views:
    """What agents see in the environments of one id: shared by all copies of it, in training and evaluation.

    Args:
        id: of the environment.
    Attributes:
        width: of FlatObsWrapper's observation.
        columns: indices of the columns that can be other than zero, sorted.
    Raises: ValueError for an environment that makes its observations in a way of its own.
    """

    def __init__(self, id: str):
        env = gym.make(id, disable_env_checker=True).unwrapped
        if not isinstance(env, MiniGridEnv) or type(env).gen_obs is not MiniGridEnv.gen_obs:
            raise ValueError(
                f"{id} makes observations of its own, which the fast path does not know; use the exact one"
            )
        self._flat = FlatObsWrapper(env)
        self.width = int(self._flat.observation_space.shape[0])
        self._pixels = math.prod(env.observation_space["image"].shape)
        self.columns = self._live_columns(env.observation_space["mission"])
        self._letters = self.columns[self.columns >= self._pixels]
        self._images: dict[Any, np.ndarray] = {}
        self._windows: dict[Any, Any] = {}
        self._missions: dict[str, np.ndarray] = {}

    def _live_columns(self, space: Any) -> np.ndarray:
        everything = np.arange(self.width)
        if type(space) is not MissionSpace:
            return everything
        words = space.ordered_placeholders or []
        if math.prod(map(len, words)) > MOST_MISSIONS:
            return everything
        live = np.zeros(self.width, bool)
        live[: self._pixels] = True
        for chosen in itertools.product(*words):
            live |= self._encode(space.mission_func(*chosen)) > 0
        return everything[live]

    def _encode(self, mission: str) -> np.ndarray:
        return self._flat.observation({"image": np.zeros(self._pixels, np.uint8), "mission": mission})

    def image(self, env: MiniGridEnv) -> np.ndarray:
        """``env.gen_obs()["image"]``, uint8 (7, 7, 3), not to be written to.

        It depends on the cells in the agent's window and on what is carried, and on nothing else.
        """
        x, y = env.agent_pos
        grid, direction = env.grid, env.agent_dir
        place = (x, y, direction, grid.width, grid.height)
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = _window(env)
        cells = window(grid.grid + _OUTSIDE)
        seen = tuple(
            [
                0 if cell is None else 1 if cell.__class__ is Wall and cell.color == "grey" else cell.encode()
                for cell in cells
            ]
        )
        key = (seen, None if env.carrying is None else env.carrying.encode())
        image = self._images.get(key)
        if image is None:
            if len(self._images) >= MOST_IMAGES:
                self._images.clear()
            image = self._images[key] = MiniGridEnv.gen_obs(env)["image"]
            image.setflags(write=False)
        return image

    def mission(self, text: str) -> np.ndarray:
        """The live columns of the mission, uint8.

        Raises: ValueError for a mission outside the environment's mission space.
        """
        letters = self._missions.get(text)
        if letters is None:
            flat = self._encode(text)
            letters = flat[self._letters]
            if letters.sum() != flat.sum():
                raise ValueError(f"mission {text!r} is not in the mission space of its environment; use the exact path")
            self._missions[text] = letters
        return letters


def _window(env: MiniGridEnv) -> itemgetter:
    """Picks the cells of the agent's view from the grid's list and, last in it, a wall; by Minigrid's own geometry."""
    size, grid = env.agent_view_size, Grid(env.grid.width, env.grid.height)
    grid.grid = list(range(len(grid.grid)))
    x, y, _, _ = env.get_view_exts()
    view = grid.slice(x, y, size, size)
    for _ in range(env.agent_dir + 1):
        view = view.rotate_left()
    return itemgetter(*[-1 if isinstance(cell, Wall) else cell for cell in view.grid])


class LiveObs(gym.Wrapper):
    """FlatObsWrapper's observation, uint8, restricted to ``views.columns``; monitored as stable-baselines3 does."""

    def __init__(self, env: gym.Env, views: Views):
        spec = env.spec
        if spec.max_episode_steps is None and not spec.additional_wrappers:
            env = env.unwrapped  # Gymnasium's wrapper checks the order of calls, and has no other effect
        super().__init__(Monitor(env))
        self.views = views
        self.observation_space = gym.spaces.Box(0, 255, views.columns.shape, np.uint8)
        grid: MiniGridEnv = env.unwrapped
        grid.gen_obs = self._gen_obs  # on this instance only
        self._grid = grid

    def _gen_obs(self) -> dict[str, Any]:
        grid = self._grid
        return {"image": self.views.image(grid), "direction": grid.agent_dir, "mission": grid.mission}

    def action_masks(self) -> np.ndarray:
        return useful_actions(self._grid)

    def _flat(self, obs: dict[str, Any]) -> np.ndarray:
        return np.concatenate((obs["image"].ravel(), self.views.mission(obs["mission"])))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self._flat(obs), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._flat(obs), reward, terminated, truncated, info


class LiveVecEnv(DummyVecEnv):
    """DummyVecEnv for environments whose observations and infos are new at each step and need no deep copies."""

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, dones, infos = [], [], [], []
        for number, (env, action) in enumerate(zip(self.envs, self.actions.tolist(), strict=True)):
            obs, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = obs
                obs, self.reset_infos[number] = env.reset()
            observations.append(obs)
            rewards.append(reward)
            dones.append(done)
            infos.append(info)
        return np.stack(observations), np.array(rewards, np.float32), np.array(dones, bool), infos
