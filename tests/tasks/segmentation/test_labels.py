"""Label tables against mmsegmentation's own Cityscapes metadata, and against the tables written out by hand."""

import numpy as np
import pytest

from dembench.tasks.segmentation import labels


def test_classes_and_colours_are_those_of_mmsegmentation():
    from mmseg.datasets import CityscapesDataset

    assert tuple(CityscapesDataset.METAINFO["classes"]) == labels.CITYSCAPES
    assert [tuple(c) for c in CityscapesDataset.METAINFO["palette"]] == list(labels.CITYSCAPES_PALETTE)


def test_cityscapes_ids_are_mapped_as_published():
    # cityscapesscripts' trainIds, by id from 0 to 33
    published = [255] * 7 + [
        0,
        1,
        255,
        255,
        2,
        3,
        4,
        255,
        255,
        255,
        5,
        255,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
        255,
        255,
    ]
    published += [16, 17, 18]
    raw = np.arange(34, dtype=np.uint8)[None]
    assert labels.map_ids(raw, labels.cityscapes_table(), "x")[0].tolist() == published


def test_synthia_ids_become_sixteen_classes_and_the_rest_is_ignored():
    train_ids = {
        3: 0,
        4: 1,
        2: 2,
        21: 3,
        5: 4,
        7: 5,
        15: 6,
        9: 7,
        6: 8,
        1: 10,
        10: 11,
        17: 12,
        8: 13,
        19: 15,
        12: 17,
        11: 18,
    }
    known = labels.table(labels.SYNTHIA_IDS.values(), labels.SYNTHIA_VOID)
    for raw in range(23):
        mapped = known[raw]
        name = None if mapped == 255 else labels.SYNTHIA_16[mapped]
        assert name == (labels.CITYSCAPES[train_ids[raw]] if raw in train_ids else None)
    assert set(labels.SYNTHIA_16) - set(labels.SYNTHIA_13) == {"wall", "fence", "pole"}


def test_a_class_that_is_not_asked_for_is_ignored():
    known = labels.cityscapes_table(labels.SYNTHIA_16)
    assert [known[raw] for raw in (22, 27, 31)] == [255] * 3  # terrain, truck, train
    assert labels.SYNTHIA_16[known[23]] == "sky"


def test_an_unknown_id_names_file_and_id():
    with pytest.raises(ValueError, match=r"b/0007\.png: unknown label id 35; known ids: 0, 1"):
        labels.map_ids(np.array([[7, 35]], np.uint8), labels.cityscapes_table(), "b/0007.png")
    with pytest.raises(ValueError, match=r"x: expected label ids \(H, W\), got uint8 \(1, 1, 3\)"):
        labels.map_ids(np.zeros((1, 1, 3), np.uint8), labels.cityscapes_table(), "x")
