"""CamVid from made archives and folders, and from the real one where it is."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dembench.tasks.segmentation.camvid import CamVid

FRAMES = {
    "train": ["0006R0_1", "0016E5_1", "0016E5_2", "0001TP_1", "0001TP_2", "0001TP_3"],
    "test": ["0001TP_8", "0001TP_9", "Seq05VD_1"],
    "val": ["0016E5_9"],
}


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def files(size=(24, 32), bad=None):
    """{path: bytes} of a small CamVid; an image's first value and label tell which frame it is."""
    found, k = {}, 0
    for split, names in FRAMES.items():
        for name in names:
            label = np.full(size, k % 11, np.uint8)
            label[0] = 11
            if name == bad:
                label[1, 1] = 12
            found[f"camvid/{split}/{name}.png"] = png(np.full((*size, 3), 10 * k, np.uint8))
            found[f"camvid/{split}annot/{name}.png"] = png(label)
            k += 1
    return found


def archive(path, found, extra=()):
    with tarfile.open(path, "w") as tar:
        for name, content in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return path


def folder(root, found):
    for name, content in found.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(root)


def test_drives_make_the_domains(tmp_path):
    data = CamVid(archive(tmp_path / "a.tar", files()), None, cache=tmp_path / "cache")
    data.check()
    assert [len(data.pools[k]) for k in ("source_train", "target_train", "target_test", "source_test")] == [3, 3, 2, 1]
    assert data.pools["target_test"].images[:, 0, 0, 0].tolist() == [60, 70]
    label = data.source_train[1]["data_samples"].gt_sem_seg.data[0]
    assert (label[0] == 255).all()
    assert (label[1:] == 1).all()
    assert "gt_sem_seg" not in data.target_train[0]["data_samples"]


def test_folders_and_archives_are_the_same_data_and_the_cache_is_read(tmp_path):
    packed = archive(tmp_path / "a.tar", files())
    one = CamVid(packed, (12, 16), cache=tmp_path / "cache")
    other = CamVid(folder(tmp_path / "folder", files()), (12, 16), cache=tmp_path / "cache")
    assert one.fingerprint == other.fingerprint != CamVid(packed, None, cache=tmp_path / "cache").fingerprint
    for array in (tmp_path / "cache").rglob("test-images.npy"):
        assert np.load(array, allow_pickle=False).shape[0] == 3
    again = CamVid(packed, (12, 16), cache=tmp_path / "cache")
    assert again.fingerprint == one.fingerprint
    for part, pool in one.pools.items():
        np.testing.assert_array_equal(pool.images, again.pools[part].images)
        np.testing.assert_array_equal(pool.labels, again.pools[part].labels)


def test_images_and_training_labels_are_resized_and_test_labels_are_not(tmp_path):
    data = CamVid(archive(tmp_path / "a.tar", files()), (12, 16), cache=tmp_path / "cache")
    train, test = data.source_train[0], data.target_test[0]
    assert train["inputs"].shape == test["inputs"].shape == (3, 12, 16)
    assert train["data_samples"].gt_sem_seg.data.shape == (1, 12, 16)
    assert test["data_samples"].gt_sem_seg.data.shape == (1, 24, 32)
    assert test["data_samples"].metainfo["ori_shape"] == (24, 32)


def test_validation_is_the_end_of_the_targets_train_images_at_full_label_size(tmp_path):
    data = CamVid(archive(tmp_path / "a.tar", files()), (12, 16), validation=True, cache=tmp_path / "cache")
    assert data.pools["target_train"].images[:, 0, 0, 0].tolist() == [30, 40]
    assert data.pools["target_test"].images[:, 0, 0, 0].tolist() == [50]
    assert data.pools["target_test"].labels.shape == (1, 24, 32)


def test_an_unknown_id_names_file_and_id(tmp_path):
    data = CamVid(archive(tmp_path / "a.tar", files(bad="0001TP_9")), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"a\.tar: testannot/0001TP_9\.png: unknown label id 12; known ids: 0, 1"):
        data.check()


@pytest.mark.parametrize("kind", ["up", "absolute", "link"])
def test_members_that_leave_the_archive_are_refused(tmp_path, kind):
    names = {"up": "../evil.png", "absolute": "/evil.png", "link": "camvid/train/0006R0_7.png"}
    info = tarfile.TarInfo(names[kind])
    if kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    data = CamVid(archive(tmp_path / "a.tar", files(), [info]), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="no regular file" if kind == "link" else "leads out of the archive"):
        data.check()
    assert not (tmp_path / "evil.png").exists()
    assert not list((tmp_path / "cache").rglob("*"))


