"""Invented landscapes at high resolution: which material covers which pixel, and how it is lit.

Nothing here is measured. The spectra are analytic curves with the shapes that such materials have
between 400 and 700 nm; the patterns are fractal noise, field polygons and town blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]
Random = np.random.Generator


def _bump(wavelength: Array, centre: float, width: float) -> Array:
    return np.exp(-0.5 * ((wavelength - centre) / width) ** 2)


def _edge(wavelength: Array, centre: float, width: float) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-(wavelength - centre) / width)))


def _ramp(wavelength: Array) -> Array:
    return np.clip((wavelength - 400.0) / 300.0, 0.0, None)


MATERIALS: dict[str, Callable[[Array], Array]] = {
    # Chlorophyll leaves a green peak at 550 nm; the red edge begins below 700 nm.
    "vegetation": lambda w: 0.03 + 0.07 * _bump(w, 552, 32) + 0.42 * _edge(w, 715, 11),
    "straw": lambda w: 0.09 + 0.24 * _ramp(w) ** 0.9 - 0.02 * _bump(w, 670, 18),
    "soil": lambda w: 0.05 + 0.19 * _ramp(w) ** 1.3 - 0.015 * _bump(w, 490, 35),
    "wet soil": lambda w: 0.025 + 0.08 * _ramp(w) ** 1.4,
    "sand": lambda w: 0.17 + 0.26 * _ramp(w) ** 0.8,
    "clear water": lambda w: 0.008 + 0.055 * _bump(w, 470, 55),
    "turbid water": lambda w: 0.02 + 0.085 * _bump(w, 570, 60),
    "concrete": lambda w: 0.23 + 0.08 * _ramp(w) ** 0.7,
    "asphalt": lambda w: 0.065 + 0.02 * _ramp(w),
    "clay tile": lambda w: 0.05 + 0.27 * _edge(w, 588, 17),
    "metal": lambda w: 0.48 + 0.04 * _ramp(w),
    "blue paint": lambda w: 0.06 + 0.22 * _bump(w, 455, 38) + 0.03 * _edge(w, 690, 12),
}
_INDEX = {name: index for index, name in enumerate(MATERIALS)}


def spectra(wavelength: Array) -> Array:
    """Reflectance of every material, `[material, band]`."""
    return np.stack([curve(wavelength) for curve in MATERIALS.values()])


def fractal(random: Random, shape: tuple[int, int], exponent: float = 1.8) -> Array:
    """Noise whose amplitude falls with frequency, scaled to zero mean and unit deviation."""
    rows, columns = (np.fft.fftfreq(size)[:, None] for size in shape)
    frequency = np.hypot(rows, columns.T)
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(random.standard_normal(shape)) * frequency**-exponent
    noise = np.fft.ifft2(spectrum).real
    return np.asarray((noise - noise.mean()) / noise.std())


class Landscape:
    """Shares of the materials `[material, row, column]` and relative illumination."""

    def __init__(self, random: Random, shape: tuple[int, int]) -> None:
        self.random = random
        self.shape = shape
        self.shares = np.zeros((len(MATERIALS), *shape))
        self.light = self._relief()

    def _relief(self) -> Array:
        slope = np.gradient(fractal(self.random, self.shape, 2.0), axis=1)
        return np.asarray(np.clip(1.0 + 0.12 * slope / slope.std(), 0.6, 1.4))

    def rotated(self, degrees: float) -> tuple[Array, Array]:
        """Row and column of every pixel in a grid turned by an angle."""
        rows, columns = np.indices(self.shape, dtype=np.float64)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return cosine * rows + sine * columns, cosine * columns - sine * rows

    def paint(self, mask: NDArray[np.bool_], **materials: Array | float) -> None:
        """Cover `mask` with materials (underscores for blanks) in proportion to their shares."""
        names = [_INDEX[name.replace("_", " ")] for name in materials]
        parts = [np.broadcast_to(share, self.shape) for share in materials.values()]
        total = np.clip(sum(parts[1:], parts[0]), 1e-6, None)
        self.shares[:, mask] = 0.0
        for index, part in zip(names, parts, strict=True):
            self.shares[index][mask] = (part / total)[mask]

    def reflectance(self, wavelength: Array) -> Array:
        """Mixed and lit, `[band, row, column]`."""
        texture = 1.0 + 0.02 * self.random.standard_normal(self.shape)
        mixed = np.einsum("mb,mrc->brc", spectra(wavelength), self.shares, optimize=True)
        return np.asarray(np.clip(mixed * self.light * texture, 0.002, 0.98))


def fields(random: Random, shape: tuple[int, int]) -> Landscape:
    """Farm land: polygons with crops, stubble or bare soil, crop rows, tracks between them."""
    scene = Landscape(random, shape)
    u, v = scene.rotated(24.0)
    count = max(6, shape[0] * shape[1] // 3200)
    sites = np.column_stack([random.uniform(u.min(), u.max(), count * 2),
                             random.uniform(v.min(), v.max(), count * 2)])  # fmt: skip
    stretch = np.array([1.0, 0.55])
    grid = np.column_stack([u.ravel(), v.ravel()]) * stretch
    distance, nearest = cKDTree(sites * stretch).query(grid, k=2)
    cell = nearest[:, 0].reshape(shape)
    gap = (distance[:, 1] - distance[:, 0]).reshape(shape)
    crop = random.beta(0.6, 0.7, len(sites))[cell]
    stubble = (random.random(len(sites)) < 0.25)[cell]
    moisture = np.clip(0.4 + 0.35 * fractal(random, shape), 0.0, 1.0)
    period = random.choice([6.0, 9.0, 14.0], len(sites))[cell]
    furrow = 0.5 + 0.5 * np.sin(2 * np.pi * u / period)
    cover = np.clip(crop * (0.75 + 0.35 * furrow) + 0.08 * fractal(random, shape), 0.02, 0.98)
    everywhere = np.ones(shape, dtype=bool)
    bare = 1.0 - cover
    scene.paint(everywhere, vegetation=cover, soil=bare * (1 - moisture), wet_soil=bare * moisture)
    scene.paint(stubble, straw=0.8 * furrow + 0.1, soil=0.3, vegetation=0.1 * crop)
    scene.paint(gap < 2.0, soil=0.7, concrete=0.2, vegetation=0.1)
    scene.paint(_trees(random, shape, count // 2, 6.0), vegetation=1.0, wet_soil=0.25)
    return scene


def town(random: Random, shape: tuple[int, int]) -> Landscape:
    """Streets, houses with roofs of several materials and their shadows, gardens, trees."""
    scene = Landscape(random, shape)
    u, v = scene.rotated(-17.0)
    green = np.clip(0.55 + 0.3 * fractal(random, shape), 0.05, 1.0)
    everywhere = np.ones(shape, dtype=bool)
    scene.paint(everywhere, vegetation=green, soil=1.0 - green, concrete=0.15)
    scene.paint((u % 46 < 7) | (v % 62 < 6), asphalt=0.9, concrete=0.1)
    house, number = _houses(u, v)
    lots = int(number.max()) + 1
    built = house & (random.random(lots) < 0.8)[number]
    shadow = np.roll(built, (3, 4), axis=(0, 1)) & ~built
    roof = random.choice(4, lots, p=[0.5, 0.2, 0.2, 0.1])[number]
    for index, material in enumerate(("clay_tile", "concrete", "metal", "blue_paint")):
        scene.paint(built & (roof == index), **{material: 0.95, "asphalt": 0.05})
    scene.light = np.where(built, 0.85 + 0.3 * random.random(lots)[number], scene.light)
    scene.light = np.where(shadow, 0.4, scene.light)
    trees = _trees(random, shape, shape[0] * shape[1] // 2500, 4.0) & ~built
    scene.paint(trees, vegetation=1.0, wet_soil=0.2)
    return scene


def _houses(u: Array, v: Array) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Mask of the houses' footprints in the blocks, and the number of each pixel's lot."""
    row, column = np.floor((u - 7) / 19.5), np.floor((v - 6) / 18.7)
    inside_u, inside_v = (u - 7) % 19.5, (v - 6) % 18.7
    street = (u % 46 < 8) | (v % 62 < 7)
    house = (inside_u > 3) & (inside_u < 15) & (inside_v > 3) & (inside_v < 14) & ~street
    row, column = row - row.min(), column - column.min()
    return house, (row * (column.max() + 1) + column).astype(np.int64)


