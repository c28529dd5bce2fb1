"""GTA5 and SYNTHIA -> Cityscapes from made files in the published layouts."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dembench.tasks.segmentation import domains
from dembench.tasks.segmentation.domains import GTA5ToCityscapes, SYNTHIAToCityscapes
from dembench.tasks.segmentation.labels import SYNTHIA_16

SIZES = {"source_size": (18, 32), "target_size": (16, 32)}
RNG = np.random.default_rng(0)


def save(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array, "P") if palette else Image.fromarray(array)
    if palette:
        image.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def cityscapes(root, ids=(7, 22, 23, 26, 0)):
    for split, towns in {"train": ("aachen", "bonn"), "val": ("ulm",)}.items():
        for town in towns:
            stem = f"{town}_000000_000019"
            save(
                root / "leftImg8bit" / split / town / f"{stem}_leftImg8bit.png",
                RNG.integers(0, 256, (32, 64, 3), np.uint8),
            )
            save(
                root / "gtFine" / split / town / f"{stem}_gtFine_labelIds.png",
                RNG.choice(ids, (32, 64)).astype(np.uint8),
            )
    return root


def gta5(root, ids=(0, 7, 8, 33, 34)):
    for i in range(3):
        save(root / "images" / f"0000{i}.png", RNG.integers(0, 256, (36, 64, 3), np.uint8))
        save(root / "labels" / f"0000{i}.png", RNG.choice(ids, (36, 64)).astype(np.uint8), palette=True)
    return root


def synthia(root, ids=(0, 3, 21, 22)):
    for i in range(2):
        save(root / "RGB" / f"000000{i}.png", RNG.integers(0, 256, (36, 64, 3), np.uint8))
        label = np.zeros((36, 64, 3), np.uint16)
        label[..., 2] = RNG.choice(ids, (36, 64))  # OpenCV writes blue, green, red: the file has the ids first
        label[..., 1] = 300  # instances
        path = root / "GT" / "LABELS" / f"000000{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), label)
    return root


@pytest.fixture
def gta(tmp_path):
    return GTA5ToCityscapes(gta5(tmp_path / "gta"), cityscapes(tmp_path / "city"), **SIZES)


def test_gta5_is_read_as_released(gta):
    gta.check()
    assert [len(part) for part in (gta.source_train, gta.target_train, gta.target_test)] == [3, 2, 1]
    sample = gta.source_train[1]
    path = sample["data_samples"].metainfo["seg_map_path"]
    raw = np.asarray(Image.open(path))  # palette indices
    small = np.asarray(Image.fromarray(raw).resize((32, 18), Image.Resampling.NEAREST))
    truth = np.select([small == 7, small == 8, small == 33], [0, 1, 18], 255)
    assert sample["data_samples"].gt_sem_seg.data[0].tolist() == truth.tolist()
    image = Image.open(path.replace("labels", "images")).convert("RGB").resize((32, 18), Image.Resampling.BICUBIC)
    assert torch.equal(sample["inputs"], torch.from_numpy(np.array(image)).permute(2, 0, 1))  # RGB


def test_target_images_train_without_labels_and_test_labels_keep_their_size(gta):
    assert "gt_sem_seg" not in gta.target_train[0]["data_samples"]
    labelled, test = gta.target_train_labelled[0], gta.target_test[0]
    assert labelled["data_samples"].gt_sem_seg.data.shape == (1, 16, 32)
    assert test["inputs"].shape == (3, 16, 32)
    assert test["data_samples"].gt_sem_seg.data.shape == (1, 32, 64)
    assert test["data_samples"].metainfo["ori_shape"] == (32, 64)
    raw = np.asarray(Image.open(test["data_samples"].metainfo["seg_map_path"]))
    truth = np.select([raw == 7, raw == 22, raw == 23, raw == 26], [0, 9, 10, 13], 255)
    assert test["data_samples"].gt_sem_seg.data[0].tolist() == truth.tolist()


def test_no_labels_of_the_targets_train_images_are_needed(tmp_path):
    root = cityscapes(tmp_path / "city")
    for path in (root / "gtFine" / "train").rglob("*.png"):
        path.unlink()
    GTA5ToCityscapes(gta5(tmp_path / "gta"), root, **SIZES).check()


def test_synthia_is_read_as_released(tmp_path):
    data = SYNTHIAToCityscapes(
        synthia(tmp_path / "syn"), cityscapes(tmp_path / "city"), **SIZES | {"source_size": None}
    )
    data.check()
    assert data.num_classes == 16
    assert len(data.subsets["iou_13"]) == 13
    sample = data.source_train[0]["data_samples"]
    raw = cv2.imread(sample.metainfo["seg_map_path"], cv2.IMREAD_UNCHANGED)[..., 2]
    truth = np.select([raw == 3, raw == 21], [SYNTHIA_16.index("road"), SYNTHIA_16.index("wall")], 255)
    assert sample.gt_sem_seg.data[0].tolist() == truth.tolist()
    test = data.target_test[0]["data_samples"]
    raw = np.asarray(Image.open(test.metainfo["seg_map_path"]))
    assert (test.gt_sem_seg.data[0].numpy()[raw == 22] == 255).all()  # terrain
    assert (test.gt_sem_seg.data[0].numpy()[raw == 23] == SYNTHIA_16.index("sky")).all()


def test_an_unknown_id_names_file_and_id_before_any_work_and_at_each_load(tmp_path):
    data = GTA5ToCityscapes(gta5(tmp_path / "gta", (7, 99)), cityscapes(tmp_path / "city"), **SIZES)
    with pytest.raises(ValueError, match=r"labels/0000\d\.png: unknown label id 99; known ids: 0, 1"):
        data.check()
    with pytest.raises(ValueError, match="unknown label id 99"):
        data.source_train[0]
    other = SYNTHIAToCityscapes(synthia(tmp_path / "syn", (3, 40)), tmp_path / "city", **SIZES)
    with pytest.raises(ValueError, match=r"LABELS/000000\d\.png: unknown label id 40"):
        other.check()


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gta5: no folder .*images; get .*from_games"):
        GTA5ToCityscapes(tmp_path / "none", tmp_path / "city").check()
    with pytest.raises(FileNotFoundError, match=r"cityscapes: no folder .*leftImg8bit.*registration"):
        GTA5ToCityscapes(gta5(tmp_path / "gta"), tmp_path / "city").check()
    root = cityscapes(tmp_path / "city")
    next((root / "gtFine" / "val").rglob("*.png")).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 label files are missing, the first is .*ulm_000000_000019"):
        GTA5ToCityscapes(tmp_path / "gta", root).check()
    with pytest.raises(FileNotFoundError, match=r"synthia: no folder .*RGB; .*synthia-dataset\.net"):
        SYNTHIAToCityscapes(tmp_path / "none", root).check()
    with pytest.raises(ValueError, match="unknown normalisation 'caffe'"):
        GTA5ToCityscapes(tmp_path, root, normalisation="caffe")


def test_files_of_another_kind_are_refused(tmp_path):
    colours = tmp_path / "colours.png"
    save(colours, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"colours\.png: expected label ids in one channel"):
        domains.read_ids(colours, deep=False)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image"):
        domains.read_ids(tmp_path / "text.png", deep=False)
    grey = tmp_path / "grey.png"
    save(grey, np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="expected a 16-bit PNG of three channels"):
        domains.read_ids(grey, deep=True)


def test_fingerprints_follow_the_files_and_a_few_images_are_the_first(gta, tmp_path):
    few = GTA5ToCityscapes(tmp_path / "gta", tmp_path / "city", **SIZES, num_images=1)
    assert [len(part) for part in (few.source_train, few.target_train, few.target_test)] == [1, 1, 1]
    assert few.source_train[0]["data_samples"].metainfo["img_path"].endswith("00000.png")
    assert few.fingerprint != gta.fingerprint
    again = GTA5ToCityscapes(tmp_path / "gta", tmp_path / "city", **SIZES)
    assert again.fingerprint == gta.fingerprint
    for folder, number in (("images", 1), ("labels", 2)):  # other bytes, the same size
        path = tmp_path / "gta" / folder / f"0000{number}.png"
        before = GTA5ToCityscapes(tmp_path / "gta", tmp_path / "city", **SIZES).fingerprint
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        assert GTA5ToCityscapes(tmp_path / "gta", tmp_path / "city", **SIZES).fingerprint != before


def test_files_that_are_no_images_are_said(gta, tmp_path):
    assert [note.key for note in gta.notes] == []
    for name in ("Thumbs.db", "._00001.png"):
        (tmp_path / "gta" / "images" / name).write_bytes(b"x")
    again = GTA5ToCityscapes(tmp_path / "gta", tmp_path / "city", **SIZES)
    assert len(again.source_train) == 3
    (note,) = again.notes
    assert note.text == "6 of 8 files used; left out: 2 no images of the dataset (._00001.png, Thumbs.db)"
