"""Does the result still say what the scene says? Quality without a reference.

A super-resolved scene that is degraded again should be the scene it was made from (the consistency
property of Wald et al. 1997). Here the result is degraded as `model.degradation` does and compared
with the LR pixels, tile by tile, in sums that add up over tiles.

A tile knows its result over its core only. So only its interior counts: those LR pixels of the core
of which all HR pixels that they read lie in the core. Where the core's border is the scene's, what
lies beyond is mirrored as in the whole scene, and all pixels count; elsewhere `support` LR pixels
along the border do not (2 of bicubic, at any scale): of a core of 64 x 64 in a scene 88 % count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from model.banded import Banded, Matrix, along_both, where_known
from model.degradation import Degradation, bicubic_enlargement
from model.extent import Extent

Numbers = NDArray[np.float64]

_BLOCKS = (8, 20)  # LR pixels per block of the operator of rows, of columns: the fastest on 64
_PER_BAND = 4


@dataclass(frozen=True)
class ConsistencySums:
    """Sums over the LR pixels that count; those of several tiles may be added.

    Attributes:
        difference: `[bands]`, of degraded minus LR.
        squared: `[bands]`, of its square.
        reference: `[bands]`, of the squared LR values.
        count: `[bands]`, LR pixels.
        angle: of the spectral angles, radians.
        pixels: LR pixels that have an angle.
    """

    difference: Numbers
    squared: Numbers
    reference: Numbers
    count: Numbers
    angle: float = 0.0
    pixels: float = 0.0

    @classmethod
    def zeros(cls, bands: int) -> ConsistencySums:
        """The sums of no tile."""
        return cls.from_array(np.zeros(_PER_BAND * bands + 2))

    def __add__(self, other: ConsistencySums) -> ConsistencySums:
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"sums of {self.count.size} bands and of {other.count.size} cannot be added"
            )
        return ConsistencySums.from_array(self.to_array() + other.to_array())

    def to_array(self) -> Numbers:
        """All sums in one vector float64 of `4 * bands + 2`."""
        per_band = (self.difference, self.squared, self.reference, self.count)
        return np.concatenate([*per_band, [self.angle, self.pixels]])

    @classmethod
    def from_array(cls, values: ArrayLike) -> ConsistencySums:
        """The inverse of `to_array`.

        Raises:
            ValueError: it has another length, is not finite, or a sum is negative that cannot be.
        """
        vector = np.asarray(values, dtype=np.float64)
        if vector.ndim != 1 or vector.size < 2 or (vector.size - 2) % _PER_BAND:
            raise ValueError(f"{vector.shape} is not the shape of a tile's consistency sums")
        bands = (vector.size - 2) // _PER_BAND
        if not np.isfinite(vector).all() or (vector[bands:] < 0).any():
            raise ValueError("consistency sums that are not finite or negative")
        difference, squared, reference, count = vector[:-2].reshape(_PER_BAND, bands).copy()
        return cls(difference, squared, reference, count, float(vector[-2]), float(vector[-1]))

    @property
    def bias(self) -> Numbers:
        """`[bands]`, mean of degraded minus LR in the scene's units; NaN where nothing counted."""
        return _ratio(self.difference, self.count)

    @property
    def rmse(self) -> Numbers:
        """`[bands]`, in the scene's units; NaN where nothing counted."""
        return np.sqrt(_ratio(self.squared, self.count))

    @property
    def relative_rmse(self) -> Numbers:
        """`[bands]`, RMSE as part of the LR values' root mean square; NaN where that is 0."""
        return np.sqrt(_ratio(self.squared, self.reference))

    @property
    def overall_rmse(self) -> float:
        """Over all bands and pixels, in the scene's units; NaN where nothing counted."""
        return float(np.sqrt(_ratio(self.squared.sum(), self.count.sum())))

    @property
    def sam(self) -> float:
        """Mean spectral angle in degrees; NaN where no pixel has one."""
        return float(np.degrees(_ratio(np.float64(self.angle), np.float64(self.pixels))))