def coast(random: Random, shape: tuple[int, int]) -> Landscape:
    """A shore: clear and turbid water, a beach, dunes with sparse plants, a wood."""
    scene = Landscape(random, shape)
    _, columns = np.indices(shape) / shape[1]
    height = columns - 0.45 + 0.22 * fractal(random, shape)
    patches = fractal(random, shape, 1.4)
    turbid = np.clip(1.0 + height * 4.0 + 0.25 * patches, 0.0, 1.0)
    scene.paint(height < 0, clear_water=1.0 - turbid + 0.02, turbid_water=turbid)
    scene.light = np.where(height < 0, 1.0 + 0.03 * fractal(random, shape, 0.6), scene.light)
    scene.paint((height >= 0) & (height < 0.12), sand=1.0, wet_soil=np.clip(1 - height * 20, 0, 1))
    plants = np.clip(0.45 + 0.5 * patches, 0.02, 1.0)
    scene.paint(height >= 0.12, vegetation=plants, sand=1.0 - plants, soil=0.2)
    wood = (height > 0.3) & (patches > -0.2)
    scene.paint(wood, vegetation=1.0, wet_soil=np.clip(0.4 + 0.4 * fractal(random, shape), 0, 1))
    path = (np.abs(patches - 0.1) < 0.05) & (height > 0.15)
    scene.paint(path, sand=0.6, concrete=0.4)
    return scene


def _trees(random: Random, shape: tuple[int, int], count: int, radius: float) -> NDArray[np.bool_]:
    """Crowns as discs of several sizes."""
    centres = random.uniform((0, 0), shape, (max(1, count), 2))
    sizes = random.uniform(0.5, 1.0, len(centres)) * radius
    grid = np.indices(shape).reshape(2, -1).T
    distance, nearest = cKDTree(centres).query(grid)
    return np.asarray((distance < sizes[nearest]).reshape(shape))


LANDSCAPES: dict[str, Callable[[Random, tuple[int, int]], Landscape]] = {
    "fields": fields,
    "town": town,
    "coast": coast,
}
