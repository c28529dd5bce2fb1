"""The composition of groups without Hydra is Hydra's, and its cache trusts nothing that is not as it was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dembench.harness import groups
from dembench.harness.compose import ConfigError, composed, options, read_option

PER_TASK = ("method", "model", "data", "protocol")
FILES = [(task, group, name) for task in options("task") for group in PER_TASK for name in options(group, task)]
FILES += [("tta", "loss", name) for name in options("loss")]


def names(task: str, group: str, name: str) -> dict[str, str]:
    return {"task": task, group: name if group == "loss" else f"{task}/{name}"}


def same_as_hydra(chosen: dict[str, str]) -> None:
    """Equal in content and order, unresolved and resolved."""
    hydras = groups.by_hydra(tuple(sorted(chosen.items())), None)
    ours = groups._directly(chosen, None)
    assert json.dumps(ours) == json.dumps(hydras)
    try:
        expected: Any = groups.by_omegaconf(hydras)
    except ConfigError:  # a value that the user has to give
        with pytest.raises(ConfigError):
            groups.resolve(ours)
    else:
        assert json.dumps(groups.resolve(ours)) == json.dumps(expected)
        assert json.dumps({key: groups._resolved(value, ours, 0) for key, value in ours.items()}) == json.dumps(
            expected
        )


def test_what_starts_from_another_file_and_every_task_are_as_hydra_composes_them() -> None:
    based = [(t, g, n) for t, g, n in FILES if g != "loss" and "\ndefaults:" in read_option(g, n, t)]
    assert len(based) >= 14
    for task in options("task"):
        same_as_hydra({"task": task})
    for file in [
        *based[::3],
        ("tta", "loss", "dem_star"),
        ("prompt", "method", "tpt"),
        ("prompt", "model", "cifar_clip"),
    ]:
        same_as_hydra(names(*file))


@pytest.mark.slow
def test_every_file_is_as_hydra_composes_it() -> None:
    for file in FILES:
        same_as_hydra(names(*file))


def test_every_file_is_read_as_omegaconf_reads_it() -> None:
    for task, group, name in FILES:
        text = read_option(group, name, task)
        if "\ndefaults:" in text:
            continue
        truth: Any = OmegaConf.to_container(OmegaConf.create(text))
        label = (truth or {}).pop("_label_", None)
        found = groups.compose_groups(names(task, group, name), None)
        assert (found.get(group) or {}) == (truth or {})
        assert found["labels"].get(group) == label


@pytest.mark.parametrize(
    "text",
    [
        "# @package _global_\nseed: 5\n_target_: x.y\n",
        "defaults: [/method/tta/tent@_here_, /method/tta/sar@_here_, _self_]\nlr: 0.5\n",
        "defaults: [_self_, /method/tta/tent@_here_]\nlr: 0.5\n",
    ],
)
def test_what_is_beyond_it_is_left_to_hydra(text: str, tmp_path: Path) -> None:
    file = tmp_path / "method" / "tta" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    chosen = {"task": "tta", "method": "tta/mine"}
    with pytest.raises(groups.Beyond):
        groups._directly(chosen, tmp_path)
    hydras = groups.by_hydra(tuple(sorted(chosen.items())), tmp_path)
    assert groups.compose_groups(chosen, tmp_path) == hydras


def test_a_file_of_ones_own_is_composed_as_by_hydra(tmp_path: Path) -> None:
    file = tmp_path / "method" / "tta" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "defaults: [/method/tta/tent@_here_, _self_]\nlr: 0.5\nclustering: {select: true}\n_label_: {title: M}\n"
    )
    chosen = {"task": "tta", "method": "tta/mine", "loss": "dem"}
    ours = groups._directly(chosen, tmp_path)
    assert json.dumps(ours) == json.dumps(groups.by_hydra(tuple(sorted(chosen.items())), tmp_path))
    assert ours["method"]["clustering"]["select"] is True
    assert ours["method"]["steps"] == 1


def test_what_a_caller_changes_stays_with_it() -> None:
    first = composed({"method": "tent"})
    first["method"]["lr"] = 7.0
    first["protocol"]["corruptions"] = []
    assert composed({"method": "tent"})["method"]["lr"] == 1e-3
    assert composed({"method": "tent"})["protocol"]["corruptions"] != []


def test_references_that_are_no_plain_ones_are_omegaconfs(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {"a": {"b": "${c}/x", "d": "${.b}", "e": "${oc.env:NOT_SET_HERE,data}/y"}, "c": "z"}
    assert groups.resolve(cfg)["a"] == {"b": "z/x", "d": "z/x", "e": "data/y"}
    monkeypatch.setenv("NOT_SET_HERE", "/some where")
    assert groups.resolve(cfg, ["a"]) == {"a": {"b": "z/x", "d": "z/x", "e": "/some where/y"}}
    with pytest.raises(ConfigError, match="nowhere"):
        groups.resolve({"a": "${nowhere}"})
    with pytest.raises(ConfigError):
        groups.resolve({"a": "${b}", "b": "${a}"})


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMBENCH_CACHE", str(tmp_path))
    for attribute, value in (("content", None), ("changed", False)):
        monkeypatch.setattr(groups._Known, attribute, value)
    text = "_target_: dembench.core.EM\nx: 1e-3\n"
    assert groups._parsed(text) == {"_target_": "dembench.core.EM", "x": 1e-3}
    groups._Known.save()
    path = groups._Known._path()
    monkeypatch.setattr(groups._Known, "content", None)
    assert groups._parsed(text)["x"] == 1e-3
    assert not groups._Known.changed  # it was read
    path.write_bytes(path.read_bytes().replace(b"0.001", b"0.009"))  # its sum is another now
    monkeypatch.setattr(groups._Known, "content", None)
    assert groups._parsed(text)["x"] == 1e-3
    assert groups._Known.changed
