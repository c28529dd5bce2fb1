"""Drawing without a window system: one canvas, saved as SVG for the page and as PDF and PNG for papers.

The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dembench import records
from dembench.report.judge.group import Block, Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

INK = "#010203"  # becomes the page's own text colour
GREY = "#6b6e76"
# by loss, after Okabe and Ito; the page swaps them for lighter ones in the dark
COLOURS = {"em": "#c8501e", "dem": "#0e8a62", "dem_star": "#8a6d00", "adadem": "#0b62b0"}
SPARE = ("#a0428c", "#5b54b0", "#3a3f4a", "#00808a", "#b3124a", "#5a7d00")
PALETTE = (*COLOURS.values(), *SPARE, GREY)
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 1)))
STYLE: Any = {
    "svg.hashsalt": "dembench",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(slots=True)
class Figure:
    """A figure with its name, title and caption: a canvas at first, then what it looks like in each format."""

    name: str
    title: str
    caption: str
    canvas: Canvas | None
    width: int = 0
    svg: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    def draw(self, files: bool = True) -> None:
        """Draws the SVG, and with ``files`` PDF and PNG, into memory; the canvas is given up, and the figure can go to
        another process. The files take five times as long as the SVG.

        Raises: ValueError where there is no canvas.
        """
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        figure, svg = self.canvas, io.StringIO()
        if figure is None:
            raise ValueError(f"report: figure {self.name} is drawn already")
        with matplotlib.rc_context(STYLE):
            if (layout := figure.get_layout_engine()) is not None:
                layout.execute(figure)
            figure.set_layout_engine("none")  # the layout is found; savefig would search for it once per format
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
            self.files = self._files(figure) if files else {}
        self.svg, self.width = svg.getvalue(), round(figure.get_figwidth() * 96)
        self.canvas = None

    def _files(self, figure: Canvas) -> dict[str, bytes]:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_pdf import FigureCanvasPdf

        pdf, png = io.BytesIO(), io.BytesIO()
        figure.patch.set_facecolor("white")
        metadata = {"CreationDate": None, "ModDate": None, "Title": self.title}
        FigureCanvasPdf(figure).print_pdf(pdf, metadata=metadata)
        figure.set_dpi(160)
        FigureCanvasAgg(figure).print_png(png)
        return {"pdf": pdf.getvalue(), "png": png.getvalue()}

    def write(self, folder: Path) -> None:
        """Writes NAME.pdf and NAME.png into ``folder``, as far as they are drawn, and keeps the SVG for the page."""
        if self.canvas is not None:
            self.draw()
        for suffix, content in self.files.items():
            records.write_plain(folder / f"{self.name}.{suffix}", content)
        self.files = {}
        self.svg = inline(self.svg, self.name)


def colour_of(column: Key | None, block: Block) -> str:
    """The colour of a loss; grey where there is none."""
    if column is None:
        return GREY
    if column[0] in COLOURS:
        return COLOURS[column[0]]
    others = sorted({loss for loss, _ in block.columns} - COLOURS.keys())
    return SPARE[others.index(column[0]) % len(SPARE)]


def line_of(column: Key, block: Block) -> Any:
    """The line style of a setting of a loss."""
    same = [key for key in block.columns if key[0] == column[0]]
    return LINES[same.index(column) % len(LINES)]


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Canvas, np.ndarray]:
    """An empty figure and its axes as an array of (rows, columns); no window system is touched."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def inline(svg: str, name: str) -> str:
    """An SVG document as an element: no prolog, metadata or namespaces, ids of its own, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head) + f' role="img" aria-labelledby="{name}-title"'
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = body.replace(INK, "currentColor")
    for number, colour in enumerate(PALETTE):
        body = body.replace(colour, f"var(--p{number}, {colour})")
    return f"{head}>{body}"