def test_what_is_missing_is_named_with_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at .*none\.tar; expected train/, trainannot/"):
        CamVid(tmp_path / "none.tar").check()
    found = files()
    del found["camvid/testannot/0001TP_8.png"]
    with pytest.raises(ValueError, match=r"testannot/0001TP_8\.png is missing"):
        CamVid(folder(tmp_path / "f", found)).check()
    day = {name: content for name, content in files().items() if "0001TP" not in name}
    with pytest.raises(ValueError, match="no images for target_train"):
        CamVid(folder(tmp_path / "day", day)).check()
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(ValueError, match="no readable tar archive"):
        CamVid(tmp_path / "text.tar", cache=tmp_path / "cache").check()
    with pytest.raises(ValueError, match="each at least 8"):
        CamVid(tmp_path, size=(4, 160))


@pytest.mark.parametrize("packed", [False, True])
def test_folders_are_known_whatever_their_letters_and_what_is_left_out_is_said(tmp_path, packed):
    def read(found, name):
        source = archive(tmp_path / f"{name}.tar", found) if packed else folder(tmp_path / name, found)
        return CamVid(source, None, cache=tmp_path / "cache")

    plain, found = read(files(), "plain"), files()
    capital = {name.replace("/train", "/Train").replace("annot", "Annot"): content for name, content in found.items()}
    capital |= {"__MACOSX/train/._1.png": b"x", "camvid/.DS_Store": b"x", "camvid/Train/notes.txt": b"x"}
    other = read(capital, "capital")
    assert other.fingerprint == plain.fingerprint
    for data, used, total in ((plain, 18, 20), (other, 18, 23)):
        for _ in range(2):  # of an archive, the second time from the cache
            (note,) = [note.text for note in data.notes if note.key == "files"]
            assert note.startswith(f"{used} of {total} files used; left out: ")
            assert "not PNG files in train, trainannot, test, testannot" in note
            data = CamVid(data._root, None, cache=tmp_path / "cache")
    twice = read(found | {name.replace("camvid/", "more/"): content for name, content in found.items()}, "twice")
    with pytest.raises(ValueError, match="several folders for one of train, trainannot"):
        twice.check()


def test_a_cut_off_image_is_named(tmp_path):
    for part in ("train", "trainannot"):
        found = files()
        name = f"camvid/{part}/0001TP_2.png"
        found[name] = found[name][: len(found[name]) // 2]
        with pytest.raises(ValueError, match=rf"^[^\n]*{part}/0001TP_2\.png cannot be read as an image: [^\n]*$"):
            CamVid(folder(tmp_path / part, found)).check()


def test_deep_images_are_scaled_and_deep_labels_are_not(tmp_path):
    found = files()
    for name in [name for name in found if "annot" not in name]:
        found[name] = png(np.full((24, 32), 20_000, np.uint16))
    for name in [name for name in found if "annot" in name]:
        found[name] = png(np.full((24, 32), 3, np.uint16))
    pools = CamVid(folder(tmp_path / "deep", found), None).pools
    assert set(np.unique(pools["source_train"].images)) == {20_000 >> 8}
    assert set(np.unique(pools["source_train"].labels)) == {3}


@pytest.mark.data
def test_the_real_archive_has_the_published_split(tmp_path):
    path = Path(os.environ.get("DEMBENCH_DATA", ""), "data", "camvid-half.tar")
    if not os.environ.get("DEMBENCH_DATA") or not path.is_file():
        pytest.skip("DEMBENCH_DATA has no data/camvid-half.tar")
    data = CamVid(path, cache=tmp_path)
    data.check()
    sizes = {part: len(pool) for part, pool in data.pools.items()}
    assert sizes == {"source_train": 305, "target_train": 62, "target_test": 62, "source_test": 171}
    assert [note.text[:38] for note in data.notes if note.key == "files"] == ["1200 of 1403 files used; left out: 203"]
    assert data.pools["source_train"].images.mean() > 1.7 * data.pools["target_train"].images.mean()  # day and dusk
    for part in ("source_train", "target_test"):
        assert set(range(11)) <= set(np.unique(data.pools[part].labels)) <= {*range(11), 255}
