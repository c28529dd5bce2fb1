"""Words of the report: numbers and gains, the protocol behind a table, and what each method and loss was set to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dembench.report.judge.group import Block, label, leaf, method_of, setting_of, show
from dembench.report.judge.stats import Estimate
from dembench.report.read.load import Run
from dembench.report.read.names import Metric, pretty

MINUS = "\N{MINUS SIGN}"
COLLAPSED, NAN = "†", "‡"
FEW = 3  # methods whose settings a caption can hold
SPOKEN: dict[str, Callable[[Any], str]] = {
    "protocol.reset": lambda v: "the method is reset before each domain" if v else "no reset between domains",
    "protocol.severity": lambda v: f"severity {show(v)}",
    "protocol.batch_size": lambda v: f"batch size {show(v)}",
    "precision": lambda v: f"precision {show(v)}",
    "device": lambda v: f"device {show(v)}",
    "protocol.corruptions": lambda v: f"corruptions {show(v)}" if v else "",
}
UNSAID = ("data.num_images", "task.num_images")  # the sizes of the slices say it


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """Fixed-point text with a true minus sign; empty for None."""
    if value is None:
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", MINUS)


def plain(text: str) -> str:
    """``number`` for machines: an ASCII minus and no plus."""
    return text.replace(MINUS, "-").removeprefix("+")


def gain_text(gain: Estimate, metric: Metric) -> str:
    """Signed difference and interval; a single pair, or pairs that are all alike, get no interval and say so."""
    if not gain.n:
        return "no pair"
    mean, low, high = (number(x, metric.digits, sign=True) for x in (gain.mean, gain.low, gain.high))
    return f"{mean} [{low}, {high}]" if low else f"{mean} ({'1 seed' if gain.n == 1 else 'seeds alike'})"


def gain_numbers(gain: Estimate, metric: Metric) -> tuple[str, ...]:
    if not gain.n:
        return "", "", "", "0"
    return *(plain(number(x, metric.digits, sign=True)) for x in (gain.mean, gain.low, gain.high)), str(gain.n)


def points(metric: Metric) -> str:
    """The unit of a difference."""
    return "percentage points" if metric.unit == "%" else metric.unit or "units"


def describe(block: Block) -> str:
    """The protocol in one sentence: every number names what it was measured under. Fingerprints are in runs.csv."""
    context = {k: v for k, v in block.context.items() if k not in UNSAID and not k.endswith(" fingerprint")}
    said = [text for key, speak in SPOKEN.items() if key in context and (text := speak(context[key]))]
    sizes = sorted({run.sizes[name] for run in block.runs for name in run.slices})
    if sizes:
        samples = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        said.append(f"{len(block.slices)} slice{'s' * (len(block.slices) != 1)} of {samples} samples")
    for key, value in context.items():
        if key not in SPOKEN and value not in (None, "given"):
            said.append(f"{key.replace('.', ' ')} {show(value)}")
    settings = settings_of(block)
    listed = settings if sum(kind == "method" for kind, _, _ in settings) <= FEW else []
    tail = "".join(f" {name}: {text}." for _, name, text in listed)
    return f"Protocol {pretty(block.protocol)}: {'; '.join(said)}.{tail}"


def settings_of(block: Block) -> list[tuple[str, str, str]]:
    """("method" or "loss", name, "lr 1e-3, steps 1") of what does not vary within a method or a loss."""
    found = []
    for method in block.methods:
        fixed = {k: v for m, s in block.rows if m == method for k, v in s if k not in block.varying[method]}
        if fixed:
            found.append(("method", pretty(method), listed(fixed)))
    for loss in dict.fromkeys(name for name, _ in block.columns):
        named = {"tau", "alpha", *block.varying_params[loss]}
        fixed = {k: v for n, p in block.columns if n == loss for k, v in p if k not in named and v is not None}
        if fixed:
            found.append(("loss", pretty(loss), listed(fixed)))
    return found


def listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{leaf(key)} {show(value)}" for key, value in sorted(values.items()))


def settings_text(node: Any) -> str:
    """All settings of a method's or loss's node in words."""
    setting = setting_of(node)
    return label("", setting, tuple(key for key, _ in setting))


def run_label(run: Run) -> str:
    """Which run it was, in words."""
    setting = settings_text(run.config.get("method"))
    method = f"{pretty(method_of(run))} + {pretty(run.loss)}" + (f" ({setting})" if setting else "")
    return f"{run.data} · {run.model} · {run.protocol} · {method}, seed {run.seed}"


def slice_labels(slices: list[str]) -> list[str]:
    """Readable slice names, without a severity that all of them share."""
    tails = {name.rpartition("/")[2] for name in slices if "/" in name}
    shared = len(tails) == 1 and all("/" in name for name in slices)
    return [(name.rpartition("/")[0] if shared else name).replace("_", " ") for name in slices]
