"""Reinforcement learning on one Minigrid environment: learning curve, and the return of the final policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from dembench.tasks.base import Artifact, Event, Flag, Note, Row, Scalars
from dembench.tasks.common.keep import kept
from dembench.tasks.common.parts import DataPart
from dembench.tasks.minigrid.envs import Environment, Worlds
from dembench.tasks.minigrid.evaluation import Episodes, gif, play
from dembench.tasks.minigrid.live import Views
from dembench.tasks.minigrid.methods import OnPolicy

PAPER_EPISODES = 10  # over which arXiv 2511.03256 takes its mean
LOGGED = {
    "entropy": "bonus/entropy",
    "bonus": "bonus/value",
    "delta": "bonus/delta",
    "weight": "bonus/weight",
    "value_loss": "train/value_loss",
    "explained_variance": "train/explained_variance",
    "kl": "train/approx_kl",
    "clip_fraction": "train/clip_fraction",
}


@dataclass(frozen=True)
class Protocol:
    """How runs are seeded and what is measured.

    Args:
        fast: environments and policy of the fast path; False takes those of Minigrid and stable-baselines3.
        episodes: of the evaluation, in each of both modes.
        eval_seed: of the first evaluation episode; the others follow.
        seed_spacing: environment i of a run has the seed ``seed_spacing * seed + i``, so that runs share no layouts.
        points: of the learning curve, fewer where rollouts are longer.
        picture: keep an animation of an evaluation episode.
    Raises: ValueError for numbers below 1, or fewer than 10 episodes.
    """

    fast: bool = True
    episodes: int = 100
    eval_seed: int = 10_000_000
    seed_spacing: int = 1000
    points: int = 50
    picture: bool = True

    def __post_init__(self) -> None:
        for name, least in (("episodes", PAPER_EPISODES), ("eval_seed", 1), ("seed_spacing", 1), ("points", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"protocol: expected {name} >= {least}, got {getattr(self, name)}")


class Minigrid:
    """Trains one agent and evaluates its final policy, once drawing actions (primary) and once taking the likeliest.

    Args:
        data: the environment.
        protocol: seeds and measurements.
        seed: of the run.
        device: of the policy; environments live on the CPU.
        precision: "fp32".
        part: "search" trains and evaluates with other seeds than the rest.
    Raises: ValueError where seeds of training would meet those of the evaluation, or for another precision.
    """

    splits = False  # the search of DEM* has seeds of its own
    searched = "layouts of other seeds, in training and evaluation"
    without_labels = "reinforcement learning has no choice without labels: the return is what the agent is given"
    saves = ("last",)
    save = "none"  # the runner says what to keep
    auto_device = "cpu"  # a GPU costs networks of this size more in waits, several an environment step, than it saves

    def __init__(
        self,
        data: Environment,
        protocol: Protocol,
        *,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "fp32",
        part: DataPart | None = None,
    ):
        if precision != "fp32":
            raise ValueError(f"minigrid trains in fp32, got precision={precision}")
        self.seed = seed * protocol.seed_spacing
        self.part = part
        if part is not None and part.use == "search":  # beyond all seeds of the rest
            self.seed += 2 * protocol.eval_seed
            protocol = replace(protocol, eval_seed=3 * protocol.eval_seed)
        self.data, self.protocol, self.device = data, protocol, device
        if self.seed + protocol.seed_spacing > protocol.eval_seed:
            raise ValueError(f"seed={seed}: training would use the seeds of the evaluation, from {protocol.eval_seed}")

    def __len__(self) -> int:
        return self.protocol.points

    def check_method(self, make_method: Callable[..., OnPolicy]) -> None:
        """Builds a method on the CPU and lets it go: what it refuses, it refuses here."""
        self._make(make_method, "cpu")

    def run(self, make_method: Callable[..., OnPolicy]) -> Iterator[Event]:
        """Yields notes, Scalars of the learning curve, and rows; the slice "mean" is the evaluation that draws."""
        method = self._make(make_method, self.device)
        yield from self._notes(method)
        area = yield from self._train(method)
        if not method.finite:
            yield Flag("nan", "training", "a weight of the policy is not finite")
            yield Row("mean", "return", math.nan, "return", self.protocol.episodes)
            return
        yield from self._evaluate(method)
        for slice in ("training", "mean"):
            yield Row(slice, "training_return", area, "return", method.model.num_timesteps)
        if self.save != "none":
            yield Note("weights", "files/weights.safetensors holds the policy and the normalisation of observations")
            yield kept("weights", method.tensors())

    def judge(self, make_method: Callable[..., OnPolicy], tensors: Mapping[str, torch.Tensor]) -> Iterator[Event]:
        """Rows of the evaluation of an agent that was kept; nothing is learned.

        Raises: ValueError where it does not fit the environment.
        """
        method = self._make(make_method, self.device)
        method.load_tensors(tensors)
        yield from self._notes(method)
        yield from self._evaluate(method)

    def _make(self, make_method: Callable[..., OnPolicy], device: str) -> OnPolicy:
        worlds = Worlds(self.data.id, self.seed, Views(self.data.id) if self.protocol.fast else None)
        method = make_method(worlds=worlds, rollout=self.data.n_steps, seed=self.seed, device=device)
        if method.model.n_envs > self.protocol.seed_spacing:
            raise ValueError(f"protocol: expected seed_spacing >= n_envs, got {self.protocol.seed_spacing}")
        return method

    def _train(self, method: OnPolicy) -> Generator[Event, None, float]:
        """Yields the learning curve; returns the mean over updates of the return of the last 100 episodes."""
        returns, told = [], 0
        for logged in method.learn(self.data.steps):
            ended = method.model.ep_info_buffer
            values = {}
            if ended:
                reached = [episode["r"] for episode in ended]
                values = {
                    "return": float(np.mean(reached)),
                    "success": float(np.mean(np.array(reached) > 0)),
                    "length": float(np.mean([episode["l"] for episode in ended])),
                }
                returns.append(values["return"])
            step = method.model.num_timesteps
            due = min(self.protocol.points, step * self.protocol.points // self.data.steps)
            if due > told:
                told = due
                values |= {name: float(logged[key]) for name, key in LOGGED.items() if key in logged}
                yield Scalars(step, "training", values)
            if not method.finite:
                break
        return float(np.mean(returns)) if returns else 0.0

    def _evaluate(self, method: OnPolicy) -> Iterator[Event]:
        protocol = self.protocol
        seeds = range(protocol.eval_seed, protocol.eval_seed + protocol.episodes)
        envs = [method.worlds.single() for _ in seeds]
        normalize = method.model.get_vec_normalize_env().normalize_obs
        for mode in ("stochastic", "deterministic"):
            torch.manual_seed(protocol.eval_seed)
            drawn = mode == "stochastic"
            found = play(
                method.model.policy,
                normalize,
                envs,
                seeds,
                deterministic=not drawn,
                pictures=drawn and protocol.picture,
                masked=method.masked,
            )
            yield from found.rows(mode)
            if drawn:
                yield from found.rows("mean")
                first = Episodes(found.returns[:PAPER_EPISODES], found.lengths[:PAPER_EPISODES])
                yield from first.rows(f"first {PAPER_EPISODES} episodes")[:1]
            if found.frames:
                yield Artifact("agent.gif", gif(found.frames))

    def _notes(self, method: OnPolicy) -> Iterator[Note]:
        p = self.protocol
        if self.part is not None and self.part.use == "search":
            yield Note("part", "the part for the search of DEM*: seeds that no other run trains or evaluates with")
            if self.part.criteria:
                yield Note("criteria", self.without_labels)
        if self.device == "cpu" and torch.cuda.is_available():
            yield Note("device", "the policy is on the CPU, where networks of this size are faster than on a GPU")
        yield Note(
            "evaluation",
            f"Final policy, {p.episodes} episodes with seeds from {p.eval_seed}, which no training environment has; an "
            "environment with few layouts repeats them all the same. The slice mean draws actions from the policy. A "
            "success is a return above 0.",
        )
        fast = " Fast path: the same steps as the stock path, but for rounding." if method.worlds.views else ""
        yield Note(
            "observations",
            "FlatObsWrapper and VecNormalize, stored in float32 (stable-baselines3 from 2.7.1 on would store them as "
            f"bytes, which breaks training without a word).{fast}",
        )
        if method.masked:
            yield Note(
                "masks",
                "Actions that would leave the world as it is are ruled out, in training and evaluation; for other "
                "methods they are not.",
            )
        yield from method.notes
