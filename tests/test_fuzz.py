"""Damaged files at every place that reads one: each ends as data of the kind that was asked for, or in one line.

A file is damaged in the ways that a disk, a network or a hand does it: bits flipped, cut off, emptied, doubled, a part
nested in itself, a value of another type, the file of another loader under its name. Nothing is run, nothing is waited
for, and nothing but a ValueError or an OSError comes out, which the commands print as one line.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from report_runs import make_run
from safetensors.torch import save_file

from dembench import records
from dembench.harness import compose as composing
from dembench.harness import runs, sweeps
from dembench.harness.compose import compose
from dembench.harness.search import dem_star
from dembench.report.read import runs_csv
from dembench.report.read.record import lines
from dembench.tasks.common import cache, decoding
from dembench.tasks.common.archives import members
from dembench.tasks.common.hashes import _read as read_hashes
from dembench.tasks.common.image_folders import read_lines
from dembench.tasks.common.tensors import load_checkpoint, read_tensors
from dembench.tasks.common.weights import read_state
from dembench.tasks.prompt.coop import read_context, write_context
from dembench.tasks.semi.published import MedMNIST

MARKER = "touch marker"
SLOWEST = 5.0  # seconds for a file
TREE: dict[str, Any] = {"_target_": "os.system", "command": MARKER}
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    10**30,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    TREE,
    [TREE],
    "${oc.env:HOME}",
    "!!",
)


ODD_FILES = (
    *(b"", b"\0", b"null", b"[]", b"{}", b"3", b"\xff\xfe", b"[" * 5000, b"a: " * 5000, b"&a [*a]"),
    b"!!python/object/apply:os.system ['touch marker']",
)


@dataclass(frozen=True)
class Loader:
    """One that reads a file.

    Args:
        name: of the file. whole: its bytes. read: the loader, given the path.
        count: mutations. exact: damage of any kind is noticed, because the file holds its own sum.
        tree: as what the file can be changed in its parts: "json" or "yaml".
        blames: the message names the file.
    """

    name: str
    whole: bytes
    read: Callable[[Path], Any]
    count: int
    exact: bool = False
    tree: str = ""
    blames: bool = True


def saved(write: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    return saved(lambda file: Image.fromarray(pixels).save(file, kind))


def archive(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for number in range(3):
            content = picture("PNG")
            info = tarfile.TarInfo(f"set/class_{number}/{number}.png")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def kept(path: Path, save: Callable[[Path, Any], None], value: Any) -> bytes:
    save(path, value)
    return path.read_bytes()


STATE = {f"layer{k}.weight": torch.arange(12.0).view(3, 4) + k for k in range(4)}
SWEEP = {"base": {"method": "tent", "out": "runs", "data.num_images": 10}, "grids": [{"seed": [0, 1], "loss": ["em"]}]}
LOSS = {"_target_": "dembench.core.DEM", "_label_": {"title": "Mine", "order": 3}, "tau": 1.2, "alpha": 0.5}


def compose_own(path: Path) -> Any:
    """A run whose loss is in this file of a folder of one's own."""
    composing._check_config_dir_once.cache_clear()
    return compose(["loss=mine"], path.parents[1])


def journal(path: Path) -> Any:
    from dembench.harness.experiment import user_errors
    from dembench.harness.search.trials import Search, Settings

    with user_errors():
        return Search(path.parent, Settings(trials=2)).done()


