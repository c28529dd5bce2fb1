"""What a trained policy is worth: episodes on seeds of their own, and a picture of one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from PIL import Image
from stable_baselines3.common.policies import BasePolicy

from dembench.tasks.base import Row

TILE, FRAMES, MILLISECONDS = 20, 100, 120  # of the picture: pixels per cell, most frames, time per frame


@dataclass(frozen=True)
class Episodes:
    """Return and length of each episode, and pictures of the first one, (H, W, 3) uint8, if asked for."""

    returns: np.ndarray
    lengths: np.ndarray
    frames: tuple[np.ndarray, ...] = ()

    def rows(self, slice: str) -> list[Row]:
        """Mean return, share of episodes with a return above 0, mean length, and how returns differ between episodes
        of this one policy (their standard deviation, which says nothing on other seeds)."""
        n = len(self.returns)
        return [
            Row(slice, "return", float(self.returns.mean()), "return", n),
            Row(slice, "success", float((self.returns > 0).mean()), "fraction", n),
            Row(slice, "length", float(self.lengths.mean()), "steps", n),
            Row(slice, "episode_sd", float(self.returns.std(ddof=1)) if n > 1 else 0.0, "return", n),
        ]


def play(
    policy: BasePolicy,
    normalize: Callable[[np.ndarray], np.ndarray],
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    *,
    deterministic: bool,
    pictures: bool = False,
    masked: bool = False,
) -> Episodes:
    """One episode in each environment, side by side.

    Args:
        policy: of stable-baselines3; its actions are drawn, or its likeliest ones taken where ``deterministic``.
        normalize: observations (N, ...) to what the policy was trained on; nothing is learned from them.
        envs: as many as seeds, each reset with its seed.
        pictures: keep those of the first episode, at most ``FRAMES``.
        masked: the policy takes the environments' ``action_masks``.
    """
    returns, lengths = np.zeros(len(envs)), np.zeros(len(envs), int)
    frames: list[np.ndarray] = []
    obs = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    running = list(range(len(envs)))
    memory, starts = None, np.ones(len(envs), bool)  # of recurrent policies; others give None back
    while running:
        if pictures and running[0] == 0 and len(frames) < FRAMES:
            frames.append(_picture(envs[0]))
        more = {"action_masks": np.stack([envs[number].action_masks() for number in running])} if masked else {}
        seen = normalize(np.stack(obs))
        actions, memory = policy.predict(seen, memory, starts, deterministic=deterministic, **more)
        obs, still = [], []
        for number, action in zip(running, actions.tolist(), strict=True):
            seen, reward, terminated, truncated, _ = envs[number].step(action)
            returns[number] += reward
            lengths[number] += 1
            if not (terminated or truncated):
                obs.append(seen)
                still.append(number)
        if pictures and running[0] == 0 and still[:1] != [0] and len(frames) < FRAMES:
            frames.append(_picture(envs[0]))
        if memory is not None:
            memory = tuple(part[:, np.isin(running, still)] for part in memory)
        running, starts = still, np.zeros(len(still), bool)
    return Episodes(returns, lengths, tuple(frames))


def _picture(env: gym.Env) -> np.ndarray:
    return env.unwrapped.get_frame(tile_size=TILE)


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """An endless animation; the last picture stays for a second."""
    palette = Image.fromarray(np.concatenate(frames)).quantize(32)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    durations = [MILLISECONDS] * (len(frames) - 1) + [1000]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)
    return file.getvalue()
