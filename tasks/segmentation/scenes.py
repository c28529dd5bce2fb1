"""Small street scenes with exact labels, drawn by numbers: one function for the layout, another for the appearance.

A layout (label and instance of each pixel, distance from the viewer) follows from a seed alone; a style paints it. So
one layout can be painted in two styles, and the labels are the same to the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

CLASSES = ("road", "sidewalk", "building", "pole", "sign", "vegetation", "sky", "person", "car")
TAIL = ("pole", "sign", "person")
PALETTE = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (153, 153, 153), (220, 220, 0)),
    *((107, 142, 35), (70, 130, 180), (220, 20, 60), (0, 0, 142)),
)  # of Cityscapes
VOID = 255
ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, SKY, PERSON, CAR = range(9)

# Mean colours per class, RGB in [0, 1]: a summer day, and an autumn evening in another town.
DAY = np.array(
    [(0.42, 0.42, 0.44), (0.66, 0.62, 0.58), (0.62, 0.44, 0.36), (0.30, 0.30, 0.32), (0.85, 0.75, 0.15),
     (0.22, 0.45, 0.18), (0.55, 0.74, 0.93), (0.72, 0.35, 0.35), (0.25, 0.35, 0.65)]
)  # fmt: skip
DUSK = np.array(
    [(0.33, 0.31, 0.30), (0.45, 0.46, 0.50), (0.50, 0.50, 0.46), (0.50, 0.48, 0.45), (0.30, 0.55, 0.80),
     (0.48, 0.36, 0.16), (0.72, 0.62, 0.58), (0.30, 0.36, 0.50), (0.62, 0.60, 0.62)]
)  # fmt: skip
# Deviation of one object's colour from its class's (standard deviation), and the strength of its texture.
SPREAD = np.array([0.03, 0.04, 0.09, 0.04, 0.06, 0.05, 0.03, 0.14, 0.16])
COARSE = 4.0  # pixels, the scale of the blotches of a surface
TEXTURE = np.array([0.02, 0.04, 0.06, 0.02, 0.04, 0.12, 0.015, 0.05, 0.04])


@dataclass(frozen=True)
class Style:
    """Appearance of a scene; the defaults are a clear day.

    Args:
        paint: share of the other town's colours, 0 to 1.
        texture: multiplies the texture of all surfaces.
        light: multiplies the brightness.
        gamma: exponent of the tone curve, above 1 darkens the mid-tones.
        cast: gain of red, green and blue.
        saturation: 1 keeps the colours, 0 is grey.
        haze: share of grey mist at the horizon, 0 to 1.
        glow: strength of a light gradient from one side to the other, 0 to 1.
        blur: standard deviation of a Gaussian blur, pixels.
        noise: standard deviation of the sensor's noise, in units of full brightness.
    Raises: ValueError for a number out of its range.
    """

    paint: float = 0.0
    texture: float = 1.0
    light: float = 1.0
    gamma: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    haze: float = 0.0
    glow: float = 0.0
    blur: float = 0.3
    noise: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "cast", tuple(map(float, self.cast)))  # a list, where it comes from a configuration
        shares = {"paint": self.paint, "haze": self.haze, "glow": self.glow}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"street: expected {name} between 0 and 1, got {value}")
        above = {"light": self.light, "gamma": self.gamma}
        for name, value in above.items():
            if value <= 0:
                raise ValueError(f"street: expected {name} > 0, got {value}")
        for name in ("texture", "saturation", "blur", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"street: expected {name} >= 0, got {getattr(self, name)}")
        if len(self.cast) != 3 or min(self.cast) <= 0:
            raise ValueError(f"street: expected cast as three gains > 0, got {self.cast}")


@dataclass(frozen=True)
class Layout:
    """label (H, W) uint8 with 255 for void, part (H, W) int64: which object, distance (H, W) in (0, 1], 1 is far."""

    label: np.ndarray
    part: np.ndarray
    distance: np.ndarray


class _Canvas:
    """Objects painted over each other, the nearest last."""

    def __init__(self, height: int, width: int) -> None:
        self.y, self.x = np.mgrid[0:height, 0:width].astype(float) + 0.5
        self.label = np.full((height, width), SKY, np.uint8)
        self.part = np.zeros((height, width), np.int64)
        self.distance = np.ones((height, width))
        self.count = 0

    def put(self, where: np.ndarray, label: int, distance: float | np.ndarray, *, new: bool = True) -> None:
        self.count += new
        self.label[where], self.part[where] = label, self.count
        self.distance[where] = np.broadcast_to(distance, where.shape)[where]

    def box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        return (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        return ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2 < 1


def draw_layout(rng: np.random.Generator, height: int, width: int) -> Layout:
    """One street seen from a car: sky, houses and trees, road and pavements, poles, signs, people, cars, a bonnet."""
    canvas = _Canvas(height, width)
    horizon = height * rng.uniform(0.38, 0.5)
    vanish = width * rng.uniform(0.35, 0.65)
    ground = canvas.y >= horizon
    near = np.clip((canvas.y - horizon) / (height - horizon), 1e-3, 1)  # 0 at the horizon, 1 at the bottom
    half_road, half_all = width * rng.uniform(0.4, 0.65), width * rng.uniform(0.75, 1.1)
    offset = np.abs(canvas.x - vanish)
    lawn = rng.random(2) < 0.4
    for side in (0, 1):
        kind = VEGETATION if lawn[side] else SIDEWALK
        canvas.put(ground & ((canvas.x >= vanish) == side), kind, 1 - near)
    canvas.put(ground & (offset < half_all * near), SIDEWALK, 1 - near)
    canvas.put(ground & (offset < half_road * near + 0.5), ROAD, 1 - near)
    for side in (-1, 1):
        _row_of_houses(canvas, rng, side, vanish, horizon, half_all)
    objects = [(rng.uniform(0.12, 0.8), _furniture) for _ in range(rng.integers(3, 7))]
    objects += [(rng.uniform(0.1, 0.75), _person) for _ in range(rng.integers(1, 5))]
    objects += [(rng.uniform(0.08, 0.85), _car) for _ in range(rng.integers(1, 4))]
    for depth, draw in sorted(objects, key=lambda placed: placed[0]):  # the far ones first
        foot = horizon + depth * (height - horizon)
        draw(canvas, rng, vanish, foot, depth, half_road * depth, half_all * depth)
    bonnet = canvas.ellipse(width / 2, height * 1.02, width * 0.4, height * 0.07)
    canvas.put(bonnet, VOID, 0.0)
    return Layout(canvas.label, canvas.part, canvas.distance)


def _row_of_houses(
    canvas: _Canvas, rng: np.random.Generator, side: int, vanish: float, horizon: float, half: float
) -> None:
    """Houses and trees along one side, the far ones first."""
    height = canvas.label.shape[0]
    depth = 0.08
    while depth < 1:
        step = rng.uniform(0.1, 0.3)
        far, near = depth, min(depth + step, 1.0)
        x_far, x_near = vanish + side * half * far, vanish + side * half * near * 1.6
        left, right = min(x_far, x_near), max(x_far, x_near)
        foot = horizon + (far + near) / 2 * (height - horizon) * 0.55
        if rng.random() < 0.68:
            top = horizon - rng.uniform(0.25, 0.9) * height * (0.25 + 0.75 * near)
            canvas.put(canvas.box(left, top, right, foot), BUILDING, 1 - far)
        else:
            size = rng.uniform(0.14, 0.26) * height * (0.35 + near)
            middle = (left + right) / 2
            canvas.put(canvas.box(left, foot - size * 0.5, right, foot), VEGETATION, 1 - far)
            for _ in range(3):
                x, y = middle + rng.normal(0, size * 0.5), foot - size * rng.uniform(0.6, 1.6)
                crown = canvas.ellipse(x, y, size * rng.uniform(0.5, 1.0), size * rng.uniform(0.4, 0.8))
                canvas.put(crown, VEGETATION, 1 - far, new=False)
        depth = near + rng.uniform(-0.02, 0.06)


def _furniture(
    canvas: _Canvas, rng: np.random.Generator, vanish: float, foot: float, depth: float, road: float, pavement: float
) -> None:
    """A pole at the kerb, most of the time with a sign: a disc or a board."""
    height = canvas.label.shape[0]
    side = rng.choice((-1, 1))
    x = vanish + side * (road + rng.uniform(0.05, 0.6) * max(pavement - road, 1.0))
    tall = height * (0.15 + 0.55 * depth) * rng.uniform(0.8, 1.3)
    wide = 0.5 + 0.8 * depth
    canvas.put(canvas.box(x - wide, foot - tall, x + wide, foot), POLE, 1 - depth)
    if rng.random() < 0.5:
        size, y = 1.6 + 4.0 * depth, foot - tall * rng.uniform(0.75, 1.0)
        if rng.random() < 0.5:
            canvas.put(canvas.ellipse(x, y, size, size), SIGN, 1 - depth)
        else:
            canvas.put(canvas.box(x - size * 1.3, y - size * 0.8, x + size * 1.3, y + size * 0.8), SIGN, 1 - depth)


def _person(
    canvas: _Canvas, rng: np.random.Generator, vanish: float, foot: float, depth: float, road: float, pavement: float
) -> None:
    """Legs and trunk as one ellipse, a head on it; most of them on the pavement."""
    height = canvas.label.shape[0]
    side = rng.choice((-1, 1))
    x = vanish + side * (road + rng.uniform(-0.2, 1.0) * max(pavement - road, 2.0))
    tall = height * (0.06 + 0.32 * depth) * rng.uniform(0.85, 1.15)
    wide = tall * rng.uniform(0.16, 0.24)
    canvas.put(canvas.ellipse(x, foot - tall * 0.42, wide, tall * 0.42), PERSON, 1 - depth)
    canvas.put(canvas.ellipse(x, foot - tall * 0.9, wide * 0.55, tall * 0.12), PERSON, 1 - depth, new=False)


def _car(
    canvas: _Canvas, rng: np.random.Generator, vanish: float, foot: float, depth: float, road: float, pavement: float
) -> None:
    """A body and a narrower cabin, in one of two lanes."""
    width = canvas.label.shape[1]
    x = vanish + rng.choice((-1, 1)) * road * rng.uniform(0.3, 0.8)
    half = width * (0.03 + 0.16 * depth) * rng.uniform(0.8, 1.2)
    tall = half * rng.uniform(0.75, 0.95)
    canvas.put(canvas.box(x - half, foot - tall, x + half, foot), CAR, 1 - depth)
    cabin = canvas.ellipse(x, foot - tall, half * 0.8, tall * 0.75) & (canvas.y < foot - tall * 0.5)
    canvas.put(cabin, CAR, 1 - depth, new=False)


def paint(layout: Layout, style: Style, rng: np.random.Generator) -> np.ndarray:
    """The layout in a style, uint8 (H, W, 3) RGB."""
    height, width = layout.label.shape
    void = layout.label == VOID
    label = np.where(void, CAR, layout.label)
    kinds = np.zeros(layout.part.max() + 1, np.int64)
    kinds[layout.part] = label
    mean = (1 - style.paint) * DAY + style.paint * DUSK
    tint = 0.6 * rng.normal(size=(len(kinds), 1)) + rng.normal(size=(len(kinds), 3))
    colours = mean[kinds] + SPREAD[kinds, None] * tint
    picture = colours[layout.part]
    fine = rng.normal(size=(height, width))
    coarse = 2 * np.sqrt(np.pi) * COARSE * gaussian_filter(rng.normal(size=(height, width)), COARSE)  # unit variance
    grain = TEXTURE[label] * style.texture * (0.7 * fine + coarse)
    storeys, bays = np.sin(1.1 * np.arange(height))[:, None] > 0.3, np.sin(0.9 * np.arange(width)) > 0.2
    windows = (layout.label == BUILDING) & storeys & bays
    picture = picture + grain[..., None] - 0.14 * windows[..., None]
    picture[void] = 0.12
    grey = picture.mean(-1, keepdims=True)
    picture = grey + style.saturation * (picture - grey)
    haze = style.haze * np.where(layout.label == SKY, 0.5, layout.distance**2)[..., None]
    picture = (1 - haze) * picture + haze * 0.7
    across = np.linspace(-1, 1, width) * rng.choice((-1, 1))
    picture = picture * style.light * (1 + style.glow * across)[None, :, None] * np.asarray(style.cast)
    picture = np.clip(picture, 0, 1) ** style.gamma
    if style.blur > 0:
        picture = gaussian_filter(picture, (style.blur, style.blur, 0), mode="nearest")
    picture = picture + style.noise * rng.normal(size=picture.shape)
    return np.clip(picture * 255, 0, 255).round().astype(np.uint8)
