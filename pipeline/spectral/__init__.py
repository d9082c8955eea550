"""The spectral contract: which bands of a scene go through the model, and how."""

from pipeline.spectral.plan import BandPlan, Role, match_bands, plan_bands
from pipeline.spectral.resampling import in_model_bands, resample
from pipeline.spectral.windows import OVERLAP, BandWindow, band_windows

__all__ = [
    "OVERLAP",
    "BandPlan",
    "BandWindow",
    "Role",
    "band_windows",
    "in_model_bands",
    "match_bands",
    "plan_bands",
    "resample",
]
