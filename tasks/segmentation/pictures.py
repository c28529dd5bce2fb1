"""Test images beside their labels, predictions and pixel entropy, in one PNG with a legend."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from dembench.core.functional import em

IGNORED = (0, 0, 0)
COLUMNS = ("image", "label", "prediction", "entropy")
WIDEST = 480  # pixels of one panel; larger images are shown smaller
SMALLEST = 288  # and smaller ones larger, by whole factors


def colourise(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Class ids (H, W) as RGB, uint8 (H, W, 3); ids outside the palette, such as 255, are black."""
    table = np.tile(np.array(IGNORED, np.uint8), (256, 1))
    table[: len(palette)] = np.asarray(palette, np.uint8)
    return table[labels.astype(np.uint8)]


def picture(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    logits: Sequence[Tensor],
    *,
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
) -> bytes:
    """A row per image: image, label, prediction, entropy per pixel; below them the classes' colours and a scale.

    Args:
        images: uint8 (3, H, W) RGB.
        labels: int64 (H', W'), 255 where ignored.
        logits: float (C, H', W').
        palette: RGB per class.
        classes: their names.
    Returns: PNG bytes. The entropy goes from 0 (black) to log C (white); ignored pixels are shown as well.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [_panels(*triple, palette) for triple in zip(images, labels, logits, strict=True)]
    height, width = rows[0][0].shape[:2]
    dpi, gap, head, foot = 100, 6, 26, 26 + 22 * math.ceil((len(classes) + 1) / 6)
    wide, tall = 4 * width + 5 * gap + 62, head + len(rows) * (height + gap) + foot
    figure = Figure(figsize=(wide / dpi, tall / dpi), dpi=dpi, facecolor="white")
    for i, panels in enumerate(rows):
        for j, panel in enumerate(panels):
            left, top = gap + j * (width + gap), head + i * (height + gap)
            box = (left / wide, 1 - (top + height) / tall, width / wide, height / tall)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            if j == 3:
                axes.imshow(panel, cmap="inferno", vmin=0, vmax=math.log(len(classes)), aspect="auto")
            else:
                axes.imshow(panel, aspect="auto")
            if i == 0:
                axes.set_title(COLUMNS[j], fontsize=11, pad=4)
    scale = figure.add_axes(((gap + 4 * (width + gap)) / wide, 1 - (head + height) / tall, 12 / wide, height / tall))
    norm = Normalize(0, math.log(len(classes)))
    bar = figure.colorbar(ScalarMappable(norm, "inferno"), cax=scale)
    bar.set_ticks([0, math.log(len(classes))], labels=["0", "log C"])
    bar.ax.tick_params(labelsize=8)
    patches = [Patch(color=np.asarray(c) / 255, label=name) for c, name in zip(palette, classes, strict=True)]
    patches.append(Patch(color=np.asarray(IGNORED) / 255, label="ignored"))
    figure.legend(handles=patches, ncols=6, loc="lower center", fontsize=10, frameon=False, handlelength=1.2)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def _panels(image: Tensor, label: Tensor, logits: Tensor, palette: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The four panels of one image, all of one size."""
    rgb = image.permute(1, 2, 0).cpu().numpy()
    size = _shown(rgb.shape[0], rgb.shape[1])
    entropy = em(logits.float().cpu()[None])[0].detach().numpy()
    prediction = colourise(logits.argmax(0).cpu().numpy(), palette)
    found = [_resize(rgb, size), _resize(colourise(label.cpu().numpy(), palette), size), _resize(prediction, size)]
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, entropy.shape, strict=True))
    return [*found, entropy[rows[:, None], columns]]


def _shown(height: int, width: int) -> tuple[int, int]:
    factor: float = max(1, SMALLEST // width)
    if width > WIDEST:
        factor = WIDEST / width
    return round(height * factor), round(width * factor)


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.NEAREST))
