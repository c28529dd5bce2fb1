"""GTA5 and SYNTHIA -> Cityscapes from their folders, as datasets and transforms of mmsegmentation.

Images and training labels are resized whole, as ADVENT does (bicubic and nearest, by Pillow); test labels keep their
size. Labels are read as they were published and mapped on the way: an id that is in no table is an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import PackSegInputs, Resize
from mmseg.registry import DATASETS, TRANSFORMS

from dembench.lookup import lookup
from dembench.tasks.base import ConfigError, Note
from dembench.tasks.common.cache import short_hash
from dembench.tasks.common.decoding import decode, load
from dembench.tasks.common.hashes import content_hashes, names_hash
from dembench.tasks.common.image_folders import remark
from dembench.tasks.common.tree import is_hidden, walk
from dembench.tasks.segmentation.data import NORMALISATIONS, DomainPair
from dembench.tasks.segmentation.labels import (
    CITYSCAPES,
    CITYSCAPES_PALETTE,
    SYNTHIA_13,
    SYNTHIA_16,
    SYNTHIA_IDS,
    SYNTHIA_VOID,
    Table,
    cityscapes_table,
    map_ids,
    table,
)

PROBED = 20  # label files that ``check`` reads
Steps = list[BaseTransform]
CITYSCAPES_LAYOUT = (
    "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com (free of charge, after "
    "registration) and unpack both into one folder: leftImg8bit/{train,val}/<city>/*_leftImg8bit.png, "
    "gtFine/{train,val}/<city>/*_gtFine_labelIds.png"
)


@TRANSFORMS.register_module()
class LoadIds(BaseTransform):
    """Reads ``seg_map_path`` and maps its ids: palette and grey PNGs by Pillow, which keeps indices, and 16-bit PNGs of
    several channels by OpenCV, whose last channel has the ids (SYNTHIA).

    Args:
        known: raw id -> class, or 255.
        deep: 16-bit PNGs of several channels.
    Raises: ValueError, naming the file, where it cannot be read or holds an unknown id; FileNotFoundError.
    """

    def __init__(self, known: Table, deep: bool = False) -> None:
        self.known, self.deep = dict(known), deep

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results["seg_map_path"]
        results["gt_seg_map"] = map_ids(read_ids(path, deep=self.deep), self.known, path)
        results["seg_fields"].append("gt_seg_map")
        return results


def read_ids(path: str | Path, *, deep: bool) -> np.ndarray:
    """Label ids (H, W) of a PNG, see ``LoadIds``."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no label file {path}")
    image = load(path, pixels=not deep)
    if deep:
        found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if found is None or found.ndim != 3:
            raise ConfigError(f"{path}: expected a 16-bit PNG of three channels, as in SYNTHIA's GT/LABELS")
        return found[..., -1]
    if image.mode not in ("P", "L", "I", "I;16"):
        raise ConfigError(f"{path}: expected label ids in one channel, got an image of mode {image.mode}")
    return np.asarray(image)


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Reads ``img_path`` as ``img``, RGB uint8 (H, W, 3)."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = np.array(decode(results["img_path"]))
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


def pipeline(size: Sequence[int] | None, known: Table | None, *, deep: bool = False, test: bool = False) -> Steps:
    """Transforms of one domain.

    Args:
        size: height and width, None resizes nothing.
        known: raw id -> class; None reads no labels.
        deep: see ``LoadIds``.
        test: labels keep their size.
    """
    load = [] if known is None else [LoadIds(known, deep)]
    resize = []
    if size is not None:
        resize = [Resize((size[1], size[0]), interpolation="bicubic", backend="pillow")]
    keys = ("img_path", "seg_map_path", "ori_shape", "img_shape", "pad_shape", "scale_factor")
    steps = [*resize, *load] if test else [*load, *resize]
    return [LoadRGB(), *steps, PackSegInputs(meta_keys=keys)]


@DATASETS.register_module()
class GTA5Dataset(BaseSegDataset):
    """GTA5 as released: images/ and labels/, palette PNGs whose indices are Cityscapes' ids."""

    METAINFO: ClassVar[dict] = {"classes": CITYSCAPES, "palette": CITYSCAPES_PALETTE}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(img_suffix=".png", seg_map_suffix=".png", **kwargs)


