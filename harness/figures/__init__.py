"""Figures of the sources that are not produced by a sweep, each by its name: ``dembench figure NAME``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dembench.report.figures.drawing import Figure  # with Matplotlib, which names and titles do not need

    Draw = Callable[[Sequence[str], Sequence[Path]], Figure]


@dataclass(frozen=True, slots=True)
class SourceFigure:
    """What a figure shows, and the module that draws it: ``draw(overrides, runs)``."""

    about: str
    module: str
    function: str = "draw"

    def draw(self, overrides: Sequence[str], runs: Sequence[Path]) -> Figure:
        """The figure, not yet written.

        Args:
            overrides: key=value as for ``dembench run``, for a figure that adapts a model.
            runs: folders of runs, for a figure that shows some.
        Raises: ValueError for what the user can put right.
        """
        function: Draw = getattr(import_module(f"dembench.harness.figures.{self.module}"), self.function)
        return function(overrides, runs)


FIGURES = {
    "ttc_figure1": SourceFigure(
        "TTC Figure 1: class probabilities under descent on EM, for K classes; also on DEM and AdaDEM", "descent"
    ),
    "ttc_figure3": SourceFigure(
        "TTC Figure 3: feature densities of Source, Tent and TTC against supervised adaptation", "densities"
    ),
    "dem_figure2": SourceFigure(
        "DEM Figure 2: reward collapse, and sorted prediction shares of --runs", "rewards", "draw_collapse"
    ),
    "dem_figure3": SourceFigure(
        "DEM Figure 3: rewards of DEM over tau, and the metric over tau of --runs", "rewards", "draw_tau"
    ),
    "dem_figure4": SourceFigure(
        "DEM Figure 4: rewards of DEM over alpha, and the metric over alpha of --runs", "rewards", "draw_alpha"
    ),
}
