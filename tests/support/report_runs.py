"""Run directories as the runner writes them, with numbers chosen here, for the tests of the report."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dembench.report.judge.group import Block, build_blocks
from dembench.report.read.load import load

SLICES = ("gaussian_noise/5", "fog/5", "jpeg_compression/5")
CLASSES = 4


def make_run(
    root: Path,
    errors: tuple[float | None, ...] = (0.3, 0.2, 0.1),
    *,
    method: str = "tent",
    loss: str = "em",
    seed: int = 0,
    lr: float = 1e-3,
    protocol: str = "continual",
    status: str = "ok",
    data: str = "digits-c",
    notes: tuple[tuple[str, str], ...] = (),
    params: dict[str, Any] | None = None,
    finished: bool = True,
    slices: tuple[str, ...] = SLICES,
    batches: int = 4,
    size: int = 200,
    **overrides: Any,
) -> Path:
    """One run directory as the runner writes it; ``errors`` are fractions per slice, None a NaN."""
    learns = method not in ("source", "norm", "t3a")
    node = {"optimizer": "adam", "lr": lr, "steps": 1, "episodic": False} if learns else {}
    config = {
        "seed": seed, "device": "cpu", "precision": "fp32", "threads": 1, "out": str(root), "force": False,
        "method": {"_target_": f"dembench.tasks.{method}", "_partial_": True, **node},
        "loss": {"_target_": f"dembench.core.{loss}", **(params or {})},
        "model": {"_target_": "m", "weights": f"/somewhere/{root.name}/w.th"},
        "data": {"_target_": "d", "seed": 0},
        "protocol": {"_target_": "p", "reset": protocol == "single_domain", "severity": 5, "corruptions": None,
                     "batch_size": 50, "order_seed": seed},
        "choices": {"method": method, "loss": loss},
    }  # fmt: skip
    config["task"] = {"_target_": "t", **{k: config[k] for k in ("data", "model", "protocol", "seed", "device")}}
    for key, value in overrides.pop("config", {}).items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    identity = {k: v for k, v in config.items() if k not in ("out", "model")}
    own = hashlib.sha256(json.dumps([identity, data, method, loss, protocol]).encode()).hexdigest()[:12]
    run_id = overrides.get("id", own)
    folder = root / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    if not finished:
        return folder
    mean = None if None in errors else sum(errors) / len(errors)
    rows = []
    for name, error in (*zip(slices, errors, strict=True), ("mean", mean)):
        n = size if name != "mean" else size * len(slices)
        rows.append({"slice": name, "metric": "error", "value": error, "unit": "fraction", "n": n})
        rows.append({"slice": name, "metric": "nll", "value": error and 2 * error, "unit": "nats", "n": n})
        rows.append({"slice": name, "metric": "ece", "value": error and error / 4, "unit": "fraction", "n": n})
    draws = np.random.default_rng(zlib.crc32(run_id.encode()))
    histogram = {"predicted": draws.multinomial(200, [0.4, 0.3, 0.2, 0.1]).tolist(), "label": [50] * CLASSES}
    record = {
        "schema": 1, "id": run_id, "task": "tta", "method": method, "loss": loss, "model": "convnet", "data": data,
        "protocol": protocol, "seed": seed, "status": status,
        "flags": [] if status == "ok" else [{"kind": status, "slice": slices[-1], "message": "one class took 97 %"}],
        "notes": [{"key": key, "text": text} for key, text in notes],
        "rows": rows,
        "histograms": {name: histogram for name in slices},
        "cost": {"wall_seconds": 2.0 + seed, "forward_passes": 12, "backward_passes": 12 if learns else 0,
                 "updated": 600 if learns else 0},
        "config": config,
        "environment": {"commit": "0123abcd", "python": "3.11.2", "torch": "2.15.0", "device": "cpu", "cpu": "test"},
        "started": "2030-01-01T00:00:00+00:00",
        "command": f"dembench run method={method} loss={loss} seed={seed}",
        **overrides,
    }  # fmt: skip
    lines = ["step,slice,n,correct,entropy,loss,updated"]
    for i, (name, error) in enumerate(zip(slices, errors, strict=True)):
        for j in range(batches):
            right = 0 if error is None else round(50 * (1 - error) + draws.normal(0, 1.5))
            quoted = '"' + name.replace('"', '""') + '"'
            lines.append(f"{i * batches + j},{quoted},50,{min(50, max(0, right))},0.5,{0.1 if learns else ''},50")
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(json.dumps(record))
    return folder


EM = {0: (0.30, 0.20, 0.10), 1: (0.31, 0.22, 0.10), 2: (0.33, 0.20, 0.13)}
ADADEM = {0: (0.28, 0.20, 0.09), 1: (0.30, 0.19, 0.08), 2: (0.29, 0.21, 0.10)}
ADADEM_FAST = {0: (0.25, 0.20, 0.09), 1: (0.24, 0.19, 0.08), 2: (0.29, 0.21, 0.10)}


def golden_runs(root: Path) -> Path:
    """Source, NORM, and Tent at two rates with EM and AdaDEM; one collapsed run, one NaN run, one missing seed."""
    for seed in range(3):
        make_run(root, (0.5, 0.4, 0.3), method="source", seed=seed)
        make_run(root, EM[seed], seed=seed)
        make_run(root, ADADEM[seed], loss="adadem", seed=seed)
        make_run(root, ADADEM_FAST[seed], loss="adadem", seed=seed, lr=1e-2)
    make_run(root, (0.4, 0.3, 0.2), method="norm", seed=0)
    make_run(root, (0.7, 0.74, 0.75), seed=0, lr=1e-2, status="collapse")
    make_run(root, (0.5, None, 0.3), seed=1, lr=1e-2, status="nan")
    return root


def percent(errors: dict[int, tuple[float, ...]]) -> np.ndarray:
    return np.array([100 * np.mean(errors[seed]) for seed in sorted(errors)])


def only_block(root: Path) -> Block:
    (block,) = build_blocks(load([root]).runs)
    return block


def interval(difference: np.ndarray) -> tuple[float, float]:
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


PACKED = re.compile(r'<script type="application/gzip">([A-Za-z0-9+/=]*)</script>')


def packed(text: str) -> list[str]:
    """What a page holds packed, in its order: its folded parts, and the list of all runs as JSON."""
    return [gzip.decompress(base64.b64decode(held)).decode() for held in PACKED.findall(text)]


def opened(text: str) -> str:
    """A page with all its folded parts in their places, but for the list of runs."""
    parts = iter(packed(text))
    return PACKED.sub(lambda _: "" if (part := next(parts)).startswith("{") else part, text)


def listed(text: str) -> dict[str, Any]:
    """The list of all runs of a page."""
    return next(json.loads(part) for part in packed(text) if part.startswith("{"))


class Page(HTMLParser):
    """Collects tags, attributes, visible text, and the body rows of each table by its name, all parts opened."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.name, self.cell = "", False
        self.feed(opened(text))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "figure":
            self.name = (dict(attributes).get("id") or "").removeprefix("t-")
        if tag == "tbody":
            self.tables[self.name] = []
        rows = self.tables.get(self.name)
        if tag == "tr" and rows is not None:
            rows.append([])
        self.cell = self.cell if tag in ("strong", "u", "small") else tag in ("td", "th") and rows is not None
        if tag in ("td", "th") and self.cell:
            rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell and self.tables.get(self.name):
            self.tables[self.name][-1][-1] += f" {data}"
