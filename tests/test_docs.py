"""The documents: every link and anchor leads somewhere, every Python block runs, every command is understood; the site
is built without a warning where MkDocs is installed.

A block with ``title="FILE"`` is that file. A comment ``<!-- before ... -->`` holds Python that a block needs and
a reader does not. The commands of a block after ``<!-- run -->`` are run, others only read; Python after
``<!-- not run: REASON -->`` is only compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dembench.harness import compose, sweeps
from dembench.lookup import lookup
from dembench.report.page.readme import BLOCK
from dembench.scripts.cli import COMMANDS, main
from dembench.tasks.common import trust

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<kind>run|not run: [^>]+) -->\s*)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$|"
    r"^<!-- before\n(?P<before>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([^()\s]+)\)")
COMMAND = re.compile(r"^(?:\.venv/bin/)?dembench (.+)$")


PLACEHOLDER = re.compile(r"[a-z]+=[A-Z]+")  # as in loss=L; DIR in data.root=DIR stays, for that key needs a value
NUMBER = r"[+−]?\d+(?:\.\d+)?"
INTERVAL = re.compile(rf"(?:({NUMBER})(?: points)? )?\[({NUMBER}), ({NUMBER})\]|({NUMBER}) ± ({NUMBER})")
ELSEWHERE = re.compile(r"<!-- elsewhere: .+? -->.*?<!-- end -->", re.DOTALL)  # of other runs
PAGE_LINK = re.compile(r"\]\(((?:results/)?\w+/README\.md)\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its code blocks and inline code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Those of the headings that a code host and MkDocs name alike."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower() for heading in headings]
    hosts = [re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts]
    ascii_only = [unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() for text in texts]
    mkdocs = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip()) for text in ascii_only]
    return {host for host, other in zip(hosts, mkdocs, strict=True) if host == other}


def broken(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading"


def test_every_link_and_anchor_leads_somewhere(tmp_path: Path) -> None:
    found = {name(page): list(broken(page)) for page in PAGES}
    assert not {page: links for page, links in found.items() if links}
    assert "which-one-to-use" in anchors(ROOT / "docs" / "losses.md")
    wrong = tmp_path / "wrong.md"
    wrong.write_text("# A heading\n[a](#a-heading) [b](#a-headin) [c](nothing.md) `[d](d.md)`\n")
    assert len(list(broken(wrong))) == 2


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents]
    assert sorted(named) == sorted(pages)


SECTIONS = {
    "tta": "Corruption test-time adaptation", "prompt": "Prompts", "semi": "Semi-supervised and long-tailed learning",
    "longtail": "Semi-supervised and long-tailed learning", "segmentation": "Segmentation",
    "minigrid": "Reinforcement learning",
}  # fmt: skip


@pytest.mark.parametrize("task", SECTIONS)
def test_every_method_has_a_row_that_says_how_near_it_is_to_its_original(task: str) -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## {SECTIONS[task]}\n")
    rows = "\n".join(re.findall(r"^\|.+\|$", section.partition("\n## ")[0], re.MULTILINE))
    missing = []
    for file in sorted((ROOT / "configs" / "method" / task).glob("*.yaml")):
        label = re.search(r"^_label_: \{title: \"?([^,\"}]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        names = [f"`{file.stem}`", *([rf"(?<![\w-]){re.escape(label[1])}(?![\w-])"] if label else [])]
        if label and not re.search("|".join(names), rows):  # presets have the row of their method
            missing.append(file.stem)
    assert rows
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")], ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python blocks one after the other, in one namespace and an empty folder."""
    text = page.read_text(encoding="utf-8")
    if "stable_baselines3" in text:
        pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(trust.ALLOWED, "")  # what a page allows, it allows to itself
    space: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for block in FENCE.finditer(text):
            source = block["before"] or (block["text"] if block["language"] == "python" else "")
            if block["title"]:
                (tmp_path / block["title"]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / block["title"]).write_text(block["text"])
            elif source:
                line = text.count("\n", 0, block.start("before" if block["before"] else "text"))
                code = compile("\n" * line + source, str(page), "exec")
                if not (block["kind"] or "").startswith("not run"):
                    exec(code, space)
            if block["kind"] == "run":
                for words in commands(block["text"]):
                    assert main(words) == 0, words


def commands(text: str) -> list[list[str]]:
    """The commands of a block of code, without their names."""
    lines = [COMMAND.match(line.strip()) for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(found[1], comments=True) for found in lines if found]


def told(page: Path) -> Iterator[list[str]]:
    """The commands of a page that are not run, also those in its sentences."""
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block["text"] is not None and not block["kind"] and block["language"] not in ("python", "yaml"):
            yield from commands(block["text"])
    for code in re.findall(r"(?<!`)`(dembench [^`\n]+)`(?!`)", FENCE.sub("", text)):
        yield from commands(code)


