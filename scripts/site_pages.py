"""A hook of MkDocs (see mkdocs.yml): sources for the API, and a page for each file of the repository that is linked.

On a code host ``[tent.py](../tasks/tta/methods/tent.py)`` opens the file; the site shows the same file as a page.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "tasks", "harness", "report", "scripts")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


SOURCES = tempfile.TemporaryDirectory()  # a checkout may have any name, and hold an environment with 50,000 files


@event_priority(100)  # before mkdocstrings reads it
def on_config(config: Any) -> Any:
    package = Path(SOURCES.name) / "dembench"
    for path in [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]:
        target = package / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [SOURCES.name]
    return config


def outside(link: str, page: str) -> str | None:
    """The path in the repository of a link that leads out of docs/, else None; ``page`` is relative to docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def shown(path: str) -> str:
    """The name of the page that shows a file."""
    return "source/" + (path if path.endswith(".md") else f"{path}.md")


def on_files(files: Any, config: Any) -> Any:
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for link in LINK.findall(page.content_string):
            path = outside(link, page.src_uri)
            if path and (ROOT / path).is_file() and not files.get_file_from_path(shown(path)):
                text, language = (ROOT / path).read_text(encoding="utf-8"), path.rpartition(".")[2]
                fenced = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n``````{language}\n{text}\n``````\n"
                files.append(File.generated(config, shown(path), content=fenced))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    def moved(match: re.Match[str]) -> str:
        path = outside(match[1], page.file.src_uri)
        if path is None:
            return match[1]
        return posixpath.relpath(shown(path), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