@DATASETS.register_module()
class SYNTHIADataset(BaseSegDataset):
    """SYNTHIA-RAND-CITYSCAPES as released: RGB/ and GT/LABELS/."""

    METAINFO: ClassVar[dict] = {
        "classes": SYNTHIA_16,
        "palette": tuple(CITYSCAPES_PALETTE[CITYSCAPES.index(name)] for name in SYNTHIA_16),
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(img_suffix=".png", seg_map_suffix=".png", **kwargs)


@DATASETS.register_module()
class CityscapesIdsDataset(BaseSegDataset):
    """Cityscapes with its labelIds, which need no conversion."""

    METAINFO: ClassVar[dict] = {"classes": CITYSCAPES, "palette": CITYSCAPES_PALETTE}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(img_suffix="_leftImg8bit.png", seg_map_suffix="_gtFine_labelIds.png", **kwargs)


class ToCityscapes(DomainPair):
    """What GTA5 and SYNTHIA -> Cityscapes have in common: the target, and a test on its val images.

    Args:
        source: folder of the source dataset.
        root: folder of Cityscapes.
        source_size, target_size: height and width of the network's inputs; None resizes nothing.
        normalisation: "advent" for ADVENT's weights (BGR, no division), "imagenet" for torchvision's.
        num_images: the first so many images of each set, by name; None takes all.
    Raises: ValueError for sizes below 8 and an unknown normalisation; ``check`` FileNotFoundError where files are
        missing, with where to get them, and ValueError naming the file and the id where a label is not known.
    """

    dataset: ClassVar[type[BaseSegDataset]]
    folders: ClassVar[tuple[str, str]]
    layout: ClassVar[str]
    deep: ClassVar[bool] = False
    about: ClassVar[tuple[Note, ...]] = ()
    tail = ("wall", "fence", "pole", "traffic light", "traffic sign", "rider", "bus", "motorcycle", "bicycle")

    def __init__(
        self,
        source: str | Path,
        root: str | Path,
        source_size: Sequence[int] | None = (720, 1280),
        target_size: Sequence[int] | None = (512, 1024),
        normalisation: Literal["imagenet", "advent"] = "advent",
        num_images: int | None = None,
    ) -> None:
        for size in (source_size, target_size):
            if size is not None and (len(size) != 2 or min(size) < 8):
                raise ValueError(f"{self.name}: expected a size as height and width, at least 8, got {list(size)}")
        if num_images is not None and num_images < 1:
            raise ValueError(f"{self.name}: expected num_images >= 1 or null, got {num_images}")
        self._source, self._root = Path(source).expanduser(), Path(root).expanduser()
        self.source_size, self.target_size, self.num_images = source_size, target_size, num_images
        self.normalisation = lookup(normalisation, NORMALISATIONS, "normalisation")

    @property
    def known(self) -> Table:
        """Raw ids of the source -> classes."""
        return cityscapes_table(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """Of names and bytes of all images and labels."""
        parts = []
        for dataset in (self.source_train, self.target_train, self.target_test):
            rows = [dataset.get_data_info(i) for i in range(len(dataset))]
            paths = [row[key] for key in ("img_path", "seg_map_path") for row in rows if key in row]
            parts.append(names_hash(map(os.path.basename, paths), content_hashes(paths)))
        return short_hash(self.name, parts)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What the dataset has to say, and which files beside its images were left out."""
        total, left_out = 0, []
        for dataset in (self.source_train, self.target_train, self.target_test):
            names = walk(Path(dataset.data_prefix["img_path"])).files
            total += len(names)
            left_out += [n for n in names if is_hidden(n.split("/")) or not n.endswith(dataset.img_suffix)]
        return (*self.about, *remark(total, {"no images of the dataset": left_out}))

    def check(self) -> None:
        """Checks that every image and label file exists, and reads some labels; the others are checked when loaded."""
        for dataset, what, layout in (
            (self.source_train, self.name, self.layout),
            (self.target_train, "cityscapes", CITYSCAPES_LAYOUT),
            (self.target_test, "cityscapes", CITYSCAPES_LAYOUT),
        ):
            rows = [dataset.get_data_info(i) for i in range(len(dataset))]
            if not rows:
                raise FileNotFoundError(f"{what}: no images in {dataset.data_prefix['img_path']}; {layout}")
            paths = [row["seg_map_path"] for row in rows if "seg_map_path" in row]
            if missing := [path for path in paths if not os.path.isfile(path)]:
                text = f"{what}: {len(missing)} of {len(paths)} label files are missing, the first is {missing[0]}"
                raise FileNotFoundError(f"{text}; {layout}")
            loader = next((step for step in dataset.pipeline.transforms if isinstance(step, LoadIds)), None)
            if loader is not None:
                for path in paths[:: max(1, len(paths) // PROBED)]:
                    map_ids(read_ids(path, deep=loader.deep), loader.known, path)

    @cached_property
    def source_train(self) -> BaseSegDataset:
        images, labels = (self._source / folder for folder in self.folders)
        self._need(images, self.name, self.layout)
        return self._make(self.dataset, images, labels, pipeline(self.source_size, self.known, deep=self.deep))

    @cached_property
    def target_train(self) -> BaseSegDataset:
        return self._cityscapes("train", pipeline(self.target_size, None), labelled=False)

    @cached_property
    def target_train_labelled(self) -> BaseSegDataset:
        return self._cityscapes("train", pipeline(self.target_size, cityscapes_table(self.classes)))

    @cached_property
    def target_test(self) -> BaseSegDataset:
        return self._cityscapes("val", pipeline(self.target_size, cityscapes_table(self.classes), test=True))

    def _cityscapes(self, split: str, steps: Steps, *, labelled: bool = True) -> BaseSegDataset:
        images, labels = self._root / "leftImg8bit" / split, self._root / "gtFine" / split
        self._need(images, "cityscapes", CITYSCAPES_LAYOUT)
        return self._make(CityscapesIdsDataset, images, labels if labelled else None, steps)

    def _make(self, kind: type[BaseSegDataset], images: Path, labels: Path | None, steps: Steps) -> BaseSegDataset:
        prefix = {"img_path": str(images), "seg_map_path": None if labels is None else str(labels)}
        meta = {"classes": self.classes}
        return kind(data_prefix=prefix, pipeline=steps, metainfo=meta, indices=self.num_images)

    @staticmethod
    def _need(folder: Path, what: str, layout: str) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{what}: no folder {folder}; {layout}")


class GTA5ToCityscapes(ToCityscapes):
    """24,966 images of the game, 19 classes.

    Source: Richter et al., Playing for Data, ECCV 2016; the protocol of Vu et al. 2019 (ADVENT).
    """

    name = "gta5"
    classes = CITYSCAPES
    palette = CITYSCAPES_PALETTE
    dataset = GTA5Dataset
    folders = ("images", "labels")
    layout = (
        "get the ten image and ten label archives of download.visinf.tu-darmstadt.de/data/from_games and unpack them "
        "into one folder: images/00001.png, labels/00001.png, ..."
    )


class SYNTHIAToCityscapes(ToCityscapes):
    """SYNTHIA-RAND-CITYSCAPES, 9,400 images, 16 of Cityscapes' classes; mean IoU also over 13 (no wall, fence, pole).

    Source: Ros et al., CVPR 2016; ids as in HRDA. Target pixels of terrain, truck and train are ignored.
    """

    name = "synthia"
    classes = SYNTHIA_16
    palette = SYNTHIADataset.METAINFO["palette"]
    subsets: ClassVar[dict[str, tuple[str, ...]]] = {"iou_13": SYNTHIA_13}
    dataset = SYNTHIADataset
    folders = ("RGB", "GT/LABELS")
    deep = True
    layout = (
        "get SYNTHIA-RAND-CITYSCAPES of synthia-dataset.net and unpack it: RGB/0000000.png, GT/LABELS/0000000.png "
        "(16-bit PNGs of three channels), ..."
    )
    about = (
        Note("synthia", "iou is over 16 classes, iou_13 without wall, fence, pole; terrain, truck, train are ignored"),
    )

    @property
    def known(self) -> Table:
        return table((SYNTHIA_IDS[name] for name in self.classes), SYNTHIA_VOID)
