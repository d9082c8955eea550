"""The six figures of merit that the field prints, as the published evaluation computes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion, uniform_filter

Cube = NDArray[np.float64]
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]

_WINDOW = 7  # pixels along the side of SSIM's window
_EDGE = _WINDOW // 2


def correlation(reference: Cube, estimate: Cube) -> float:
    """Cross correlation, mean over bands (1 is best)."""
    r = reference - reference.mean(axis=(1, 2), keepdims=True)
    e = estimate - estimate.mean(axis=(1, 2), keepdims=True)
    numerator = (r * e).sum(axis=(1, 2))
    denominator = np.sqrt((r * r).sum(axis=(1, 2)) * (e * e).sum(axis=(1, 2)))
    return float(np.mean(numerator / denominator))


def spectral_angle(reference: Cube, estimate: Cube) -> float:
    """Spectral angle, degrees, mean over pixels where neither spectrum is zero (0 is best)."""
    dot = (reference * estimate).sum(axis=0)
    norms = np.linalg.norm(reference, axis=0) * np.linalg.norm(estimate, axis=0)
    valid = norms > 0
    cosine = np.clip(dot[valid] / norms[valid], -1.0, 1.0)
    return float(np.degrees(np.arccos(cosine)).mean()) if valid.any() else 0.0


def rmse(reference: Cube, estimate: Cube) -> float:
    """Root mean squared error over the whole cube, in the cube's units."""
    return float(np.sqrt(np.mean((reference - estimate) ** 2)))


def ergas(reference: Cube, estimate: Cube, scale: int) -> float:
    """Relative dimensionless global error in synthesis (Wald 2000), 0 is best."""
    error = ((reference - estimate) ** 2).mean(axis=(1, 2))
    mean = reference.mean(axis=(1, 2))
    return float(100.0 / scale * np.sqrt(np.mean(error / mean**2)))


def psnr(reference: Cube, estimate: Cube) -> float:
    """Peak signal to noise ratio in dB for a peak of 1, mean over bands."""
    error = ((reference - estimate) ** 2).mean(axis=(1, 2))
    return float(np.mean(10.0 * np.log10(1.0 / error)))


def ssim(reference: Cube, estimate: Cube, valid: Mask | None = None) -> float:
    """Structural similarity (Wang et al. 2004), 7x7 uniform window, range 1, mean over bands.

    With `valid` `(rows, cols)`, over the windows in which every pixel is valid; NaN if none is.
    """
    inside = slice(_EDGE, -_EDGE), slice(_EDGE, -_EDGE)  # a window must lie inside the image
    counted = None if valid is None else binary_erosion(valid, np.ones((_WINDOW, _WINDOW)))[inside]
    if min(reference.shape[1:]) < _WINDOW or (counted is not None and not counted.any()):
        return float("nan")
    bands = (_similarity(r, e)[inside] for r, e in zip(reference, estimate, strict=True))
    return float(
        np.mean([band.mean() if counted is None else band[counted].mean() for band in bands])
    )


def _similarity(r: Plane, e: Plane, peak: float = 1.0) -> Plane:
    """The index of the window around each pixel of a band."""
    count = _WINDOW * _WINDOW
    unbiased = count / (count - 1)
    mean_r, mean_e = uniform_filter(r, _WINDOW), uniform_filter(e, _WINDOW)
    var_r = unbiased * (uniform_filter(r * r, _WINDOW) - mean_r**2)
    var_e = unbiased * (uniform_filter(e * e, _WINDOW) - mean_e**2)
    covariance = unbiased * (uniform_filter(r * e, _WINDOW) - mean_r * mean_e)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity: Plane = ((2 * mean_r * mean_e + c1) * (2 * covariance + c2)) / (
        (mean_r**2 + mean_e**2 + c1) * (var_r + var_e + c2)
    )
    return similarity


def assess(
    reference: ArrayLike, estimate: ArrayLike, scale: int, valid: Mask | None = None
) -> dict[str, float]:
    """All six figures.

    Args:
        reference: `(bands, rows, cols)` in [0, 1].
        estimate: same shape.
        scale: upsampling factor, used by ERGAS.
        valid: `(rows, cols)`, pixels that count; None: all. The others must be finite too.

    Returns:
        `cc`, `sam` (degrees), `rmse`, `ergas`, `psnr` (dB), `ssim`.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
    """
    r = np.asarray(reference, dtype=np.float64)
    e = np.asarray(estimate, dtype=np.float64)
    if r.ndim != 3 or r.shape != e.shape:
        raise ValueError(f"expected two equal (bands, rows, cols) arrays, got {r.shape}, {e.shape}")
    similarity = ssim(r, e, valid)
    if valid is not None:
        r, e = r[:, valid][..., None], e[:, valid][..., None]
    return {
        "cc": correlation(r, e),
        "sam": spectral_angle(r, e),
        "rmse": rmse(r, e),
        "ergas": ergas(r, e, scale),
        "psnr": psnr(r, e),
        "ssim": similarity,
    }
