"""The report, from synthetic run directories with numbers worked out here and not by the code under test."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import time
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tasks.report import write_report
from tasks.report.content import cost_table, detail_table, main_table
from tasks.report.group import build_blocks
from tasks.report.load import load
from tasks.report.stats import estimate
from tasks.report.tables import Column, Entry, Table
from tasks.report.verdict import summary_table, verdicts

GOLDEN = Path(__file__).parents[1] / "golden"
SLICES = ("gaussian_noise/5", "fog/5", "jpeg_compression/5")
CLASSES = 4


def make_run(
    root: Path, errors: tuple[float | None, ...] = (0.3, 0.2, 0.1), *, method: str = "tent", loss: str = "em",
    seed: int = 0, lr: float = 1e-3, protocol: str = "continual", status: str = "ok", data: str = "digits-c",
    notes: tuple[tuple[str, str], ...] = (), params: dict[str, Any] | None = None, finished: bool = True,
    slices: tuple[str, ...] = SLICES, batches: int = 4, **overrides: Any,
) -> Path:
    """One run directory as the runner writes it; ``errors`` are fractions per slice, None a NaN."""
    learns = method not in ("source", "norm")
    node = {"optimizer": "adam", "lr": lr, "steps": 1, "episodic": False} if learns else {}
    config = {
        "seed": seed, "device": "cpu", "precision": "fp32", "threads": 1, "out": str(root), "force": False,
        "method": {"_target_": f"tasks.{method}", "_partial_": True, **node},
        "loss": {"_target_": f"core.{loss}", **(params or {})},
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
    run_id = hashlib.sha256(json.dumps([identity, data, method, loss, protocol]).encode()).hexdigest()[:12]
    folder = root / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    if not finished:
        return folder
    mean = None if None in errors else sum(errors) / len(errors)
    rows = []
    for name, error in (*zip(slices, errors, strict=True), ("mean", mean)):
        n = 200 if name != "mean" else 200 * len(slices)
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
            lines.append(f"{i * batches + j},{name},50,{min(50, max(0, right))},0.5,{0.1 if learns else ''},50")
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(json.dumps(record))
    return folder
