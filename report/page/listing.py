"""Every run for the reader who looks for one: what it was, its numbers, curve, configuration and command, as JSON.

Few configurations differ: each pair of a key and its value is kept once, and runs name their places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dembench.report.judge.group import Block, flatten, is_free, method_of, show
from dembench.report.judge.wording import number, settings_text
from dembench.report.read.export import without_paths
from dembench.report.read.load import Run
from dembench.report.read.names import COSTS, Metric, metrics_of, pretty

MOST = 2_000  # runs that are listed; the rest is in runs.csv
CURVED = 300  # runs whose curve is read
POINTS = 60  # of a curve
SLICES = 40  # whose number is shown


class Places:
    """Gives each different value the place where it is kept."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self._at: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        key = json.dumps(value, sort_keys=True)
        if key not in self._at:
            self._at[key] = len(self.kept)
            self.kept.append(value)
        return self._at[key]


def listing(blocks: Sequence[Block], with_curves: bool) -> str:
    """JSON of the first ``MOST`` runs: {"runs": [...], "pairs", "environments", "notes": what those refer to, "left":
    how many runs are not in it}."""
    pairs, environments, notes = Places(), Places(), Places()
    every = [(block, run) for block in blocks for run in block.runs]
    found = []
    for at, (block, run) in enumerate(every[:MOST]):
        config = flatten({k: v for k, v in run.config.items() if k not in ("task", "hydra", "out", "force")})
        config = {key: show(value) for key, value in without_paths(config).items() if not key.endswith("_target_")}
        environment = [[key, str(value)] for key, value in run.environment.items() if value is not None]
        found.append(
            {
                **names_of(block, run),
                "command": run.command,
                "flags": [" ".join(filter(None, flag)) for flag in run.flags],
                "notes": [notes(": ".join(note)) for note in run.notes],
                "numbers": numbers_of(block, run),
                "slices": slices_of(block, run),
                "config": [pairs([key, value]) for key, value in config.items()],
                "environment": environments(environment),
                "curve": curve_of(block, run) if with_curves and at < CURVED else None,
            }
        )
    kept = {"pairs": pairs.kept, "environments": environments.kept, "notes": notes.kept}
    return json.dumps({"runs": found, "left": len(every) - len(found), **kept}, ensure_ascii=False)


def names_of(block: Block, run: Run) -> dict[str, Any]:
    metric = block.metric
    return {
        "id": run.id,
        "task": pretty(run.task),
        "data": run.data,
        "model": run.model,
        "protocol": run.protocol,
        "method": pretty(method_of(run)),
        "loss": "–" if is_free(run) else pretty(run.loss),
        "setting": "; ".join(filter(None, [settings_text(run.config.get(group)) for group in ("method", "loss")])),
        "seed": run.seed,
        "status": run.status,
        "value": text_of(run.score(metric.name), metric),
        "metric": metric.column,
    }


def text_of(value: float, metric: Metric) -> str:
    return number(value * metric.scale, metric.digits) if math.isfinite(value) else "–"


def numbers_of(block: Block, run: Run) -> list[tuple[str, str]]:
    """What was recorded over all slices, and what the run cost."""
    found = [(m.column, text_of(run.score(name), m)) for name, m in metrics_of(run.task).items() if name in run.units]
    costs = [(title, number(run.cost[name], digits)) for name, (title, digits) in COSTS.items() if name in run.cost]
    return found + costs


def slices_of(block: Block, run: Run) -> list[tuple[str, str]]:
    metric = block.metric
    return [
        (part, text_of(run.scores[part, metric.name], metric))
        for part in run.slices[:SLICES]
        if (part, metric.name) in run.scores
    ]


def curve_of(block: Block, run: Run) -> dict[str, Any] | None:
    """{"x", "y": the points, "title": of y, "what": of x}: the accuracy over the stream, else the series of the task's
    own metric, else the first one."""
    curve = run.curve()
    if curve is not None and curve.n.sum():
        parts = np.array_split(np.arange(len(curve.n)), min(POINTS, len(curve.n)))
        y = [100 * curve.correct[part].sum() / max(1.0, curve.n[part].sum()) for part in parts]
        return points([float(part.mean()) for part in parts], y, "accuracy (%)", "batch")
    series = sorted(run.series().items(), key=lambda item: item[0][1] != block.metric.name)
    for (part, metric), (steps, values) in series:
        kept = np.isfinite(values)
        if kept.sum() > 1:
            at = np.linspace(0, kept.sum() - 1, min(POINTS, int(kept.sum()))).round().astype(int)
            title = f"{metric.replace('_', ' ')}, {part}"
            return points(steps[kept][at].tolist(), values[kept][at].tolist(), title, "step")
    return None


def points(x: Sequence[float], y: Sequence[float], title: str, what: str) -> dict[str, Any]:
    return {"x": [round(v, 2) for v in x], "y": [float(f"{v:.4g}") for v in y], "title": title, "what": what}
