"""``dembench check``: what is shipped passes, and what is broken fails at the line that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from dembench.harness.compose import options
from dembench.scripts.cli import main
from dembench.scripts.new import KINDS, skeleton
from dembench.tasks.common import trust

LOSSES = [name for name in options("loss") if name not in ("none", "dem_star")]
METHODS = options("method", "tta")


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.ALLOWED, "own_things")


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """What failed, by the first word of what was looked at, and why; the exit status agrees."""
    status = main(["check", *words])
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    assert status == bool(found)
    assert lines[-1].endswith(f"{len(found)} failed" if found else "all is well")
    return {line.split(":")[0].split(",")[0]: line for line in found}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(capsys, "loss", name) == {}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"memo": "method.views=2", "cotta": "method.views=2", "rotta": "method.every=4"}.get(name)
    assert failed(capsys, "method", name, *filter(None, [few])) == {}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Mean", {"shape": "expected (7,) for logits (7, 5), got ()"}),
        ("Single", {"shape": "expected torch.float64, the logits' type, got torch.float32"}),
        ("HalfGradient", {"gradient": "by finite differences; a loss that holds parts of itself constant says so"}),
        ("Overflows", {"finite for logits of 1e4 and 1e-4": "logits of size 10000 give"}),
        ("NoisyLoss", {"determinism": "two objects give different values"}),
        ("Remembers", {"reset": "it remembers batches and has no reset()", "device": "count is a plain tensor"}),
        ("Pair", {"batch of one": "it raised ValueError: expected two samples"}),
    ],
)
def test_a_broken_loss_fails_where_it_is_broken(name, lines, capsys) -> None:
    found = failed(capsys, "loss", f"own_things.{name}")
    assert lines.keys() <= found.keys()
    for what, text in lines.items():
        assert text in found[what]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "Drifts",
            {
                "only parameters in self.adapted move": "parameters move that are not in self.adapted: 0.weight",
                "reset": "after reset() the same batches are predicted otherwise",
                "peek": "peek(x) changes what is predicted afterwards",
            },
        ),
        ("Uncounted", {"shape": "forward_passes is 0"}),
        ("NoisyMethod", {"determinism": "draw from self.generator"}),
        ("Doubled", {"gradient": "by finite differences; a method that holds parts"}),
    ],
)
def test_a_broken_method_fails_where_it_is_broken(name, lines, capsys) -> None:
    found = failed(capsys, "method", f"own_things.{name}")
    assert lines.keys() <= found.keys()
    for what, text in lines.items():
        assert text in found[what]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Net", {}),
        ("Fixed", {}),
        ("Loose", {"device": "model.scale is a plain tensor"}),
        ("NoisyNet", {"determinism": "the same images have other logits the second time"}),
        ("Mixing", {"batch of one": "an image alone has other logits than in a batch"}),
    ],
)
def test_models(name, lines, capsys) -> None:
    found = failed(capsys, "model", f"own_things.{name}")
    assert lines.keys() <= found.keys()
    assert bool(lines) == bool(found)
    for what, text in lines.items():
        assert text in found[what]


@pytest.mark.parametrize(
    ("fault", "what", "text"),
    [
        ("", "", ""),
        ("names", "attributes", "2 class_names for num_classes=3"),
        ("floats", "shape", "expected uint8 images (N, 3, H, W), got torch.float32"),
        ("labels", "shape", "labels from 0 to 3, num_classes=3"),
        ("random", "determinism", "other images or labels the second time"),
        ("fingerprint", "determinism", "built again it has another fingerprint"),
    ],
)
def test_data(fault, what, text, capsys, tmp_path: Path) -> None:
    (tmp_path / "data" / "tta").mkdir(parents=True)
    (tmp_path / "data" / "tta" / "made.yaml").write_text(f"_target_: own_things.Data\nfault: '{fault}'\n")
    found = failed(capsys, "data", "made", "--config-dir", str(tmp_path))
    assert list(found) == [what] * bool(what)
    assert text in found.get(what, "")


def test_what_cannot_be_built_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in [
        (("loss", "none"), "loss=none builds nothing"),
        (("loss", "emm"), "unknown loss 'emm'; nearest: em"),
        (("loss", "os.system"), "loss: _target_ os.system is not allowed"),
        (("model", "own_things.Net", "model.weights=none.pt"), "weights: no file none.pt"),
        (("model", "own_things.Net", "--size", "0"), "expected --size of at least 1"),
    ]:
        assert main(["check", *words]) == 2
        told = capsys.readouterr().err
        assert text in told
        assert told.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_passes_its_test_and_the_check(kind, tmp_path, monkeypatch, capsys) -> None:
    """Its test is run here by its functions; that pytest finds them is in the docs' test."""
    name = f"fresh_{kind}"
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["new", kind, name, "--dir", str(tmp_path)]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / path) for path in skeleton(kind, name)]
    names: dict[str, object] = {}
    exec((tmp_path / f"test_{name}.py").read_text(), names)
    tests = [value for key, value in names.items() if key.startswith("test_")]
    assert len(tests) >= 2
    for test in tests:
        test()  # type: ignore[operator]
    assert failed(capsys, kind, name, "--config-dir", str(tmp_path)) == {}
    assert main(["new", kind, name, "--dir", str(tmp_path)]) == 2
    assert "is there already; nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("My", "expected a name in small letters"),
        ("class", "expected a name in small letters"),
        ("em", "loss=em is dembench's own"),
        ("random", "a module random is installed"),
        ("torch", "a module torch is installed"),
    ],
)
def test_a_name_that_would_not_work_is_refused(name, text, tmp_path, capsys) -> None:
    assert main(["new", "loss", name, "--dir", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