def _ratio(sums: Numbers | np.float64, counts: Numbers | np.float64) -> Numbers:
    blank = np.full(np.shape(sums), np.nan)
    return np.divide(sums, counts, out=blank, where=np.greater(counts, 0))


@dataclass(frozen=True)
class _Axis:
    """What consistency needs of one axis of a tile.

    Attributes:
        core: of the LR window.
        interior: of the LR window.
        degrade: from the core's HR pixels to the interior.
        touches: from the core's LR pixels to the interior; not 0 where one reads the other.
        again: from the window's LR pixels to the interior, enlarged in between; None where the
            window is too small.
    """

    core: slice
    interior: slice
    degrade: Banded
    touches: Banded
    again: Banded | None


@lru_cache(maxsize=64)
def _axis(
    extent: Extent,
    size: int,
    degradation: Degradation,
    block: int,
    dtype: torch.dtype,
    device: torch.device,
) -> _Axis:
    if not 0 <= extent.start < extent.stop <= size:
        raise ValueError(f"the core {extent.start}..{extent.stop} is not a part of {size} pixels")
    length = extent.stop - extent.start
    matrix, inside = degradation.matrix(
        length, extent.at_start and extent.start == 0, extent.at_end and extent.stop == size
    )
    matrix, first = matrix[inside], extent.start + int(np.argmax(inside))
    touches = (matrix.reshape(-1, length, degradation.scale) != 0).any(axis=2)
    again = _enlarged_between(matrix, extent, size, degradation.scale)
    return _Axis(
        slice(extent.start, extent.stop),
        slice(first, first + len(matrix)),
        Banded.of(matrix, block, dtype, device),
        Banded.of(touches.astype(np.float64), block, dtype, device),
        None if again is None else Banded.of(again, block, dtype, device),
    )


def _enlarged_between(matrix: Matrix, extent: Extent, size: int, scale: int) -> Matrix | None:
    enlarge, inside = bicubic_enlargement(scale).matrix(
        (extent.start, extent.stop), size, extent.at_start, extent.at_end
    )
    return matrix @ enlarge if inside[matrix.any(axis=0)].all() else None


def consistency(
    lr: Tensor,
    sr: Tensor,
    rows: Extent,
    columns: Extent,
    degradation: Degradation,
    valid: Tensor | None = None,
) -> ConsistencySums:
    """How the degraded result of a tile differs from its LR pixels.

    Args:
        lr: `[bands, rows, columns]`, a window that holds the core; any units.
        sr: `[bands, scale * core rows, scale * core columns]`, the same units.
        rows, columns: where the core lies in the window.
        degradation: of `model.degradation`, with the result's scale.
        valid: bool like `lr`, false in gaps. An LR pixel counts in a band if `valid` holds and
            both sides are finite wherever it reads them.

    Returns:
        Sums over the interior. A pixel's spectral angle is over the bands that count there; it is
        left out where these are fewer than two, or where a spectrum is zero.

    Raises:
        ValueError: the shapes do not fit.
    """
    down, right = _axes(lr, rows, columns, degradation, valid)
    expected = (lr.shape[0], *(degradation.scale * _length(axis.core) for axis in (down, right)))
    if sr.shape != expected:
        raise ValueError(f"the result is {tuple(sr.shape)}, but its core needs {expected}")
    low, unknown = where_known(down.degrade, right.degrade, sr)
    return _sums(lr, valid, low, unknown, down, right)


def bicubic_consistency(
    lr: Tensor,
    rows: Extent,
    columns: Extent,
    degradation: Degradation,
    valid: Tensor | None = None,
) -> ConsistencySums:
    """What `consistency` says of the plain bicubic enlargement: what the result is compared with.

    Enlarging and degrading are one matrix per axis, so no HR pixel is computed. Arguments are those
    of `consistency`, and the pixels that count are the same as long as gaps in `lr` are filled
    (`valid` tells where they are); else those drop out too that bicubic makes from a gap.

    Raises:
        ValueError: the shapes do not fit, or the window has less than 2 LR pixels around the core
            where the scene goes on.
    """
    down, right = _axes(lr, rows, columns, degradation, valid)
    if down.again is None or right.again is None:
        raise ValueError("bicubic needs 2 LR pixels around the core wherever the scene goes on")
    low, unknown = where_known(down.again, right.again, lr)
    return _sums(lr, valid, low, unknown, down, right)


