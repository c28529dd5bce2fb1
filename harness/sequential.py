"""Sweeps that add seeds until an interval is narrow enough.

Who looks at the data after every few seeds and stops when it suits has to pay for the looks. Here all looks are planned
before the first, and each spends an equal part of the 5%: the interval at a look is Student's t interval at the level
1 - 0.05 / looks. By the union bound all of them hold the true difference together with 95%, so the last one does,
whatever made it the last. That is the simplest of the spending functions of Lan and DeMets, "Discrete Sequential
Boundaries for Clinical Trials" (1983), with flat boundaries as Pocock's (1977) and a little wider.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dembench.harness import runs
from dembench.harness.compose import GROUPS, ConfigError, Words, compose
from dembench.harness.sweeps import Planned

LEVEL = 0.05
GROWTH = 1.5  # seeds from look to look
TEXT = re.compile(r"(?:(?P<filters>[^:]*):)?\s*(?P<a>\w+)\s*-\s*(?P<b>\w+)\s*(?:\+-|±|\+/-)\s*(?P<half>\S+)\s*")


@dataclass(frozen=True)
class Until:
    """Stop when loss ``a`` minus loss ``b`` is known to ``half`` in shown units (points of a metric in %), in all runs
    with the values of ``filters``, or at ``most`` seeds."""

    text: str
    filters: Mapping[str, str]
    a: str
    b: str
    half: float
    most: int

    def looks(self, first: int) -> list[int]:
        """Numbers of seeds at which the interval is looked at, from ``first`` on."""
        found = [max(first, 2)]
        while found[-1] < self.most:
            found.append(min(self.most, math.ceil(GROWTH * found[-1])))
        return found

    def concerns(self, words: Words, config_dir: Path | None = None) -> bool:
        choices = compose({k: words[k] for k in GROUPS if k in words}, config_dir, complete=False).choices
        known = {**choices, **words}
        return known.get("loss") in (self.a, self.b) and all(
            str(known.get(key)) == value for key, value in self.filters.items()
        )

    def extended(self, many: Sequence[Words], count: int, looks: int, config_dir: Path | None = None) -> list[Words]:
        """The runs, those concerned with ``count`` seeds: their own, then the next ones; they say that they are part of
        a sequence of looks."""
        concerned = [words for words in many if self.concerns(words, config_dir)]
        seeds = sorted({int(words.get("seed", 0)) for words in concerned})
        new = [seed for seed in range(seeds[-1] + 1 + count) if seed not in seeds][: max(0, count - len(seeds))]
        told: Words = {"sequential": {"rule": self.text, "looks": looks}}
        more = [{**words, "seed": seed} for words in concerned if words.get("seed", 0) == seeds[0] for seed in new]
        return [*(words for words in many if words not in concerned), *({**w, **told} for w in [*concerned, *more])]


def read_until(text: str, most: int) -> Until:
    """A rule as written: ``method=tent protocol=continual: adadem-em +-0.3``.

    Raises: ConfigError.
    """
    match = TEXT.fullmatch(text)
    words = (match["filters"] or "").split() if match else []
    try:
        half = float(match["half"]) if match else math.nan
    except ValueError:
        half = math.nan
    if not match or not half > 0 or not all("=" in word for word in words):
        example = "'method=tent: adadem-em +-0.3'"
        raise ConfigError(f"--until {text!r}: expected [KEY=VALUE ...:] LOSS-LOSS +-NUMBER, as in {example}")
    if most < 2:
        raise ConfigError(f"--max-seeds: expected at least 2, got {most}")
    filters = dict(word.split("=", 1) for word in words)
    return Until(text, filters, match["a"], match["b"], half, most)


def half_width(differences: Sequence[float], looks: int) -> float:
    """Half the t interval of the mean at one of so many looks; infinite of one value, 0 of equal ones."""
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return math.inf
    return float(stdtrit(n - 1, 1 - LEVEL / looks / 2)) * float(np.std(differences, ddof=1)) / math.sqrt(n)


def widths(planned: Iterable[Planned], until: Until, looks: int, config_dir: Path | None = None) -> dict[str, float]:
    """{what is compared: half its interval in shown units}, by the results on disk.

    Raises: ConfigError where nothing is to be compared.
    """
    sides: dict[str, dict[str, dict[str, dict[int, float]]]] = defaultdict(lambda: defaultdict(dict))
    for run in planned:
        if until.concerns(run.words, config_dir) and (result := runs.read_result(run.directory)) is not None:
            rest = {k: v for k, v in run.words.items() if k.split(".")[0] not in ("loss", "seed", "sequential")}
            options = {k: v for k, v in run.words.items() if k.startswith("loss.")}
            by_seed = sides[repr(rest)][run.config["choices"]["loss"]].setdefault(repr(options), {})
            by_seed[run.config["seed"]] = shown_value(result)
    found = {}
    for name, by_loss in sides.items():
        for own, ours in by_loss.get(until.a, {}).items():
            for other, theirs in by_loss.get(until.b, {}).items():
                values = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
                finite = [value for value in values if math.isfinite(value)]
                found[f"{name} {own} {other}"] = half_width(finite, looks)
    if not found:
        raise ConfigError(f"--until {until.text!r}: no run of {until.a} has one of {until.b} beside it")
    return found


def shown_value(result: Mapping[str, Any]) -> float:
    """The number that a run is judged by, in the unit that is shown; NaN where it has none."""
    metrics = result["labels"]["task"]["metrics"]
    means = {row["metric"]: row for row in result["rows"] if row["slice"] == "mean"}
    row = next((means[name] for name in metrics if name in means), None)
    if row is None or row["value"] is None:
        return math.nan
    percent = (metrics[row["metric"]] or {}).get("unit") == "%" and row["unit"] == "fraction"
    return float(row["value"]) * (100 if percent else 1)
