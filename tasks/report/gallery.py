"""Pictures that runs left behind, inside the page as data; how many and how large is bounded."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from tasks.report.group import Block, Cell
from tasks.report.names import pretty

KINDS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
}
LARGEST = 1_500_000  # bytes of one picture
ALL = 8_000_000  # bytes of all pictures of one page
MANY = 24  # pictures of one comparison


@dataclass(frozen=True, slots=True)
class Picture:
    """What it shows in words, and its data URI."""

    caption: str
    uri: str


class Gallery:
    """Collects the pictures of a page within its bounds; the rest is counted."""

    def __init__(self) -> None:
        self.left = ALL

    def of(self, block: Block) -> tuple[list[Picture], int]:
        """(pictures, how many were left out) of a comparison: the first seed that has some, of each cell."""
        found: list[Picture] = []
        out = 0
        for cell in (*block.free.values(), *block.cells.values()):
            for number, run in enumerate(run for run in cell.runs if run.artifacts()):
                for path in run.artifacts():
                    if number or len(found) >= MANY or path.stat().st_size > min(LARGEST, self.left):
                        out += path.suffix.lower() in (".png", ".gif", ".jpg", ".jpeg")
                        continue
                    content = path.read_bytes()
                    kind = next((kind for magic, kind in KINDS.items() if content.startswith(magic)), None)
                    if kind is not None:
                        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
                        self.left -= len(content)
                        found.append(Picture(f"{name(block, cell)}, seed {run.seed}: {path.name}", uri))
        return found, out


def name(block: Block, cell: Cell) -> str:
    text = " ".join(filter(None, [pretty(cell.method), block.setting_label(cell)]))
    return text if cell.loss is None else f"{text} + {block.loss_label(cell)}"
