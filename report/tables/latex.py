"""A table as LaTeX for a two-column paper: in one column where it fits, else over both, else in several parts.

Widths are those of Computer Modern, which few text fonts exceed, in a text of 468 pt with columns of 228 pt: the
narrowest of the usual styles (ICML 487.8, CVPR 496.9, IEEE 516 pt). Needs the booktabs package only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from dembench.report.judge.wording import MINUS

if TYPE_CHECKING:
    from dembench.report.tables.table import Column, Entry, Table

ONE, BOTH = 228.0, 468.0  # pt: the width of a column, and of the text
SEPARATION = 3.0  # pt, on each side of a column
SIZES = ((r"\footnotesize", 8.5), (r"\scriptsize", 7.97))  # and how many pt an em is: small sizes are wide
SMALL = {r"\footnotesize": (r"\scriptsize", 7.97), r"\scriptsize": (r"\tiny", 6.8)}
CAPS = (1e6, 16.0, 11.0, 8.0)  # em: where texts wrap, the first that fits is taken
TIGHT = 8.0  # em, where a table has parts
LINES = 46  # of a part
MOST = 500  # rows that are set
LONG = 14  # letters of a word that may break anywhere, in captions and notes

WIDTHS = {  # of Computer Modern Roman, in thousandths of an em
    **dict.fromkeys("0123456789/*agov", 500), **dict.fromkeys(".,:;'!il[]", 278), **dict.fromkeys("bdhnpu", 556),
    **dict.fromkeys("kqxy", 528), **dict.fromkeys("cez", 444), **dict.fromkeys("rst", 395), **dict.fromkeys("()", 389),
    "f": 306, "j": 306, "m": 833, "w": 722, " ": 333, "-": 333, "%": 833, "?": 472, "–": 500, "…": 1000,
}  # fmt: skip
WIDEST, CAPITAL = 800, 785  # of other signs, and of capitals but M and W

TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", MINUS: "$-$", "±": r"$\pm$", "Δ": r"$\Delta$", "τ": r"$\tau$", "α": r"$\alpha$",
    "·": r"$\cdot$", "†": r"$\dagger$", "‡": r"$\ddagger$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\dots{}",
    "ρ": r"$\rho$", "β": r"$\beta$", "λ": r"$\lambda$", "→": r"$\rightarrow$", "≈": r"$\approx$", "∞": r"$\infty$",
}  # fmt: skip

Lines = tuple[str, ...]


def latex(table: Table) -> str:
    """One table environment, or one for each part, with a caption of two sentences and the notes below."""
    parts = pieces(table)
    return "% needs \\usepackage{booktabs}\n" + "\n".join(
        environment(table, part, number, len(parts)) for number, part in enumerate(parts)
    )


class Part:
    """Columns and rows of a table that are set together, at a size and with texts wrapped to ``cap`` em."""

    def __init__(self, table: Table, columns: Sequence[int], rows: Sequence[list[Entry]], size: int, cap: float):
        self.columns = [table.columns[i] for i in columns]
        self.size, em = SIZES[size]
        self.small, small = SMALL[self.size]
        self.rows = once([chosen(row, columns) for row in rows])
        numeric = cap if cap == TIGHT else CAPS[0]
        caps = [em * (numeric if column.numeric else cap) for column in self.columns]
        self.cells = [
            [
                (wrap(entry.text, em * 1.1, caps[at]), wrap(entry.sub, small, caps[at]))
                for at, entry in zip(starts(row), row, strict=True)
            ]
            for row in self.rows
        ]
        self.widths = [0.0] * len(self.columns)
        for row, cells in zip(self.rows, self.cells, strict=True):
            for at, entry, (texts, subs) in zip(starts(row), row, cells, strict=True):
                if entry.span == 1:
                    own = [*(width(text, em * 1.1) for text in texts), *(width(text, small) for text in subs)]
                    self.widths[at] = max([self.widths[at], *own])
        self.heads = [
            wrap(column.title, em, max(own, min(caps[at], longest(column.title, em))))
            for at, (column, own) in enumerate(zip(self.columns, self.widths, strict=True))
        ]
        for at, head in enumerate(self.heads):
            self.widths[at] = max([self.widths[at], *(width(text, em) for text in head)])
        self.widen(em, small)

    def widen(self, em: float, small: float) -> None:
        """Makes room for what covers several columns and is wider than they are: its last column grows."""
        for row, cells in zip(self.rows, self.cells, strict=True):
            for at, entry, (texts, subs) in zip(starts(row), row, cells, strict=True):
                if entry.span > 1:
                    covered = sum(self.widths[at : at + entry.span]) + 2 * SEPARATION * (entry.span - 1)
                    own = max((width(text, em * 1.1) for text in texts), default=0.0)
                    own += max((width(text, small) for text in subs), default=0.0)
                    self.widths[at + entry.span - 1] += max(0.0, own + em - covered)

    @property
    def width(self) -> float:
        return sum(self.widths) + 2 * SEPARATION * (len(self.widths) - 1)


def pieces(table: Table) -> list[Part]:
    """The parts of a table: one, the narrowest measure and the largest size first, where all of it fits."""
    every, rows = range(len(table.columns)), table.rows[:MOST]
    for measure in (ONE, BOTH):
        if Part(table, every, rows, len(SIZES) - 1, CAPS[-1]).width > measure:
            continue
        for size in range(len(SIZES)):
            for cap in CAPS:
                part = Part(table, every, rows, size, cap)
                if part.width <= measure:
                    return by_rows(table, every, rows, size, cap)
    size = len(SIZES) - 1
    return [part for columns in by_columns(table, size) for part in by_rows(table, columns, rows, size, TIGHT)]


def by_columns(table: Table, size: int) -> list[list[int]]:
    """Places of columns for each part: those that name a row in each, the others one after the other."""
    count = len(table.columns)
    whole = Part(table, range(count), table.rows[:MOST], size, TIGHT)
    keys = next((i for i, column in enumerate(table.columns) if column.numeric), count)
    while keys and sum(whole.widths[:keys]) > BOTH / 2:
        keys -= 1
    parts: list[list[int]] = []
    for at in range(keys, count):
        columns = [*(parts[-1] if parts else range(keys)), at]
        wide = sum(whole.widths[i] for i in columns) + 2 * SEPARATION * (len(columns) - 1)
        if parts and wide <= BOTH:
            parts[-1].append(at)
        else:
            parts.append([*range(keys), at])
    return parts


def by_rows(table: Table, columns: Sequence[int], rows: Sequence[list[Entry]], size: int, cap: float) -> list[Part]:
    """Parts that are no higher than a page."""
    whole = Part(table, columns, rows, size, cap)
    groups: list[list[list[Entry]]] = [[]]
    used = 0
    for row, cells in zip(rows, whole.cells, strict=True):
        high = max((len(texts) + len(subs) for texts, subs in cells), default=1)
        if groups[-1] and used + high > LINES:
            groups.append([])
            used = 0
        groups[-1].append(row)
        used += high
    return [whole] if len(groups) == 1 else [Part(table, columns, group, size, cap) for group in groups]


def environment(table: Table, part: Part, number: int, count: int) -> str:
    star = "*" if part.width > ONE else ""
    title, said, notes = words(table)
    heads = [stack(map(tex, head), side(column)) for head, column in zip(part.heads, part.columns, strict=True)]
    if count > 1:
        title = f"{title.rstrip('.')}, part {number + 1} of {count}."
    label = f"tab:{table.name}" + (f"-{number + 1}" if number else "")
    lines = [
        rf"\begin{{table{star}}}[t]",
        rf"  \centering{part.size}\setlength{{\tabcolsep}}{{{SEPARATION:g}pt}}",
        rf"  \caption{{\textbf{{{prose(title)}}} {prose(said)}}}",
        rf"  \label{{{label}}}",
        rf"  \begin{{tabular}}{{@{{}}{''.join('r' if c.numeric else 'l' for c in part.columns)}@{{}}}}",
        r"  \toprule",
        f"  {' & '.join(heads)} \\\\",
        r"  \midrule",
    ]
    for row, cells in zip(part.rows, part.cells, strict=True):
        line = " & ".join(
            cell(entry, *lines, part, side(part.columns[at]))
            for at, entry, lines in zip(starts(row), row, cells, strict=True)
        )
        lines.append("  " + ("{}" if line[:1] in ("[", "*") else "") + line + r" \\")  # else the line end takes it
    lines += [r"  \bottomrule", r"  \end{tabular}"]
    if notes and not number:
        lines += [r"  \par\smallskip", rf"  \begin{{minipage}}{{\linewidth}}\scriptsize {prose(notes)}\end{{minipage}}"]
    return "\n".join([*lines, rf"\end{{table{star}}}"]) + "\n"


def words(table: Table) -> tuple[str, str, str]:
    """(title, one sentence, the rest): the caption has two sentences, and everything else is notes below."""
    title = table.title.rstrip(".") + "."
    first, _, rest = re.sub(r"(?<=[^A-Z\d][.]) (?=[“A-Z\d])", "\0", table.caption.strip()).partition("\0")
    notes = [rest.replace("\0", " "), table.context, *table.footnotes]
    if len(table.rows) > MOST:
        notes.append(f"The first {MOST} of {len(table.rows)} rows; all are in {table.name}.csv.")
    return title, first, " ".join(filter(None, notes))


def chosen(row: Sequence[Entry], columns: Sequence[int]) -> list[Entry]:
    """The entries of some columns; what covers several covers those of them that are left."""
    found = []
    for at, entry in zip(starts(row), row, strict=True):
        span = sum(at <= column < at + entry.span for column in columns)
        if span:
            found.append(entry if span == entry.span else replace(entry, span=span))
    return found


def once(rows: list[list[Entry]]) -> list[list[Entry]]:
    """Rows whose first text is said once where several rows in a row have it."""
    kept = list(rows)
    for number in range(1, len(rows)):
        first = rows[number][0] if len(rows[number]) > 1 else None
        if first is not None and first == rows[number - 1][0]:
            kept[number] = [replace(first, text="", sub=""), *rows[number][1:]]
    return kept


def starts(row: Sequence[Entry]) -> list[int]:
    """The column at which each entry begins."""
    found, at = [], 0
    for entry in row:
        found.append(at)
        at += entry.span
    return found


def side(column: Column) -> str:
    return "r" if column.numeric else "l"


def cell(entry: Entry, texts: Lines, subs: Lines, part: Part, align: str) -> str:
    """An entry: its text, bold or underlined by its mark, and below it in small letters the rest."""
    mark = {"best": r"\textbf{%s}", "tied": r"\underline{%s}"}.get(entry.mark, "%s")
    above = [mark.replace("%s", tex(text)) if text else "" for text in texts]
    below = [rf"{{{part.small} {tex(text)}}}" for text in subs]
    if entry.span > 1:
        return rf"\multicolumn{{{entry.span}}}{{c}}{{{' '.join([*above, *below])}}}"
    return stack([*above, *below], align)


def stack(lines: Sequence[str] | map[str], align: str) -> str:
    """Lines below each other, the first on the line of the row."""
    kept = [("{}" if line[:1] in ("[", "*") else "") + line for line in lines]
    if len(kept) < 2:
        return kept[0].removeprefix("{}") if kept else ""
    return rf"\begin{{tabular}}[t]{{@{{}}{align}@{{}}}}" + r"\\".join(kept) + r"\end{tabular}"


@lru_cache(maxsize=1 << 16)
def wrap(text: str, em: float, cap: float) -> Lines:
    """Lines of at most ``cap`` pt, broken between words, and within a word that is wider."""
    if text and width(text, em) <= cap:
        return (" ".join(text.split()),)
    lines: list[str] = []
    for word in text.split():
        for piece in broken(word, em, cap):
            if lines and width(f"{lines[-1]} {piece}", em) <= cap:
                lines[-1] += f" {piece}"
            else:
                lines.append(piece)
    return tuple(lines)


def broken(word: str, em: float, cap: float) -> list[str]:
    if width(word, em) <= cap:
        return [word]
    pieces = [""]
    for letter in word:
        if pieces[-1] and width(pieces[-1] + letter, em) > cap:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def longest(text: str, em: float) -> float:
    return max((width(word, em) for word in text.split()), default=0.0)


def width(text: str, em: float) -> float:
    """At least the width of a text, in pt."""
    return ems(text) * em / 1000


@lru_cache(maxsize=1 << 16)
def ems(text: str) -> int:
    """The width in thousandths of an em."""
    return sum(WIDTHS.get(sign) or (1030 if sign in "MW" else CAPITAL if sign.isupper() else WIDEST) for sign in text)


def tex(text: str) -> str:
    """Text that LaTeX sets as it is: signs of its own escaped, and a question mark for what its fonts lack."""
    return re.sub(r"\s+", " ", "".join(map(_sign, text)))


def _sign(letter: str) -> str:
    if letter in TEX:
        return TEX[letter]
    if letter.isascii():
        return letter
    base = unicodedata.decomposition(letter).split()
    accented = len(base) == 2 and not base[0].startswith("<") and 0x300 <= int(base[1], 16) <= 0x30C
    return letter if accented and chr(int(base[0], 16)).isascii() else "?"


def prose(text: str) -> str:
    """Text for a paragraph, in which long words may break."""
    return " ".join(
        tex(word) if len(word) <= LONG else r"\allowbreak{}".join(tex(word[i : i + 6]) for i in range(0, len(word), 6))
        for word in text.split()
    )
