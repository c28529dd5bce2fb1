"""mmengine's Runner for a run that can be cut off: quiet, in pieces, with checkpoints that torch loads safely."""

from __future__ import annotations

import itertools
import logging
import os
import random
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, init_dist, is_distributed
from mmengine.logging import MMLogger
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from dembench.tasks.common.draws import Order, derived_seed
from dembench.tasks.segmentation.schedule import Schedule

HEADS = ("decode_head", "auxiliary_head")
NUMBERS = itertools.count()  # mmengine keeps what it makes by the name of an experiment


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class UDAOptimizers:
    """SGD for the network, heads at their own rate, as "network"; Adam for each discriminator, under its name.

    Args:
        optim_wrapper_cfg: a node "schedule" that holds the ``Schedule``.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: Any = None):
        self.schedule: Schedule = optim_wrapper_cfg["schedule"]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """One wrapper, or an ``OptimWrapperDict`` where the method has discriminators."""
        model = model.module if is_model_wrapper(model) else model
        network = OptimWrapper(self._sgd(model.network))
        others = model.discriminators()
        if not others:
            return network
        adams = {
            name: OptimWrapper(torch.optim.Adam(module.parameters(), lr=lr, betas=(0.9, 0.99)))
            for name, (module, lr) in others.items()
        }
        return OptimWrapperDict(network=network, **adams)

    def _sgd(self, network: nn.Module) -> torch.optim.SGD:
        s = self.schedule
        heads, body = [], []
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                (heads if any(f"{head}." in name for head in HEADS) else body).append(parameter)
        groups = [
            {"params": body, "lr": s.lr * s.backbone_multiplier},
            {"params": heads, "lr": s.lr * s.head_multiplier},
        ]
        return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)


class Draws(Dataset):
    """The endless sequence of source and target images that follows from a seed; item i is the i-th pair.

    Whatever a dataset draws at random while it loads follows from the seed and i as well.
    """

    def __init__(self, source: Dataset, target: Dataset, seed: int):
        self.parts = {"source": source, "target": target}
        self.orders = {name: Order(len(part), seed, name) for name, part in self.parts.items()}
        self.seed = seed

    def __getitem__(self, draw: int) -> dict[str, Any]:
        found = {}
        for name, part in self.parts.items():
            seed = derived_seed(self.seed, draw, name)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(
                seed
            )  # images are made on the CPU; torch.manual_seed takes milliseconds
            found[name] = part[int(self.orders[name].rows(draw, 1))]
        return found


class Share(Sampler[int]):
    """The draws of one process from iteration ``start`` on: its part of each batch."""

    def __init__(self, start: int, schedule: Schedule, rank: int = 0):
        self.start, self.schedule, self.rank = start, schedule, rank

    def __iter__(self) -> Iterator[int]:
        batch = self.schedule.batch_size
        share = batch // self.schedule.devices
        for step in range(self.start, self.schedule.iterations):
            first = step * batch + self.rank * share
            yield from range(first, first + share)

    def __len__(self) -> int:
        return (self.schedule.iterations - self.start) * self.schedule.batch_size // self.schedule.devices


def collate(items: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Pairs to a batch of PackSegInputs for each domain; nothing is stacked."""
    return {name: {key: [item[name][key] for item in items] for key in ("inputs", "data_samples")} for name in items[0]}


