"""The CAVE database: as distributed, 31 PNG of 16 bits in a folder per scene, or as cubes.

Yasuma et al. 2010, Generalized Assorted Pixel Camera; bands at 400 to 700 nm in steps of 10.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SceneError, UsageError
from pipeline.evaluation.degraded import replaced
from pipeline.grid import Window
from pipeline.readers import open_scene
from pipeline.storage import describe, open_filesystem, redact, unstrip
from pipeline.values import read_window

BANDS = 31
FULL_SCALE = 65535
_FILE = re.compile(r"(?P<scene>.+)_ms_\d\d\.png")
_MOST_BYTES = 16 << 20  # of one PNG
_MOST_PIXELS = 1 << 24


def cave_folders(
    source: str, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, str]:
    """Scenes by name that lie below a source as folders of PNG; the values are their folders.

    Raises:
        UsageError: the source cannot be listed.
    """
    filesystem, path = open_filesystem(source)
    try:
        files = filesystem.find(path)
    except Exception as error:  # whatever a store raises, it is of no use
        raise UsageError(f"cannot list {redact(source)}: {describe(error)}") from error
    parts = (file.rpartition("/") for file in files)
    found = {
        (match["scene"], folder) for folder, _, file in parts if (match := _FILE.fullmatch(file))
    }
    return {
        name: unstrip(filesystem, folder)
        for name, folder in sorted(found)
        if (not include or any(fnmatchcase(name, glob) for glob in include))
        and not any(fnmatchcase(name, glob) for glob in exclude)
    }


def open_cave(uri: str) -> xr.Dataset:
    """A CAVE scene in [0, 1], with wavelengths; a cube as `open_scene` reads it.

    Raises:
        SceneError: not 31 bands, or unreadable.
    """
    filesystem, path = open_filesystem(uri)
    if filesystem.isdir(path) and not path.endswith(".zarr"):
        values = _of_pngs(filesystem, path)
        scene = xr.Dataset(
            {"reflectance": (("band", "y", "x"), values)},
            {"good_band": ("band", np.ones(BANDS, bool))},
            {"source": path},
        )
    else:
        scene = open_scene(uri)
        if scene.sizes["band"] != BANDS:
            reason = f"{scene.sizes['band']} bands, CAVE has {BANDS}"
            raise SceneError("band-mismatch", reason)
        values = read_window(scene, Window(0, scene.sizes["y"], 0, scene.sizes["x"]))
    scene = replaced(scene, values / np.float32(FULL_SCALE))
    # As stored: whoever reads it knows that 65535 is white.
    scene["reflectance"].encoding = {"dtype": "uint16", "scale_factor": 1 / FULL_SCALE}
    waves = 400.0 + 10.0 * np.arange(BANDS)
    return scene.assign_coords(wavelength=("band", waves))


def _of_pngs(filesystem: Any, folder: str) -> NDArray[np.float32]:
    names = sorted(path for path in filesystem.ls(folder, detail=False) if path.endswith(".png"))
    files = [path for path in names if _FILE.fullmatch(path.rpartition("/")[2])]
    if len(files) != BANDS:
        raise SceneError("missing-data", f"{len(files)} of {BANDS} PNG files are there")
    planes = [_plane(filesystem, path) for path in files]
    if len({plane.shape for plane in planes}) > 1:
        raise SceneError("bad-header", "the PNG files differ in size")
    return np.stack(planes)


def _plane(filesystem: Any, path: str) -> NDArray[np.float32]:
    with filesystem.open(path, "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise SceneError("unsupported", f"{path}: larger than {_MOST_BYTES >> 20} MiB")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise SceneError("unsupported", f"{path}: {image.width} x {image.height} pixels")
        values = np.asarray(image)
    if values.ndim == 3:  # one scene of the database has its bands as RGBA of 8 bits
        values = values[..., 0].astype(np.uint16) * 257
    return values.astype(np.float32)
