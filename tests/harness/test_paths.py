"""What paths in a configuration name counts in the id by its bytes, wherever it is, and every such key is known."""

from __future__ import annotations

import inspect
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from image_cases import classes

from dembench.harness import experiment, runs
from dembench.harness.compose import compose
from dembench.harness.sweeps import plan
from dembench.harness.targets import locate
from dembench.tasks.common import trust
from dembench.tasks.common.wnids import imagenet_wnids

CONFIGS = Path(__file__).parents[2] / "configs"
TTA = ["task=tta", "model=torchvision", "model.arch=resnet18", "model.weights=null"]
PROMPT = ["task=prompt", "model=digits_clip"]  # which is not trained before it runs


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


def test_every_key_that_can_hold_a_path_is_known() -> None:
    """By the annotations of what the configurations build, and by values that name a place."""
    found = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        for node in nodes(yaml.safe_load(file.read_text(encoding="utf-8"))):
            if node["_target_"] == "???":  # that the user gives
                continue
            target = locate(node["_target_"], str(file))
            hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
            for key, value in node.items():
                named = isinstance(value, str) and ("DEMBENCH_DATA" in value or "/" in value.partition("#")[0])
                if "Path" in str(hints.get(key)) or named:
                    found.setdefault(key, file)
    found.pop("task", None)
    assert {"root", "weights", "source", "file", "class_names", "train", "config_file", "subset"} <= found.keys()
    assert found.keys() <= runs.PATH_KEYS | runs.NAMED_PATHS


def image_folder(root: Path, each: int = 2) -> Path:
    return classes(root, "bmp", names=("ant", "bee", "cow"), each=each)


def tta_root(place: Path) -> tuple[list[str], Path]:
    root = image_folder(place / "images")
    return [*TTA, "model.num_classes=3", "data=image_folder", f"data.root={root}"], root / "bee" / "001.bmp"


def tta_source(place: Path) -> tuple[list[str], Path]:
    wnids = imagenet_wnids(None)[:3]
    root, source = (classes(place / name, "bmp", names=wnids, each=2) for name in ("images", "clean"))
    return [*TTA, "data=imagenet_a", f"data.root={root}", f"data.source={source}"], source / wnids[0] / "000.bmp"


def tta_subset(place: Path) -> tuple[list[str], Path]:
    wnids = imagenet_wnids(None)[:3]
    root = place / "c"
    for name in ("fog", "snow"):
        classes(root / name / "5", names=wnids, each=3)
    (place / "ids.txt").write_text("".join(f"{wnid}/000.JPEG\n" for wnid in wnids))
    words = [*TTA, "data=imagenet_c", f"data.root={root}", f"data.subset={place / 'ids.txt'}"]
    return [*words, "protocol.corruptions=[fog,snow]"], place / "ids.txt"


def prompt(place: Path) -> list[str]:
    return [*PROMPT, "data=image_folder", f"data.root={image_folder(place / 'images')}"]


def prompt_train(place: Path) -> tuple[list[str], Path]:
    train = image_folder(place / "train")
    return [*prompt(place), f"data.train={train}"], train / "cow" / "000.bmp"


def prompt_class_names(place: Path) -> tuple[list[str], Path]:
    (place / "names.csv").write_text("ant,an ant\nbee,a bee\ncow,a cow\n")
    return [*prompt(place), f"data.class_names={place / 'names.csv'}"], place / "names.csv"


def prompt_folders(place: Path) -> tuple[list[str], Path]:
    root = classes(place / "elsewhere", "bmp", names=list(map(str, range(1000))), each=1)
    words = [*PROMPT, "data=imagenet", f"data.root={place}", "data.sets=[imagenet_v2]"]
    return [*words, f"data.folders={{imagenet_v2: {root}}}"], root / "7" / "000.bmp"


def prompt_context(place: Path) -> tuple[list[str], Path]:
    torch.save({"state_dict": {"ctx": torch.zeros(4, 512)}}, place / "coop.pt")
    return [*prompt(place), "method=tpt_coop", f"method.context.file={place / 'coop.pt'}"], place / "coop.pt"


def semi_root(place: Path) -> tuple[list[str], Path]:
    root = image_folder(place / "images", 8)
    words = ["task=semi", "data=folders", f"data.images.root={root}", "data.images.size=32", "data.labels_per_class=2"]
    return words, root / "ant" / "003.bmp"


def segmentation_config_file(place: Path) -> tuple[list[str], Path]:
    pytest.importorskip("mmseg")
    trust.trust_folder(place.parent)
    backbone = "dict(type='ResNetV1c', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN'))"
    head = "dict(type='FCNHead', in_channels=512, in_index=3, channels=64, num_convs=1, num_classes=19)"
    (place / "base.py").write_text(f"model = dict(type='EncoderDecoder', backbone={backbone}, decode_head={head})\n")
    (place / "net.py").write_text("_base_ = 'base.py'\n")
    words = ["task=segmentation", "model=mmseg_config", f"model.config_file={place / 'net.py'}"]
    return words, place / "base.py"


Case = Callable[[Path], tuple[list[str], Path]]
CASES: list[Case] = [
    *(tta_root, tta_source, tta_subset, prompt_train, prompt_class_names, prompt_folders, prompt_context, semi_root),
    segmentation_config_file,
]


def changed(file: Path) -> None:
    """Writes other content of the same size."""
    content = file.read_bytes()
    if file.suffix == ".bmp":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif file.suffix == ".pt":
        torch.save({"state_dict": {"ctx": torch.ones(4, 512)}}, file)
    elif file.suffix == ".py":
        file.write_text(file.read_text().replace("channels=64", "channels=32"))
    else:
        file.write_bytes(content.replace(b"000", b"001").replace(b"a bee", b"bumbl"))
    assert file.stat().st_size == len(content)
    assert file.read_bytes() != content


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_other_bytes_are_another_run_and_a_copy_is_the_same(tmp_path: Path, case: Case) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    words, file = case(here)
    shutil.copytree(here, there)

    def id_of(words: list[str]) -> str:
        return experiment.prepare(compose(words)).id

    first = id_of(words)
    assert id_of([word.replace(str(here), str(there)) for word in words]) == first
    changed(file)
    assert id_of(words) != first


def test_a_sweep_and_a_run_agree_on_the_id(tmp_path: Path) -> None:
    words, _ = prompt_context(tmp_path)
    given = {
        "out": str(tmp_path),
        **dict(word.split("=", 1) for word in words),
    }
    assert plan([given])[0].id == experiment.prepare(compose(given)).id


def test_only_texts_count_by_what_they_name() -> None:
    def node(**options: Any) -> dict[str, Any]:
        return {"data": {"_target_": "a.Data", **options}}

    ids = {
        runs.run_id(config, {})
        for config in (
            *(node(train=None), node(train=True), node(class_names=["ant"]), node(class_names=["bee"])),
            *(node(file="/here"), node(folders={"a": 1}), node(folders=None)),
        )
    }
    assert len(ids) == 7
    assert runs.run_id(node(file="/here"), {}) == runs.run_id(node(file="/there"), {})
    assert runs.named_paths(node(file="/f", folders={"x": "/x"}, train=None)) == {
        "data.file": "/f",
        "data.folders.x": "/x",
    }
    assert experiment.files(node(file="no path, a name")) != experiment.files(node(file="another name"))
    assert experiment.files(node(file=None)) == {}