@LOOPS.register_module()
class PausingTrainLoop(IterBasedTrainLoop):
    """``IterBasedTrainLoop`` in pieces: each ``run`` goes on to the next evaluation or checkpoint.

    Args:
        schedule: says when.
        seed: the random numbers of an iteration follow from it and the iteration.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader, max_iters: int, schedule: Schedule, seed: int):
        super().__init__(runner, dataloader, max_iters)
        self.schedule, self.seed = schedule, seed
        state = runner.state or {"iteration": 0, "sums": {}, "count": 0}
        self._iter = state["iteration"]
        self.sums = {name: value.to(runner.device) for name, value in state["sums"].items()}
        self.count = state["count"]  # iterations in the sums

    def run(self) -> nn.Module:
        self.runner.model.train()
        while self._iter < self._max_iters:
            data = next(self.dataloader_iterator)
            data["progress"] = self._iter / self._max_iters
            torch.manual_seed(derived_seed(self.seed, self._iter, "model", self.runner.rank))
            self.run_iter(data)
            if self.schedule.evaluates(self._iter) or self.schedule.saves(self._iter):
                break
        return self.runner.model

    def run_iter(self, data_batch: Any) -> None:
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        try:
            values = self.runner.model.train_step(data_batch, optim_wrapper=self.runner.optim_wrapper)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "the network normalises one value per channel (global pooling before BatchNorm), which needs "
                "protocol.batch_size of 2 or more on each device"
            ) from error
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=values)
        self._iter += 1


class QuietRunner(Runner):
    """mmengine's Runner on the given device, without console output, log files or changes to the process.

    Several processes are those of mmengine's launcher "pytorch"; each learns from its share of a batch.

    Args:
        method: the model; its own part of ``state`` is loaded already.
        state: of a checkpoint, see ``tasks.segmentation.trainer``; None starts anew.
    """

    def __init__(
        self,
        method: nn.Module,
        draws: Draws,
        schedule: Schedule,
        *,
        seed: int,
        device: str,
        state: dict[str, Any] | None = None,
    ):
        self.state, self.device = state, torch.device(device)
        rank = get_dist_info()[0] if schedule.devices > 1 else 0
        start = state["iteration"] if state else 0
        loader = DataLoader(
            draws,
            batch_size=schedule.batch_size // schedule.devices,
            sampler=Share(start, schedule, rank),
            num_workers=schedule.workers,
            persistent_workers=schedule.workers > 0,
            collate_fn=collate,
        )
        loop = {"type": "PausingTrainLoop", "max_iters": schedule.iterations, "schedule": schedule, "seed": seed}
        self.folder = tempfile.TemporaryDirectory(prefix="dembench-")  # mmengine wants one; nothing there is kept
        super().__init__(
            method,
            self.folder.name,
            train_dataloader=loader,
            train_cfg=loop,
            optim_wrapper={"constructor": "UDAOptimizers", "schedule": schedule},
            param_scheduler=schedule.param_scheduler(),
            default_hooks=dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")),
            launcher="pytorch" if schedule.devices > 1 else "none",
            log_level="ERROR",
            randomness={"seed": seed % 2**31},
            experiment_name=f"dembench-{next(NUMBERS)}",
            default_scope="mmseg",
        )

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Joins the other processes; start method, threads and limits of the process stay as they are."""
        if self.distributed and not is_distributed():
            init_dist(self.launcher, backend="nccl")
        self._rank, self._world_size = get_dist_info()
        self._timestamp = time.strftime("%Y%m%d_%H%M%S")

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        if self.device.type != "cpu" or not thin_shortcuts(model.network):
            model.network.to(memory_format=torch.channels_last)
        if not self.distributed:
            return model
        ids = [int(os.environ["LOCAL_RANK"])] if self.device.type == "cuda" else None
        return MMSeparateDistributedDataParallel(model, device_ids=ids)

    def build_logger(self, *args: Any, **kwargs: Any) -> Any:
        return MMLogger.get_instance(self._experiment_name, logger_name="dembench", log_level=logging.ERROR)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Nothing: the record of a run has its environment."""

    def dump_config(self) -> None:
        """Nothing: the record of a run has its configuration."""

    def load_or_resume(self) -> None:
        """Optimisers and schedules as in ``state``, once they are built."""
        if self.state is not None:
            self.optim_wrapper.load_state_dict(self.state["optimizers"])
            for scheduler, state in zip(self.schedulers(), self.state["schedulers"], strict=True):
                scheduler.load_state_dict(state)

    def schedulers(self) -> list[Any]:
        """Those of all optimisers, in a fixed order."""
        found = self.param_schedulers
        return [s for part in found.values() for s in part] if isinstance(found, dict) else list(found)

    def close(self) -> None:
        """Removes the folder."""
        self.folder.cleanup()


def thin_shortcuts(network: nn.Module) -> bool:
    """Whether there is a strided 1x1 convolution of fewer than 8 channels.

    In channels-last format its backward pass writes beyond its memory on CPUs without AVX-512 (oneDNN in PyTorch 2.15),
    and the process dies.
    """
    return any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8
        for m in network.modules()
    )
