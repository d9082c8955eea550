"""Products as agencies deliver them, made small after their documents; no real values.

The layouts follow the documents that the reader of each product names: EnMAP EN-PCV-ICD-2009,
EMIT L2A of LP DAAC, PRISMA Products Specification 2.3, DESIS PAV-DLR-ICD-003.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from tests.scenes import wavelengths, write_geotiff

ENMAP_STEM = "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z"
DESIS_STEM = "DESIS-HSI-L2A-DT1203190212_025-20191203T021128-V0210"
EMIT_NAME = "EMIT_L2A_RFL_001_20220903T163129_2224611_012.nc"
PRISMA_NAME = "PRS_L2D_STD_20200813103056_20200813103100_0001.he5"
NODATA = -32768

Cube = npt.NDArray[Any]


def enmap_xml(bands: int, gain: float = 1e-4, offset: float = 0.0) -> str:
    rows = "".join(
        f'<bandID number="{n}">\n <wavelengthCenterOfBand>{centre}</wavelengthCenterOfBand>\n'
        f" <FWHMOfBand>7.5</FWHMOfBand>\n <GainOfBand>{gain * n}</GainOfBand>\n"
        f" <OffsetOfBand>{offset}</OffsetOfBand>\n</bandID>\n"
        for n, centre in enumerate(wavelengths(bands), start=1)
    )
    return (
        "<level_X>\n<temporalCoverage><startTime>2022-07-24T10:45:26.000Z</startTime>"
        f"</temporalCoverage>\n<bandCharacterisation>\n{rows}</bandCharacterisation></level_X>\n"
    )


def write_enmap(folder: Path, values: Cube, nodata: int | None = NODATA, **layers: Cube) -> Path:
    """An EnMAP L2A folder; `layers` are `QL_...` names with (band, y, x) uint8. The image's path.

    Gains grow by band, so that a reader that takes one for all is found out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{ENMAP_STEM}-SPECTRAL_IMAGE.TIF"
    write_geotiff(image, values, tags=False, nodata=nodata)
    (folder / f"{ENMAP_STEM}-METADATA.XML").write_text(enmap_xml(len(values)))
    for name, layer in layers.items():
        write_geotiff(folder / f"{ENMAP_STEM}-{name}.TIF", layer, tags=False)
    write_geotiff(folder / f"{ENMAP_STEM}-QL_VNIR.TIF", values[:3], tags=False)
    return image


def write_desis(folder: Path, values: Cube, quality: Cube | None = None) -> Path:
    """A DESIS L2A folder; the image's path."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{DESIS_STEM}-SPECTRAL_IMAGE.tif"
    write_geotiff(image, values, tags=False)
    rows = "".join(
        f"<band><bandNumber>{n}</bandNumber>"
        f"<wavelengthCenterOfBand>{centre}</wavelengthCenterOfBand>"
        "<wavelengthWidthOfBand>3.5</wavelengthWidthOfBand>"
        f"<gainOfBand>{1e-4 * n}</gainOfBand><offsetOfBand>{0.01 * n}</offsetOfBand></band>\n"
        for n, centre in enumerate(wavelengths(len(values)), start=1)
    )
    (folder / f"{DESIS_STEM}-METADATA.xml").write_text(
        "<hsi_doc><startTime>2019-12-03T02:11:28.100Z</startTime>"
        f"<bandCharacterisation>{rows}</bandCharacterisation>"
        "<interiorOrientation><band><bandNumber>1</bandNumber></band></interiorOrientation>"
        "</hsi_doc>"
    )
    (folder / f"{DESIS_STEM}-SPECTRAL_IMAGE.hdr").write_text("ENVI\nsamples = 1\n")
    if quality is not None:
        write_geotiff(folder / f"{DESIS_STEM}-QL_QUALITY-2.tif", quality, tags=False)
    return image


def pack(folder: Path, archive: Path, deflate: bool = True) -> Path:
    """All files of `folder` in one inner folder of a zip, tar or tar.gz."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        how = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        with zipfile.ZipFile(archive, "w", how) as packed:
            for path in files:
                packed.write(path, f"{folder.name}/{path.name}")
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as tar:
            for path in files:
                tar.add(path, f"{folder.name}/{path.name}")
    return archive


