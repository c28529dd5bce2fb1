"""Tensors out of PyTorch files, against ``torch.jit.load`` and ``torch.load``; damaged and hostile files."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from dembench.tasks.common.tensors import Shell, is_torchscript, read_tensors, state_dict_of


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).half())
        self.tied = self.layers[0].weight
        self.register_buffer("steps", torch.arange(6).view(2, 3).t())  # strides that are not those of a fresh tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.tensor(2.5)), Inner()

    def forward(self, x):
        return self.inner.layers[1](self.inner.layers[0](x)) * self.scale + self.inner.steps.sum()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("jit") / "net.pt"
    torch.jit.trace(Net().eval(), torch.zeros(5, 3)).save(path)
    return path


def test_tensors_of_a_torchscript_archive_are_those_of_jit_load(archive):
    with pytest.raises(RuntimeError, match="TorchScript"):
        torch.load(archive, weights_only=True)
    expected = torch.jit.load(archive).state_dict()
    found = state_dict_of(read_tensors(archive))
    assert set(expected) <= set(found)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert is_torchscript(archive)


def test_checkpoints_with_objects_beside_their_tensors_are_read(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1)
    saved = {
        "state_dict": {"a": torch.randn(3, 2), "b": nn.Parameter(torch.randn(2).bfloat16())},
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
        "epoch": 7,
        "numbers": np.arange(3),
    }
    path = tmp_path / "checkpoint.pt"
    torch.save(saved, path)
    assert not is_torchscript(path)
    found = read_tensors(path)
    assert torch.equal(found["state_dict"]["a"], saved["state_dict"]["a"])
    assert torch.equal(found["state_dict"]["b"], saved["state_dict"]["b"].detach())
    assert found["epoch"] == 7
    assert isinstance(found["scheduler"], Shell)
    assert not isinstance(found["scheduler"], torch.optim.lr_scheduler.LRScheduler)


class Run:
    def __init__(self, call, *words):
        self.call, self.words = call, words

    def __reduce__(self):
        return self.call, self.words


def test_nothing_in_a_file_runs(tmp_path, capfd):
    for k, attack in enumerate(
        (Run(os.system, f"touch {tmp_path}/ran"), Run(eval, "1/0"), Run(__import__, "antigravity"))
    ):
        torch.save({"state_dict": {"ctx": torch.ones(2)}, "other": attack}, tmp_path / f"{k}.pt")
        found = read_tensors(tmp_path / f"{k}.pt")
        assert torch.equal(found["state_dict"]["ctx"], torch.ones(2))
        assert isinstance(found["other"], Shell)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Run(os.system, f"touch {tmp_path}/ran")))
    with pytest.raises(ValueError, match="is no PyTorch file in ZIP format"):
        read_tensors(tmp_path / "pickle.pt")
    assert not (tmp_path / "ran").exists()


def test_small_files_do_not_become_large(archive, tmp_path):
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    with pytest.raises(ValueError, match="is compressed, or larger than"):
        read_tensors(packed)
    torch.save({"x": torch.zeros(4).as_strided((2, 2), (1, 1))}, packed)
    text = io.BytesIO(packed.read_bytes())
    with zipfile.ZipFile(text) as source, zipfile.ZipFile(packed, "w") as target:
        for info in source.infolist():  # a size of 2 by 2 becomes one of 2 by 255
            data = source.read(info)
            target.writestr(
                info.filename, data.replace(b"K\x02K\x02\x86", b"K\x02K\xff\x86") if "pkl" in info.filename else data
            )
    with pytest.raises(ValueError, match="larger than its storage"):
        read_tensors(packed)


def test_damaged_files_end_in_one_line(archive, tmp_path):
    whole, rng = archive.read_bytes(), np.random.default_rng(0)
    path, messages = tmp_path / "damaged.pt", []
    for k in range(300):
        data = bytearray(whole)
        if k % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        else:
            for at in rng.integers(len(data), size=1 + k % 8):
                data[at] = int(rng.integers(256))
        path.write_bytes(data)
        is_torchscript(path)
        try:
            state_dict_of(read_tensors(path))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert not any("\n" in message for message in messages)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none.pt")