def loaders(folder: Path) -> Iterator[Loader]:
    """All loaders; files that take a while to make are made in ``folder``."""
    run = make_run(folder)
    result = (run / "result.json").read_bytes()
    yield Loader(f"{run.name}/result.json", result, lambda path: runs.read_result(path.parent), 260, tree="json")
    key = runs.run_id({}, {})
    search = {
        "schema": 1, "id": key, "task": "tta", "method": "tent", "model": "net", "data": "d", "protocol": "p",
        "pair": {"tau": 1.3, "alpha": 0.4}, "metric": "error", "value": 0.2, "at_one_one": None,
        "settings": {"trials": 2, "space": "grid", "order": "joint", "startup": 2, "seed": 0, "run_seeds": [0],
                     "metric": None},
        "subset": {"share": 0.2, "seed": 0, "samples": 4, "text": "20%"},
        "cost": dict.fromkeys(("cpu_seconds", "wall_seconds", "forward_passes", "backward_passes", "runs"), 1.0),
        "trials": [{"number": 0, "tau": 1.0, "alpha": 1.0, "status": "ok", "value": 0.3, "runs": {}}],
        "identity": {}, "fingerprints": {}, "environment": {}, "finished": "", "command": "",
    }  # fmt: skip
    yield Loader(f"tta-tent-{key}/search.json", json.dumps(search).encode(), dem_star.read, 240, tree="json")
    tuning = {
        **{key: search[key] for key in ("schema", "id", "task", "method", "model", "data", "protocol", "metric",
                                        "subset", "cost", "identity", "fingerprints", "environment", "finished",
                                        "command")},
        "loss": "em", "keys": ["method.lr"],
        "space": [{"key": "method.lr", "low": 1e-5, "high": 0.1, "log": True, "whole": False}],
        "preset": {"method.lr": 1e-3}, "better": "lower", "settings": {"trials": 1, "run_seeds": [0]},
        "trials": [{"number": 0, "values": {"method.lr": 1e-3}, "status": "ok", "seeds": {"0": {"error": 0.2}}}],
        "choices": {"oracle": {"trial": 0, "values": {"method.lr": 1e-3}}}, "absent": {"information": "none"},
    }  # fmt: skip
    yield Loader(f"tta-tent-em-{key}/tune.json", json.dumps(tuning).encode(),
                 lambda path: dem_star.read_record(path, records.TUNE), 200, tree="json")  # fmt: skip
    yield Loader("manifest.json", b'{"files": ["tables/a.csv"]}',
                 lambda path: records.read_json(path, {"files": [str]}), 60, tree="json")  # fmt: skip
    yield Loader("sweep.yaml", yaml.safe_dump(SWEEP).encode(), lambda path: sweeps.expand(sweeps.read_sweep(str(path))),
                 200, tree="yaml")  # fmt: skip
    yield Loader("own/loss/mine.yaml", yaml.safe_dump(LOSS).encode(), compose_own, 40, tree="yaml", blames=False)
    head = {"format": "dembench records", "schema": 1, "runs": 1, "curves": False, "pictures": False}
    exported = gzip.compress(json.dumps(head).encode() + b"\n" + result + b"\n")
    yield Loader("runs.jsonl.gz", exported, lambda path: [line.record() for line in lines(path)], 100, blames=False)
    table = "run,task,data,model,protocol,method,loss,status,seed,setting,loss setting,error (%)\n"
    table += '0123456789ab,tta,d,m,p,tent,em,ok,0,"lr 1e-3, steps 1",,20.5\n'
    yield Loader(
        "runs.csv", table.encode(), lambda path: [row.record() for row in runs_csv.rows(path)], 100, blames=False
    )

    for save, load, value in (
        (cache.save_array, cache.load_array, np.arange(60, dtype=np.uint8).reshape(3, 20)),
        (cache.save_state, cache.load_state, STATE),
        (cache.save_json, cache.load_json, {"lossy": False, "notes": [["key", "text"]]}),
    ):
        name = f"cache/{load.__name__}"
        yield Loader(name, kept(folder / name, save, value), load, 100, exact=True)
    yield Loader("hashes.bin", bytes.fromhex(  # of no entries
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), read_hashes, 40, exact=True)  # fmt: skip

    checkpoint = saved(lambda file: torch.save({"state_dict": STATE, "epoch": 3}, file))
    save_file(STATE, folder / "x.safetensors")
    yield Loader("net.safetensors", (folder / "x.safetensors").read_bytes(), read_state, 100)
    yield Loader("net.pt", checkpoint, read_state, 120)
    yield Loader("semi.pt", checkpoint, read_state, 60)
    yield Loader("any.pt", checkpoint, load_checkpoint, 40)
    yield Loader("objects.pt", checkpoint, read_tensors, 80)
    yield Loader("coop.pt", write_context(torch.rand(4, 8), "tiny", ("a", "b")), read_context, 80)

    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"):
        yield Loader(f"picture.{kind.lower()}", picture(kind), decoding.decode, 50)
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        yield Loader(f"images.tar.{mode[2:]}", archive(mode),
                     lambda path: list(members(path, "folders", {"set/class_1/1.png"})), 30)  # fmt: skip
    arrays = {f"{part}_images": np.zeros((4, 28, 28), np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": np.zeros((4, 1), np.uint8) for part in ("train", "val", "test")}
    yield Loader("mnist.npz", saved(lambda file: np.savez_compressed(file, **arrays)),
                 lambda path: MedMNIST(path).train, 100)  # fmt: skip
    yield Loader("names.txt", "hen\nhühnchen\n".encode(), lambda path: read_lines(path, "data.class_names"), 60)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> list[Loader]:
    return list(loaders(tmp_path_factory.mktemp("whole")))


def damaged(loader: Loader, others: list[bytes], draws: random.Random) -> Iterator[bytes]:
    whole = loader.whole
    yield from ODD_FILES
    yield from (whole + whole, whole[: len(whole) // 2])
    yield from others
    tree = {"json": json.loads, "yaml": yaml.safe_load}[loader.tree](whole) if loader.tree else None
    while True:
        kind = draws.choice(("flip", "flip", "flip", "cut", "noise", "slice", "tree", "tree"))
        if kind == "tree" and tree is not None:
            dump = json.dumps if loader.tree == "json" else yaml.safe_dump
            yield dump(planted(tree, draws)).encode("utf-8", "surrogatepass")
            continue
        changed = bytearray(whole)
        if kind == "cut":
            changed = changed[: draws.randrange(len(whole))]
        elif kind == "slice":
            start = draws.randrange(len(whole))
            changed[start : start + draws.randrange(1, 40)] = draws.randbytes(draws.choice((0, 1, 7, 60)))
        else:
            for _ in range(1 if kind == "flip" else draws.randrange(2, 20)):
                changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        if bytes(changed) != whole:
            yield bytes(changed)


def planted(tree: Any, draws: random.Random) -> Any:
    """With one part that is another value, lacks, or is inside itself."""
    tree = json.loads(json.dumps(tree))
    node, key, parent = tree, None, None
    while isinstance(node, dict | list) and node and draws.random() < 0.8:
        parent, key = node, draws.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    if parent is None:
        return draws.choice(ODD)
    match draws.randrange(4):
        case 0:
            del parent[key]
        case 1:
            parent[key] = [node, {"x": node}]
        case 2 if isinstance(parent, dict):
            parent[draws.choice(("_target_", "unheard of", "_args_"))] = draws.choice(ODD)
        case _:
            parent[key] = draws.choice(ODD)
    return tree


def test_damage_ends_in_one_line(every: list[Loader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for loader in every:
        path = tmp_path / "files" / loader.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(loader.whole)
        assert loader.read(path) is not None, loader.name
        others = [other.whole for other in every if other.whole != loader.whole and not other.tree][::3]
        mutations = damaged(loader, others, random.Random(loader.name))
        for number, content in zip(range(loader.count), mutations, strict=False):
            path.write_bytes(content)
            start = time.perf_counter()
            try:
                found = loader.read(path)
            except (ValueError, OSError) as error:
                counts["refused"] += 1
                said = str(error)
                if "\n" in said or not said or len(said) > 1000 or (loader.blames and path.name not in said
                                                                     and path.parent.name not in said):  # fmt: skip
                    wrong.append(f"{loader.name} {number}: {said[:200]!r}")
            except Exception as error:
                counts["traceback"] += 1
                wrong.append(f"{loader.name} {number}: {type(error).__name__}: {str(error)[:200]} {content[:80]!r}")
            else:
                counts["silent" if loader.exact and not empty(found) else "accepted"] += 1
                if loader.exact and not empty(found):
                    wrong.append(f"{loader.name} {number}: damage was not noticed")
            if (took := time.perf_counter() - start) > SLOWEST:
                wrong.append(f"{loader.name} {number}: {took:.1f} s")
        counts["executed"] += (tmp_path / "marker").exists()
        path.unlink()
    print(dict(counts))
    assert not wrong, "\n".join(wrong[:40])
    assert not counts["executed"]
    assert sum(counts.values()) >= 2000


def empty(found: Any) -> bool:
    """Whether a cache has nothing, so that it is made again."""
    return found is None or (isinstance(found, dict) and not found)


def test_a_damaged_journal_of_a_search_is_one_line(tmp_path: Path) -> None:
    """Optuna's own file; slower than the others."""
    from dembench.harness.search.trials import Settings

    path = tmp_path / f"{Settings(trials=2).name}.journal"
    assert journal(path) == []
    loader = Loader(path.name, path.read_bytes(), journal, 60)
    accepted, wrong = 0, []
    for number, content in zip(range(loader.count), damaged(loader, [], random.Random(0)), strict=False):
        path.write_bytes(content)
        try:
            journal(path)
            accepted += 1
        except (ValueError, OSError) as error:
            if "\n" in str(error) or str(tmp_path) not in str(error):
                wrong.append(f"{number}: {error} {content[:80]!r}")
    assert not wrong
    assert accepted < loader.count


def test_a_search_on_a_damaged_journal_goes_on_or_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, on journals that are damaged anywhere."""
    from dembench.scripts.cli import main

    monkeypatch.chdir(tmp_path)
    configs = Path(__file__).parent / "support" / "search_configs"
    words = ["search", "task=plane", f"out={tmp_path}", "progress=false", "--trials", "2"]
    words += ["--startup", "1", "--config-dir", str(configs)]
    assert main(words) == 0
    result = Path(capsys.readouterr().out.strip())
    (path,) = result.parent.glob("*.journal")
    loader = Loader(path.name, path.read_bytes(), journal, 60)
    statuses: Counter[object] = Counter()
    for number, content in zip(range(loader.count), damaged(loader, [], random.Random(1)), strict=False):
        result.unlink(missing_ok=True)
        path.write_bytes(content)
        status = main(words)
        told = capsys.readouterr()
        statuses[status] += 1
        if status == 0:
            assert json.loads(Path(told.out.strip()).read_text())["pair"]
        else:
            assert (status, told.out) == (2, ""), (number, told.err, content[:200])
            lines = [line for line in told.err.splitlines() if not line.startswith(("[", "searching"))]  # before it
            assert len(lines) == 1
            assert lines[0].startswith("dembench search: ")
            assert str(path) in lines[0]
    assert set(statuses) == {0, 2}
