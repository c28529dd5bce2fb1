"""Photographs become inputs as torchvision and timm do it, in order, a few batches ahead."""

import io
import threading

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.testing import assert_close
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from dembench.tasks.common.images import AHEAD, ImageFiles, Preprocess, of_timm, of_torchvision

SIZES = [(300, 260), (260, 300), (257, 256), (500, 375), (640, 427), (40, 30), (224, 224), (100, 999)]


def photograph(size, seed=0):
    """Smooth colours with some noise, RGB."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) // 2 + draw.integers(0, 128, (size[1], size[0], 3))).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (224, 224), (64, 80)])
def test_resize_and_crop_are_torchvisions(size, mode, resize, crop):
    want = Compose([Resize(resize, InterpolationMode(mode)), CenterCrop(crop), PILToTensor()])(photograph(size))
    got = Preprocess(resize, crop, mode)(photograph(size))
    assert_close(torch.from_numpy(got.copy()).permute(2, 0, 1), want, rtol=0, atol=0)


def test_the_transform_of_torchvisions_weights_is_taken_over():
    for weights in (
        torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
        torchvision.models.EfficientNet_B1_Weights.DEFAULT,
    ):
        preset = weights.transforms()
        want = preset(photograph((500, 375)))
        got = torch.from_numpy(of_torchvision(preset)(photograph((500, 375))).copy()).permute(2, 0, 1) / 255
        assert_close((got - torch.tensor(preset.mean)[:, None, None]) / torch.tensor(preset.std)[:, None, None], want)
    with pytest.raises(ValueError, match="cannot read the preprocessing"):
        of_torchvision(object())


@pytest.mark.parametrize(
    "arch", ["resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_384"]
)
def test_the_transform_of_timms_weights_is_taken_over(arch):
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(arch).to_dict())
    want = create_transform(**config)(photograph((500, 375)))
    got = torch.from_numpy(of_timm(config)(photograph((500, 375))).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    assert_close((got - mean) / std, want)


def test_a_squashed_image_has_both_sides_resized():
    config = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "squash"}
    image = photograph((80, 50))
    want = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (of_timm(config)(image) == want).all()
    assert "both sides to 32 (bicubic)" in str(of_timm(config))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    images = ImageFiles.below(tmp_path, ["grey.png", "clear.png"], Preprocess(9, 9)).tensor()
    assert images.flatten(2).unique(dim=2).squeeze(2).tolist() == [[77] * 3, [1, 2, 3]]


@pytest.fixture
def numbered(tmp_path):
    """Fifty images whose grey value is their number."""
    for k in range(50):
        Image.new("RGB", (10, 8), (k, k, k)).save(tmp_path / f"{k:02d}.png")
    return ImageFiles.below(tmp_path, [f"{k:02d}.png" for k in range(50)], Preprocess(8, 8))


@pytest.mark.parametrize("size", [1, 7, 50, 200])
def test_batches_come_in_order_and_cover_everything(numbered, size):
    order = torch.randperm(50)
    batches = list(numbered[order].batches(size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    whole = torch.cat(batches)
    assert (whole.dtype, whole.shape) == (torch.uint8, (50, 3, 8, 8))
    assert whole[:, 1, 4, 4].tolist() == order.tolist()
    assert batches[0].is_contiguous(memory_format=torch.channels_last)
    assert len(numbered + numbered) == 100
    assert_close(
        (numbered + numbered)[torch.tensor([3, 53])].tensor()[:, 0, 0, 0], torch.tensor([3, 3], dtype=torch.uint8)
    )


def test_only_a_few_batches_are_decoded_ahead(numbered, monkeypatch):
    decoded, lock = [], threading.Lock()
    plain = ImageFiles._decode

    def noted(self, path):
        with lock:
            decoded.append(path)
        return plain(self, path)

    monkeypatch.setattr(ImageFiles, "_decode", noted)
    batches = numbered.batches(5)
    next(batches)
    assert len(decoded) <= 5 * (AHEAD + 1)
    batches.close()
    assert len(decoded) <= 5 * (AHEAD + 1)


def test_a_file_that_is_no_image_is_named(tmp_path, numbered):
    (tmp_path / "13.png").write_bytes(b"<html>")
    file = io.BytesIO()
    photograph((200, 200)).save(file, "JPEG")
    (tmp_path / "14.png").write_bytes(file.getvalue()[:900])  # cut off
    for number in (13, 14):
        with pytest.raises(ValueError, match=f"{number}.png cannot be read as an image"):
            numbered[torch.tensor([number])].tensor()


def test_wrong_preprocessing_is_refused():
    with pytest.raises(ValueError, match="expected sizes > 0, got resize 0 and crop 5"):
        Preprocess(0, 5)
    with pytest.raises(ValueError, match="unknown interpolation 'cubic'; nearest: bicubic"):
        Preprocess(5, 5, "cubic")
