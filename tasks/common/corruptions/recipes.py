"""The constants of the 15 corruptions: those of CIFAR-10-C, of ImageNet-C, and of the package imagecorruptions.

Each corruption has five entries, severity 1 first.
Source: the 32-pixel and the 224-pixel script of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261);
imagecorruptions 1.1.2 (Michaelis et al., arXiv 1907.07484), which departs from the second in snow, frost and elastic
transform.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """What each corruption does at each severity; lengths are in pixels where nothing else is said."""

    name: str
    gaussian_noise: tuple[float, ...]  # standard deviation
    shot_noise: tuple[int, ...]  # photons in a white pixel
    impulse_noise: tuple[float, ...]  # share of values replaced
    defocus_blur: tuple[tuple[float, float], ...]  # radius of the disc, sigma that smooths it
    glass_blur: tuple[tuple[float, int, int], ...]  # sigma; how far a pixel may come from; passes
    motion_blur: tuple[tuple[int, float], ...]  # radius, sigma
    zoom_blur: tuple[tuple[int, float], ...]  # how many factors from 1 on, step between them
    snow: tuple[tuple[float, float, float, float, int, float, float], ...]
    # mean, deviation, zoom, threshold of the flakes; radius, sigma of their fall; share of the image kept
    frost: tuple[tuple[float, float], ...]  # weight of the image, of the frost
    fog: tuple[tuple[float, float], ...]  # amount, decay from scale to scale
    brightness: tuple[float, ...]  # added to the value of HSV
    contrast: tuple[float, ...]  # scale about the mean
    elastic_transform: tuple[tuple[float, float, float], ...]
    # shares of ``elastic_side``: size and smoothing sigma of the displacement, range of the affine map's three points
    pixelate: tuple[float, ...]  # share of the pixels kept on a side
    jpeg_compression: tuple[int, ...]  # quality
    elastic_side: float = 1.0  # as a share of the image's side
    shrink: int = 1  # of the frost photos
    side: int | None = None  # the only size of images that the constants are for
    package: bool = (
        False  # flakes are moved before they are cut to the image, and rounded; frost is enlarged by a tenth
    )


CIFAR = Recipe(
    name="cifar",
    gaussian_noise=(0.04, 0.06, 0.08, 0.09, 0.10),
    shot_noise=(500, 250, 100, 75, 50),
    impulse_noise=(0.01, 0.02, 0.03, 0.05, 0.07),
    defocus_blur=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    glass_blur=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    motion_blur=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    zoom_blur=((7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
    snow=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    frost=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    fog=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    brightness=(0.05, 0.1, 0.15, 0.2, 0.3),
    contrast=(0.75, 0.5, 0.4, 0.3, 0.15),
    elastic_transform=(
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    pixelate=(0.95, 0.9, 0.85, 0.75, 0.65),
    jpeg_compression=(80, 65, 58, 50, 40),
    shrink=5,
    side=32,
)

IMAGENET = Recipe(
    name="imagenet",
    gaussian_noise=(0.08, 0.12, 0.18, 0.26, 0.38),
    shot_noise=(60, 25, 12, 5, 3),
    impulse_noise=(0.03, 0.06, 0.09, 0.17, 0.27),
    defocus_blur=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    glass_blur=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    motion_blur=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    zoom_blur=((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
    snow=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    frost=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    fog=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    elastic_transform=((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    pixelate=(0.6, 0.5, 0.4, 0.3, 0.25),
    jpeg_compression=(25, 18, 15, 10, 7),
    elastic_side=244 / 224,  # the script's slip: 244 for its images of 224 pixels
)

IMAGECORRUPTIONS = replace(
    IMAGENET,
    name="imagecorruptions",
    elastic_transform=tuple((250 * amount * 0.005, 0.01, 0.0) for amount in (0.05, 0.065, 0.085, 0.1, 0.12)),
    elastic_side=1.0,
    package=True,
)

RECIPES = {recipe.name: recipe for recipe in (CIFAR, IMAGENET, IMAGECORRUPTIONS)}
