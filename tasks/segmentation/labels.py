"""Which raw label id is which class: Cityscapes, GTA5, SYNTHIA and CamVid. An id that no table knows is an error.

Source: cityscapesscripts (ids and train ids, colours), ADVENT and HRDA (which ids of GTA5 and SYNTHIA train).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

IGNORE = 255
CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_PALETTE = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153)),
    *((250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0)),
    *((0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
# Raw ids of the 19 classes in their order; GTA5 was labelled with those of Cityscapes.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_VOID = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 34, 255)  # 34 is the licence plate
SYNTHIA_IDS = {
    "road": 3, "sidewalk": 4, "building": 2, "wall": 21, "fence": 5, "pole": 7, "traffic light": 15,
    "traffic sign": 9, "vegetation": 6, "sky": 1, "person": 10, "rider": 17, "car": 8, "bus": 19, "motorcycle": 12,
    "bicycle": 11,
}  # fmt: skip
SYNTHIA_VOID = (0, 13, 14, 16, 18, 20, 22)  # void, parking slot, road works, terrain, truck, train, lane marking
SYNTHIA_16 = tuple(SYNTHIA_IDS)
SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))
CAMVID = (*("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),)
CAMVID_PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128)),
    *((64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
CAMVID_VOID = (11, 255)

Table = Mapping[int, int]  # raw id -> class, or 255


def table(ids: Iterable[int], void: Iterable[int]) -> dict[int, int]:
    """Raw id -> position in ``ids``; those in ``void`` -> 255."""
    found = dict.fromkeys(void, IGNORE)
    found.update({raw: k for k, raw in enumerate(ids)})
    return found


def cityscapes_table(classes: Iterable[str] = CITYSCAPES) -> dict[int, int]:
    """Cityscapes' and GTA5's raw ids -> positions in ``classes``; a class that is not among them is ignored."""
    raw = dict(zip(CITYSCAPES, CITYSCAPES_IDS, strict=True))
    chosen = [raw[name] for name in classes]
    return table(chosen, {*CITYSCAPES_VOID, *CITYSCAPES_IDS} - set(chosen))


def map_ids(raw: np.ndarray, known: Table, where: str) -> np.ndarray:
    """Raw ids (H, W) as classes and 255, uint8.

    Raises: ValueError, naming ``where`` and the id, for one that is not known.
    """
    if raw.ndim != 2 or raw.dtype.kind not in "ui":
        raise ValueError(f"{where}: expected label ids (H, W), got {raw.dtype} {raw.shape}")
    present = np.unique(raw)
    if strange := [int(k) for k in present if int(k) not in known]:
        listed = ", ".join(map(str, sorted(known)))
        raise ValueError(f"{where}: unknown label id {strange[0]}; known ids: {listed}")
    lookup = np.zeros(int(present.max(initial=0)) + 1, np.uint8)
    for k in present:
        lookup[k] = known[int(k)]
    return lookup[raw]
