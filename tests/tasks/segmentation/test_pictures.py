"""Pictures: the colours that must be there are there."""

import io

import numpy as np
import torch
from PIL import Image

from dembench.report.figures.gallery import Picture, width_of
from dembench.tasks.segmentation.pictures import colourise, picture

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def drawn(size=(40, 60), rows=2):
    labels = torch.zeros(size, dtype=torch.int64)
    labels[:, 20:40], labels[:4] = 1, 255
    logits = torch.zeros(3, *size)
    logits[2] = 50.0
    logits[:, :, :30] = 0  # uncertain on the left
    images = [torch.full((3, *size), 77, dtype=torch.uint8)] * rows
    made = picture(images, [labels] * rows, [logits] * rows, palette=PALETTE, classes=("one", "two", "three"))
    return np.asarray(Image.open(io.BytesIO(made)).convert("RGB")), made


def count(picture, colour):
    return int((np.abs(picture.astype(int) - np.array(colour)).max(-1) <= 2).sum())


def test_every_panel_is_there_in_its_colours():
    one, _ = drawn(rows=1)
    two, _ = drawn(rows=2)
    area = 40 * 60 * 16  # small images are enlarged four times
    for colour, share in (((77, 77, 77), 1), (PALETTE[1], 0.3), (PALETTE[2], 0.5)):
        gained = count(two, colour) - count(one, colour)
        assert abs(gained - share * area) < 0.03 * area
    certain = count(two, (0, 0, 3)) - count(one, (0, 0, 3))  # the lowest colour of the entropy's scale
    assert abs(certain - 0.5 * area) < 0.03 * area
    ignored = count(two, (0, 0, 0)) - count(one, (0, 0, 0))
    assert abs(ignored - 0.1 * area) < 0.03 * area


def test_large_images_are_shown_smaller_and_the_same_input_gives_the_same_bytes():
    shown, made = drawn((300, 1000), 1)
    assert shown.shape[1] < 2100
    assert shown.shape[0] < 300
    assert made == drawn((300, 1000), 1)[1]


def test_ids_outside_the_palette_are_black():
    found = colourise(np.array([[0, 2], [3, 255]]), PALETTE)
    assert found.tolist() == [[[200, 0, 0], [0, 0, 200]], [[0, 0, 0], [0, 0, 0]]]


def test_the_report_gives_them_room():
    _, made = drawn()
    assert Picture("", "", width_of(made)).wide