def _axes(
    lr: Tensor, rows: Extent, columns: Extent, degradation: Degradation, valid: Tensor | None
) -> tuple[_Axis, _Axis]:
    if lr.ndim != 3 or not lr.is_floating_point():
        raise ValueError(f"expected floats [bands, rows, columns], got {tuple(lr.shape)}")
    if valid is not None and (valid.shape != lr.shape or valid.dtype != torch.bool):
        raise ValueError(f"a mask {tuple(valid.shape)} {valid.dtype} of a scene {tuple(lr.shape)}")
    down, right = (
        _axis(extent, size, degradation, block, lr.dtype, lr.device)
        for extent, size, block in zip((rows, columns), lr.shape[1:], _BLOCKS, strict=True)
    )
    return down, right


def _length(pixels: slice) -> int:
    return int(pixels.stop - pixels.start)


def _sums(
    lr: Tensor,
    valid: Tensor | None,
    low: Tensor,
    unknown: Tensor | None,
    down: _Axis,
    right: _Axis,
) -> ConsistencySums:
    reference = lr[:, down.interior, right.interior]
    counted = None if unknown is None else ~unknown
    gaps = _gaps(lr, valid, down, right)
    if gaps is not None:
        clear = along_both(down.touches, right.touches, gaps.to(low.dtype)) == 0
        counted = clear if counted is None else counted & clear
    if counted is not None:
        low, reference = low.where(counted, 0), reference.where(counted, 0)
    return _compare(low, reference, counted)


def _gaps(lr: Tensor, valid: Tensor | None, down: _Axis, right: _Axis) -> Tensor | None:
    """Where the core has nothing to compare with; None if that is nowhere."""
    core = lr[:, down.core, right.core]
    # A sum is finite only if all of it is, and is had ten times faster.
    if not torch.isfinite(core.sum()):
        there = torch.isfinite(core)
        return ~(there if valid is None else there & valid[:, down.core, right.core])
    if valid is None or valid[:, down.core, right.core].all():
        return None
    return ~valid[:, down.core, right.core]


def _compare(low: Tensor, reference: Tensor, counted: Tensor | None) -> ConsistencySums:
    """The sums, of what is zero where it does not count; None: all counts."""
    difference, own_squared = low - reference, reference.square()
    flat = difference.flatten(1)
    bands, pixels = flat.shape
    count = low.new_full((bands,), pixels) if counted is None else counted.sum(dim=(1, 2))
    seen = bands if counted is None else counted.sum(dim=0)
    per_band = (flat.sum(dim=1), torch.linalg.vecdot(flat, flat), own_squared.sum(dim=(1, 2)))
    own, mixed = own_squared.sum(dim=0), (difference * reference).sum(dim=0)
    # The angle from what is left of the difference across the spectrum: the arc cosine of nearly 1
    # has no digits for small angles, nor has the difference of the squares.
    along = mixed / own.where(own > 0, 1)
    across = torch.addcmul(difference, reference, along, value=-1).square_().sum(dim=0)
    angle = torch.atan2(across.sqrt() * own.sqrt(), own + mixed)
    has_angle = (own > 0) & (own * (1 + along).square() + across > 0) & (seen > 1)
    spectra = [angle[has_angle].sum(dtype=torch.float64), has_angle.sum()]
    sums = torch.cat([*(part.double() for part in (*per_band, count)), torch.stack(spectra)])
    if low.dtype != torch.float64 and not (sums.sum() + own.sum() + across.sum()).isfinite():
        return _compare(low.double(), reference.double(), counted)  # such as undeclared nodata
    return ConsistencySums.from_array(sums.cpu().numpy())