def write_emit(
    folder: Path,
    values: Cube,
    lat: Cube | None = None,
    lon: Cube | None = None,
    glt: tuple[Cube, Cube] | None = None,
    transform: Any = (10.0, 5e-4, 0.0, 50.0, 0.0, -5e-4),
) -> Path:
    """EMIT L2A reflectance of `values` (band, y, x), as (downtrack, crosstrack, bands)."""
    path = folder / EMIT_NAME
    with h5py.File(path, "w") as file:
        cube = file.create_dataset("reflectance", data=values.transpose(1, 2, 0).astype("f4"))
        cube.attrs["_FillValue"] = np.array([-9999], "f4")
        file.attrs["time_coverage_start"] = "2022-09-03T16:31:29+0000"
        file.attrs["geotransform"] = np.array(transform)
        bands = file.create_group("sensor_band_parameters")
        centres = bands.create_dataset("wavelengths", data=wavelengths(len(values)).astype("f4"))
        centres.attrs["units"] = "nm"
        bands.create_dataset("fwhm", data=np.full(len(values), 8.5, "f4"))
        bands.create_dataset("good_wavelengths", data=(np.arange(len(values)) != 1).astype("u1"))
        location = file.create_group("location")
        for name, data in (("lat", lat), ("lon", lon)):
            if data is not None:
                dataset = location.create_dataset(name, data=data)
                dataset.attrs["_FillValue"] = np.array([-9999.0])
        for name, table in zip(("glt_x", "glt_y"), glt or (), strict=False):
            location.create_dataset(name, data=table.astype("i4"))
    return path


def write_emit_mask(reflectance: Path, layers: dict[str, Cube], version: str = "001") -> Path:
    name = reflectance.name.replace("L2A_RFL_001", f"L2A_MASK_{version}")
    path = reflectance.with_name(name)
    with h5py.File(path, "w") as file:
        file["mask"] = np.stack(list(layers.values()), axis=-1).astype("f4")
        text = np.array(list(layers), dtype=h5py.string_dtype())
        file.create_group("sensor_band_parameters").create_dataset("mask_bands", data=text)
    return path


def write_prisma(
    folder: Path,
    vnir: Cube,
    swir: Cube,
    centres: tuple[Any, Any],
    scale: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (0.0, 1.0)),
    errors: tuple[Cube, Cube] | None = None,
    corners: tuple[float, float, float, float] | None = None,
    level: str = "L2D",
) -> Path:
    """PRISMA L2D with cubes (band, y, x) and centres in the file's own (descending) order.

    `corners` are west, north, east, south of UL and LR; default: centres of 30 m pixels.
    """
    path = folder / PRISMA_NAME.replace("L2D", level)
    _, rows, cols = vnir.shape
    west, north = 352755.0, 5987235.0
    corners = corners or (west, north, west + 30 * (cols - 1), north - 30 * (rows - 1))
    with h5py.File(path, "w") as file:
        fields = file.create_group(f"HDFEOS/SWATHS/PRS_{level}_HCO/Data Fields")
        for index, (name, cube) in enumerate((("Vnir", vnir), ("Swir", swir))):
            fields[f"{name.upper()}_Cube"] = cube.transpose(1, 0, 2)
            if errors is not None:
                matrix = errors[index].transpose(1, 0, 2)
                fields[f"{name.upper()}_PIXEL_L2_ERR_MATRIX"] = matrix
            listed = np.asarray(centres[index], "f4")
            file.attrs[f"List_Cw_{name}"] = listed
            file.attrs[f"List_Fwhm_{name}"] = np.where(listed > 0, 10 + listed / 1000, 0)
            file.attrs[f"List_Cw_{name}_Flags"] = (listed > 0).astype("i1")
            file.attrs[f"L2Scale{name}Min"] = np.float32(scale[index][0])
            file.attrs[f"L2Scale{name}Max"] = np.float32(scale[index][1])
        for key, value in zip(
            ("ULcorner_easting", "ULcorner_northing", "LRcorner_easting", "LRcorner_northing"),
            corners,
            strict=True,
        ):
            file.attrs[f"Product_{key}"] = value
        file.attrs["Epsg_Code"] = np.uint32(32633)
        file.attrs["Product_StartTime"] = np.bytes_("2020-08-13T10:30:56.123")
    return path
