"""A table once, written three ways: CSV with a column per number, Markdown, and LaTeX for papers. The page shows the
same entries, so that a number has one source and one rounding."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dembench import records
from dembench.report.tables.latex import latex

FORMULA = ("=", "@", "+", "-", "|", "%")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell. ``text`` is the main line and ``sub`` the small one below; ``numbers`` are the CSV values, one for each
    of the column's ``parts``; ``sort`` is the sort key; ``span`` counts the columns that it covers."""

    text: str
    sub: str = ""
    numbers: tuple[str, ...] = ()
    sort: float | str | None = None
    mark: str = ""  # "", "best" or "tied", see ``ranking``
    span: int = 1


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; ``parts`` name the numbers of each entry in CSV (one unnamed text column without them)."""

    title: str
    parts: tuple[str, ...] = ()
    numeric: bool = True


@dataclass(slots=True)
class Table:
    """Columns, rows of entries, a caption, and footnotes. ``context`` is what a page says once for several tables, such
    as their protocol: an exported table says it itself."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Entry]]
    footnotes: list[str] = field(default_factory=list)
    context: str = ""
    made: tuple[str, str] = ("", "")  # the name that it had when LaTeX was made of it, and that

    @property
    def whole_caption(self) -> str:
        return " ".join(filter(None, [self.caption.strip(), self.context]))

    def csv(self) -> str:
        """Plain numbers, one per column, rounded as in the other formats; a spanning entry fills its first column."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header = []
        for column in self.columns:
            header += [f"{column.title}: {part}" for part in column.parts] or [column.title]
        writer.writerow([guard(name) for name in header])
        for row in self.rows:
            line, at = [], 0
            for entry in row:
                covered = self.columns[at : at + entry.span]
                at += entry.span
                width = sum(len(column.parts) or 1 for column in covered)
                values = [guard(x) for x in entry.numbers] or ["" if entry.text == "–" else guard(entry.text)]
                line += values + [""] * (width - len(values))
            writer.writerow(line)
        return out.getvalue()

    def markdown(self) -> str:
        """GitHub's dialect, caption first and footnotes last."""
        lines = [f"**{md(sentence(self.title))}** {md(self.whole_caption)}", ""]
        lines.append("| " + " | ".join(md(column.title) for column in self.columns) + " |")
        lines.append("|" + "|".join("---:" if column.numeric else ":---" for column in self.columns) + "|")
        for row in self.rows:
            cells = []
            for entry in row:
                text = md(entry.text)
                text = f"**{text}**" if entry.mark == "best" else f"<u>{text}</u>" if entry.mark == "tied" else text
                cells.append(text + (f"; {md(entry.sub)}" if entry.sub else ""))
                cells += ["\N{DITTO MARK}"] * (entry.span - 1)
            lines.append("| " + " | ".join(cells) + " |")
        lines += [f"\n{md(note)}" for note in self.footnotes]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """Table environments for a two-column paper; see ``report.tables.latex``."""
        if self.made[0] != self.name:
            self.made = self.name, latex(self)
        return self.made[1]

    def write(self, folder: Path) -> None:
        """Writes NAME.csv, NAME.md and NAME.tex into ``folder``."""
        for suffix, text in self.sources():
            records.write_plain(folder / f"{self.name}.{suffix}", text)

    def sources(self) -> Iterator[tuple[str, str]]:
        yield "csv", self.csv()
        yield "md", self.markdown()
        yield "tex", self.latex()


def slug(*parts: str) -> str:
    """A file name of a-z, 0-9 and single hyphens, from any text."""
    return re.sub("[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")[:100] or "table"


def sentence(text: str) -> str:
    """The text with one full stop at its end."""
    return text.rstrip(".") + "."


def capital(text: str) -> str:
    """The text with a capital at its start; the rest stays, as in IoU."""
    return text[:1].upper() + text[1:]


def guard(text: str) -> str:
    """Text that a spreadsheet does not run as a formula; numbers stay as they are."""
    risky = text.lstrip()[:1] in FORMULA or text[:1] in ("\t", "\r", "\n")
    return f"'{text}" if risky and not NUMBER.fullmatch(text) else text


def md(text: str) -> str:
    # a bracket alone is no link: intervals stay readable
    return re.sub(r"\s+", " ", re.sub(r"([\\`*_<>|#$~&]|\](?=[(\[:]))", r"\\\1", text))
