"""Pictures that runs left behind, inside the page as data; how many and how large is bounded."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from dembench import records
from dembench.report.judge.group import Block, Cell
from dembench.report.read.names import pretty
from dembench.report.read.record import clean

KINDS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
}
SUFFIXES = (".png", ".gif", ".jpg", ".jpeg")
LARGEST = 1_500_000  # bytes of one picture
ALL = 6_000_000  # bytes of all pictures of one page
MANY = 24  # pictures of one comparison
SMALL = 180  # pixels up to which a picture is shown larger than it is
WIDE = 600  # pixels from which a picture gets half of the page's width


@dataclass(frozen=True, slots=True)
class Picture:
    """What it shows in words, its data URI, and its width in pixels, 0 where that is not known."""

    caption: str
    uri: str
    width: int

    @property
    def wide(self) -> bool:
        """Whether it needs much room."""
        return self.width >= WIDE

    @property
    def small(self) -> bool:
        """Whether its pixels are so few that it is shown larger."""
        return 0 < self.width < SMALL


class Gallery:
    """Collects the pictures of a page within its bounds; the rest is counted."""

    def __init__(self) -> None:
        self.left = ALL

    def of(self, block: Block) -> tuple[dict[str, list[Picture]], int]:
        """({file name: its pictures}, how many were left out) of a comparison, from the first seed of each cell that
        has some: what shows the same thing stands side by side."""
        found: dict[str, list[Picture]] = {}
        out = 0
        for cell in (*block.free.values(), *block.cells.values()):
            kept = ((run, files) for run in cell.runs if (files := run.pictures()))
            for number, (run, files) in enumerate(kept):
                for path in files:
                    room = not number and sum(map(len, found.values())) < MANY
                    content = self.read(path) if room else None
                    kind = next((kind for magic, kind in KINDS.items() if content and content.startswith(magic)), None)
                    if content is None:
                        out += path.suffix.lower() in SUFFIXES
                    elif kind is not None:
                        self.left -= len(content)
                        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
                        picture = Picture(f"{name(block, cell)}, seed {run.seed}", uri, width_of(content))
                        found.setdefault(clean(path.name), []).append(picture)
        return dict(sorted(found.items())), out

    def read(self, path: Path) -> bytes | None:
        """The content of a file that fits into what is left; None for another or one that cannot be read."""
        try:
            return records.read_plain(path, min(LARGEST, self.left))
        except (OSError, ValueError):
            return None


def width_of(content: bytes) -> int:
    """Pixels across, as a PNG or a GIF states them; 0 for another file."""
    if content.startswith(b"\x89PNG"):
        return int.from_bytes(content[16:20], "big")
    return int.from_bytes(content[6:8], "little") if content.startswith(b"GIF8") else 0


def name(block: Block, cell: Cell) -> str:
    text = " ".join(filter(None, [pretty(cell.method), block.setting_label(cell)]))
    return text if cell.loss is None else f"{text} + {block.loss_label(cell)}"
