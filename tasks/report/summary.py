"""The first screen: what each loss gains over EM in every task, and the verdict on it in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.report.drawing import Figure
from tasks.report.headlines import Headline
from tasks.report.tables import Table
from tasks.report.verdict import Verdict


@dataclass(slots=True)
class FirstScreen:
    """Sentences, the table over all tasks and its figure; then the tests, and the limits of what was measured."""

    lines: list[Headline] = field(default_factory=list)
    items: list[Table | Figure] = field(default_factory=list)
    details: list[Table | Figure] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def first_screen(verdicts: Sequence[Sequence[Verdict]], with_figures: bool) -> FirstScreen:
    """Everything above the sections, from the verdicts of each comparison."""
    return FirstScreen()
