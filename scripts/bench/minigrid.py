"""Environment steps per CPU second of PPO on Minigrid, stock and on the fast path: ``dembench bench minigrid``."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

HELP = "PPO on Minigrid, stock stable-baselines3 against the fast path"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--env", default="MiniGrid-DoorKey-5x5-v0", metavar="ID", help="Minigrid id (DoorKey-5x5)")
    parser.add_argument("--rounds", type=int, default=3, help="turns, of which the best counts (default 3)")


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """One turn is one rollout of 1,024 steps and its 160 updates, of each agent after the other, so that a busy machine
    slows all of them alike.

    Raises: ValueError for an unknown environment or no rounds.
    """
    if options.rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {options.rounds}")
    from dembench.tasks.minigrid.envs import Environment

    Environment(options.env, steps=1)  # knows whether there is such an environment
    turns = agents(options.env)
    best = dict.fromkeys(turns, 0.0)
    for turn in turns.values():
        turn()
    for _ in range(options.rounds):
        for name, turn in turns.items():
            start = time.process_time()
            steps = turn()
            best[name] = max(best[name], steps / (time.process_time() - start))
    base = best["stock, EM"]
    table = Table(title=f"{options.env}, the zoo's settings", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("path and bonus", "steps / CPU second", "x stock"):
        table.add_column(column, justify="left" if column.startswith("path") else "right")
    for name, rate in best.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / base:.2f}")
    console.print(table)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    console.print(f"Rollouts and updates, CPU time of this process; the machine's load was {load}.")
    results = [{"name": name, "steps_per_cpu_second": rate, "ratio": rate / base} for name, rate in best.items()]
    return {"env": options.env, "load": load, "results": results}


def agents(env_id: str, device: str = "cpu", names: Sequence[str] | None = None) -> dict[str, Callable[[], int]]:
    """Each agent, or those of ``names``, as a call that trains on for one rollout and returns its environment steps."""
    from stable_baselines3 import PPO

    from dembench.core import EM, AdaDEM
    from dembench.tasks.minigrid.envs import live_envs, stock_envs
    from dembench.tasks.minigrid.fast import FastPolicy
    from dembench.tasks.minigrid.live import Views
    from dembench.tasks.minigrid.policy import EntropyBonusPolicy

    views = Views(env_id)
    cut = {"width": views.width, "columns": views.columns.tolist()}
    parts = {
        "stock, EM": ("MlpPolicy", {}, stock_envs(env_id, 8, 0, 0.99)),
        "stock, AdaDEM": (EntropyBonusPolicy, {"bonus": AdaDEM()}, stock_envs(env_id, 8, 0, 0.99)),
        "fast, EM": (FastPolicy, {"bonus": EM(), **cut}, live_envs(env_id, 8, 0, 0.99, views)),
        "fast, AdaDEM": (FastPolicy, {"bonus": AdaDEM(), **cut}, live_envs(env_id, 8, 0, 0.99, views)),
    }
    settings = {
        "n_steps": 128,
        "batch_size": 64,
        "learning_rate": 2.5e-4,
        "ent_coef": 0.001,
        "seed": 0,
        "device": device,
    }

    def turn(agent: PPO) -> int:
        before = agent.num_timesteps
        agent.learn(1, reset_num_timesteps=not before)
        return agent.num_timesteps - before

    trained = {
        name: PPO(policy, env, policy_kwargs=kwargs, **settings)
        for name, (policy, kwargs, env) in parts.items()
        if names is None or name in names
    }
    return {name: partial(turn, agent) for name, agent in trained.items()}