def understood(words: list[str], folder: Path) -> None:
    """Reads a command as far as its names and keys; what it is about need not be here."""
    command, *rest = [word for word in words if not PLACEHOLDER.fullmatch(word)]
    module = importlib.import_module(f"dembench.scripts.{lookup(command, COMMANDS, 'command')}")
    if command == "check" and rest[0] != "gpu":
        module = importlib.import_module("dembench.scripts.check_own")
    if not rest or command in ("demo", "bench"):
        assert command != "bench" or rest[0] == "NAME" or lookup(rest[0], module.BENCHES, "bench")
        return
    if command == "sweep" and "study=NAME" in words:
        rest = ["demo", *rest]
    parsed = module.parser().parse_intermixed_args(rest)
    own = folder / parsed.config_dir if getattr(parsed, "config_dir", None) else None
    if command == "run":
        compose.compose(parsed.overrides, own)
    elif command == "sweep":
        file = folder / parsed.sweep if (folder / parsed.sweep).exists() else parsed.sweep
        if parsed.sweep not in ("FILE", "my_grid.yaml"):
            runs = sweeps.expand(sweeps.read_sweep(str(file), own), sweeps.read_overrides(parsed.overrides))
            compose.compose(runs[0], own)
    elif command == "data":
        from dembench.scripts.data import known

        lookup(parsed.name, known(), "dataset")
    elif command == "list" and parsed.group is not None and "/" not in parsed.group and parsed.group != "runs":
        lookup(parsed.group, module.ORDER, "group")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_a_page_is_understood(page: Path, tmp_path: Path) -> None:
    """Parsed, and the configuration of a run composed, so that a wrong name or key fails."""
    for block in FENCE.finditer(page.read_text(encoding="utf-8")):
        if block["title"]:
            (tmp_path / block["title"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block["title"]).write_text(block["text"])
    for words in told(page):
        if "..." in " ".join(words):
            continue
        try:
            understood(words, tmp_path)
        except (ValueError, SystemExit) as error:
            pytest.fail(f"dembench {shlex.join(words)}: {error}")


def test_a_wrong_command_is_found(tmp_path: Path) -> None:
    for wrong in ("run methd=tent", "run method.rate=1", "sweep dmo", "list protocol model", "data fetch cifar", "rn"):
        with pytest.raises((ValueError, SystemExit)):
            understood(wrong.split(), tmp_path)


def numbers(text: str) -> list[tuple[str, list[str]]]:
    """Every number with an interval: as it is printed, and its parts."""
    found = INTERVAL.finditer(text.replace("; [", " ["))
    return [(match[0], [part for part in match.groups() if part is not None]) for match in found]


def same(parts: list[str], others: list[str]) -> bool:
    """Whether a number is the other one, or that one rounded; an interval may stand alone."""
    for part, other in zip(parts, others[-len(parts) :], strict=False):
        digits = len(part.partition(".")[2])
        a, b = (float(text.replace("−", "-")) for text in (part, other))
        if abs(a - b) > 0.5 * 10**-digits + 1e-9:
            return False
    return len(parts) <= len(others)


def missing(text: str, tables: str) -> list[str]:
    there = numbers(tables)
    return [printed for printed, parts in numbers(text) if not any(same(parts, others) for _, others in there)]


def tables_of(page: Path) -> str:
    return "\n".join(match["old"] for match in BLOCK.finditer(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "results").glob("*/README.md")), ids=lambda page: page.parent.name
)
def test_every_number_with_an_interval_in_the_prose_of_a_page_is_in_its_tables(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not missing(ELSEWHERE.sub("", BLOCK.sub("", text)), tables_of(page))


@pytest.mark.parametrize("page", [ROOT / "docs/results/README.md", ROOT / "docs/losses.md"], ids=name)
def test_every_number_beside_a_claim_is_in_a_table_of_the_page_that_is_linked(page: Path) -> None:
    rows = [
        row for row in page.read_text(encoding="utf-8").splitlines() if row.startswith("| ") and INTERVAL.search(row)
    ]
    assert len(rows) >= 7
    for row in rows:
        pieces = PAGE_LINK.split(row)  # text before a link, the link, text before the next, ...
        assert len(pieces) > 1, row
        for text, link in zip(pieces[::2], pieces[1::2], strict=False):
            assert not missing(text, tables_of(page.parent / link)), link


def test_a_false_number_is_found() -> None:
    table = "| 36.68 ± 0.15 (3); +0.42 [+0.34, +0.50] |"
    assert not missing("by +0.4 points [+0.3, +0.5], 36.7 ± 0.2, [+0.34, +0.50]", table)
    for false in ("+0.43 [+0.34, +0.50]", "[+0.34, +0.51]", "−0.42 [+0.34, +0.50]", "36.69 ± 0.15", "36.8 ± 0.2"):
        assert missing(false, table) == [false]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(module) for module in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip('the site needs pip install "dembench[docs]"')
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) - 2
    loaded = re.compile(r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+href="https?:')
    assert not [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))]
    assert "calibrator" in (tmp_path / "api.html").read_text(encoding="utf-8")  # of a docstring
