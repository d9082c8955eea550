"""The training loss: L1 plus total variation in space and along the spectrum, as published.

An optional term lowers the spectral angle. Masks leave out what the scene does not hold.
"""

from __future__ import annotations

from torch import Tensor

_DARK = 5e-3  # root mean square of a spectrum below which its angle counts less and less
_SMOOTH = 1e-3  # radians below which the angle's loss is a parabola, so that its gradient is finite


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over all, or over what is valid; 0 if nothing is."""
    if valid is None:
        return x.mean()
    valid = valid.expand_as(x)
    return (x * valid).sum() / valid.sum().clamp(min=1)


def spatial_variation(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared differences of neighbouring pixels, rows plus columns.

    Args:
        x: `[N, bands, H, W]`.
        valid: bool, `[N, 1 or bands, H, W]`; pairs with a pixel that is not valid do not count.
    """
    above = beside = None
    if valid is not None:
        above, beside = valid[:, :, 1:] & valid[:, :, :-1], valid[..., 1:] & valid[..., :-1]
    rows = _mean((x[:, :, 1:] - x[:, :, :-1]).square(), above)
    columns = _mean((x[..., 1:] - x[..., :-1]).square(), beside)
    return rows + columns


def spectral_variation(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Twice the mean squared difference of neighbouring bands; arguments as above."""
    if valid is not None and valid.shape[1] > 1:
        valid = valid[:, 1:] & valid[:, :-1]
    return 2.0 * _mean((x[:, 1:] - x[:, :-1]).square(), valid)


def spectral_angle(estimate: Tensor, reference: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean angle, radians, between the spectra of estimate and reference.

    It is the chord between the two directions, which is the angle while that is small, and its
    gradient is finite everywhere: at equal spectra and at black ones. Spectra as dark as 0.005
    count less, for their direction is noise.

    Args:
        estimate: `[N, bands, H, W]`.
        reference: same shape.
        valid: bool, `[N, 1 or bands, H, W]`; the angle is that of the valid bands.
    """
    counted = None
    if valid is not None:
        counted = valid.any(dim=1)
        estimate, reference = (x.masked_fill(~valid, 0.0) for x in (estimate, reference))
    dark = _DARK**2 * estimate.shape[1]  # as if every spectrum had one more, dark band
    ours, theirs = (
        (x.square().sum(dim=1, keepdim=True) + dark).rsqrt() for x in (estimate, reference)
    )
    apart = (estimate * ours - reference * theirs).square().sum(dim=1)
    apart = apart + dark * (ours - theirs).square()[:, 0]
    return _mean((apart + _SMOOTH**2).sqrt() - _SMOOTH, counted)


def hybrid_loss(
    estimate: Tensor,
    reference: Tensor,
    spatial: float = 1e-3,
    spectral: float = 1e-3,
    angle: float = 0.0,
    valid: Tensor | None = None,
) -> Tensor:
    """L1 + spatial * TV + spectral * spectral TV (arXiv 2005.08752, section III-D) + angle * SAM.

    Args:
        estimate: `[N, bands, H, W]`.
        reference: same shape; anything, NaN too, where not valid.
        spatial: weight of the spatial total variation of the estimate.
        spectral: weight of its spectral total variation.
        angle: weight of the mean spectral angle in radians; 0 is the published loss.
        valid: bool, `[N, 1 or bands, H, W]`: where the loss counts; None: everywhere.
    """
    if valid is not None:
        reference = reference.masked_fill(~valid, 0.0)
    loss = _mean((estimate - reference).abs(), valid)
    if spatial:
        loss = loss + spatial * spatial_variation(estimate, valid)
    if spectral:
        loss = loss + spectral * spectral_variation(estimate, valid)
    if angle:
        loss = loss + angle * spectral_angle(estimate, reference, valid)
    return loss
