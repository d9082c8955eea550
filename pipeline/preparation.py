"""What a run's options make of a scene: how it is read, its constants, how values are stored."""

from __future__ import annotations

import xarray as xr

from model import Card
from model.inference import Engine
from pipeline.arrays import VARIABLE
from pipeline.calibration import Calibration, calibrate
from pipeline.encoding import ValueEncoding
from pipeline.masks import mask_pixels
from pipeline.scene_job import OutputOptions
from pipeline.spectral import in_model_bands


def read_as_asked(scene: xr.Dataset, card: Card, options: OutputOptions) -> xr.Dataset:
    """The scene with its pixels masked and its bands resampled; lazy as before."""
    return in_model_bands(mask_pixels(scene, options.mask), card, options.bands)


def constants_of(
    scene: xr.Dataset, engine: Engine, card: Card, options: OutputOptions
) -> Calibration:
    """`calibrate` of a scene of `read_as_asked`."""
    return calibrate(
        scene,
        engine,
        card,
        policy=options.bands,
        outside=options.outside,
        tolerance=options.tolerance,
        normalise=options.normalise,
        pooling=options.attention,
    )


def encoding_of(
    scene: xr.Dataset, calibration: Calibration, options: OutputOptions
) -> ValueEncoding:
    """How the result of a scene of `read_as_asked` is stored."""
    return ValueEncoding.of_scene(
        scene[VARIABLE].encoding,
        float32=options.dtype == "float32",
        needs_fill=len(calibration.bands.valued) < scene.sizes["band"],
    )
