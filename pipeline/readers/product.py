"""Products of a TIFF image with metadata and quality layers beside it: EnMAP and DESIS."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.errors import SceneError
from pipeline.readers.boundary import boundary, failure
from pipeline.readers.delivery import Files, find_image, layer_name, metadata_names
from pipeline.readers.geotiff import BandFacts, TiffCube, describe_tiff, open_tiff
from pipeline.readers.masked import MaskedCube
from pipeline.readers.packing import Packing
from pipeline.readers.planes import Rule, flag_variable
from pipeline.readers.scene import SceneParts, WindowReader, assemble

_LARGEST_METADATA = 16 * 2**20

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """One quality layer: `STEM-<suffix>.TIF`, which flags it gives, and which values are defects.

    `flags` turns raw values (band, y, x) into named flags; `defects` marks, for a layer with the
    image's own bands, the values that become NaN.
    """

    suffix: str
    flags: Rule
    bands: int | None = 1
    defects: Callable[[npt.NDArray[Any]], Bool] | None = None


@dataclass(frozen=True)
class Sensor:
    """How one sensor's product differs: its name, its metadata, its layers."""

    format: str
    metadata: Callable[[str], BandFacts | None]
    layers: tuple[Layer, ...]


def read_product(uri: str, sensor_of: Callable[[str], Sensor]) -> xr.Dataset:
    """Open a product lazily: reads its metadata and the directories of its TIFFs.

    Args:
        uri: the image, the folder that holds it, or an archive (zip, tar; tar.gz if local).
        sensor_of: the sensor by the image's name.

    Raises:
        SceneError: `truncated` where the image is empty or cut, `bad-header` where the metadata
            are no metadata; what else is missing is noted and absent.
    """
    with boundary(uri, "cannot read the product"):
        files, image = find_image(uri)
        sensor = sensor_of(image)
        if files.size(image) == 0:
            raise failure("truncated", uri, "the spectral image is empty: fetch the product again")
        files.check_tiff(image)
        facts, note = _metadata(files, image, sensor)
        parts = describe_tiff(uri, files.address(image), facts)
        parts.notes.extend(note)
        layers = _open_layers(files, image, sensor, parts)
    reader, parts.packing = _mask_defects(parts, layers)
    flags = [(cube, slice(0, cube.shape[0]), layer.flags) for layer, cube in layers]
    variables = flag_variable(flags, parts.chunks, uri)
    return assemble(replace(parts, format=sensor.format, reader=reader, variables=variables))


def _metadata(files: Files, image: str, sensor: Sensor) -> tuple[BandFacts | None, list[str]]:
    for name in metadata_names(image):
        size = files.size(name)
        if size is None:
            continue
        if size > _LARGEST_METADATA:
            raise failure("bad-header", files.uri, "the METADATA.XML is larger than 16 MiB")
        text = files.read(name, _LARGEST_METADATA).decode("utf-8", errors="replace")
        if re.search(r"(?i)<!(DOCTYPE|ENTITY)", text):
            reason = "the METADATA.XML declares a document type: that is no product of DLR"
            raise failure("bad-header", files.uri, reason)
        facts = sensor.metadata(text)
        if facts is None:
            raise failure("bad-header", files.uri, "the METADATA.XML describes no bands")
        return facts, []
    return None, ["no METADATA.XML: wavelengths and gains are unknown"]


def _open_layers(
    files: Files, image: str, sensor: Sensor, parts: SceneParts
) -> list[tuple[Layer, TiffCube]]:
    """The layers that are there, sound, and on the image's pixels; others are noted."""
    found: list[tuple[Layer, TiffCube]] = []
    for layer in sensor.layers:
        name = layer_name(image, layer.suffix)
        size = files.size(name)
        if size is None:
            continue
        try:
            if size == 0:
                raise failure("truncated", files.uri, "empty")
            files.check_tiff(name)
            found.append((layer, _layer_cube(files, name, layer, parts.reader.shape)))
        except SceneError as error:
            if error.code == "unreadable":  # a layer that is there but was not had this time
                raise
            parts.notes.append(f"{layer.suffix} is not used ({error.code})")
    return found


def _layer_cube(files: Files, name: str, layer: Layer, shape: tuple[int, int, int]) -> TiffCube:
    with boundary(files.uri, "cannot read a layer", "bad-header"):
        with open_tiff(files.address(name)) as file:
            own = (file.count, file.height, file.width)
            dtype = np.dtype(file.dtypes[0])
        wanted = shape[0] if layer.bands is None else layer.bands
        fits = own == shape if layer.bands is None else own[0] >= wanted
        if not fits or own[1:] != shape[1:] or dtype.kind not in "iu":
            raise failure("bad-header", files.uri, "on other pixels than the image")
    return TiffCube(files.address(name), (wanted, *own[1:]), dtype)


def _mask_defects(
    parts: SceneParts, layers: list[tuple[Layer, TiffCube]]
) -> tuple[WindowReader, Packing]:
    """The image without its defective values, and the packing with the fill they become."""
    reader, packed = parts.reader, parts.packing
    for layer, mask in layers:
        if layer.defects is None:
            continue
        if isinstance(packed.fill, np.ndarray):
            parts.notes.append(f"{layer.suffix} is not used: nodata differs by band")
            continue
        if packed.fill is None:
            packed = replace(packed, fill=_spare(reader.dtype))
        reader = MaskedCube(reader, mask, layer.defects, float(packed.fill or 0))
    return reader, packed


def _spare(dtype: np.dtype[Any]) -> float:
    """The fill of a type that declares none: NaN, the lowest signed, the highest unsigned."""
    if dtype.kind == "f":
        return float("nan")
    return float(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)
