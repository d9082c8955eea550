"""Every format becomes the same Dataset, lazily, and every fault one clear SceneError."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import scipy.io
import xarray as xr
import zarr
from rasterio.transform import Affine

from pipeline.errors import SceneError
from pipeline.readers import cache, open_scene
from tests.scenes import (
    CRS,
    TRANSFORM,
    cube,
    envi_header,
    fault_of,
    listed,
    real,
    wavelengths,
    write_envi,
    write_geotiff,
    write_matlab,
    write_matlab73,
    write_zarr,
)


def values(scene: xr.Dataset) -> Any:
    return scene.reflectance.values


def code_of(uri: Any, load: bool = False) -> str:
    return fault_of(uri, load)[0]


def every_format(folder: Path, data: Any) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    last = data.transpose(1, 2, 0)
    np.savez_compressed(folder / "packed.npz", cube=last, wavelength_nm=wavelengths(len(data)))
    np.savez(folder / "stored.npz", cube=last, wavelength_nm=wavelengths(len(data)))
    return {
        "envi": write_envi(folder, data, "bil", wavelength=listed(wavelengths(len(data)))),
        "geotiff": write_geotiff(
            folder / "scene.tif", data, tiled=True, blockxsize=16, blockysize=16
        ),
        "zarr": write_zarr(folder / "v3.zarr", data),
        "zarr2": write_zarr(folder / "v2.zarr", data, zarr_format=2),
        "matlab5": write_matlab(folder / "v5.mat", data=last, wavelength=wavelengths(len(data))),
        "matlab73": write_matlab73(folder / "v73.mat", data=last, wl=wavelengths(len(data))),
        "packed": str(folder / "packed.npz"),
        "stored": str(folder / "stored.npz"),
    }


FORMATS = ["envi", "geotiff", "zarr", "zarr2", "matlab5", "matlab73", "packed", "stored"]


@pytest.mark.parametrize("kind", FORMATS)
def test_contract(tmp_path: Path, kind: str) -> None:
    data = cube(7, 20, 33)
    scene = open_scene(every_format(tmp_path, data)[kind])
    assert scene.reflectance.dims == ("band", "y", "x")
    assert scene.reflectance.dtype == np.float32
    assert scene.reflectance.chunks is not None
    assert scene.reflectance.encoding["dtype"] == "uint16"
    assert "scale_factor" not in scene.reflectance.encoding
    assert "_FillValue" not in scene.reflectance.encoding
    assert scene.good_band.dtype == bool and scene.good_band.dims == ("band",)
    assert {"scene_id", "source", "format"} <= set(scene.attrs)
    assert "sensor" not in scene.attrs and "datetime" not in scene.attrs
    np.testing.assert_allclose(scene.wavelength, wavelengths(7))
    np.testing.assert_array_equal(values(scene), data)
    part = scene.reflectance[1:6:2, 3:17, [4, 30, 5]]
    np.testing.assert_array_equal(part, data[1:6:2, 3:17][:, :, [4, 30, 5]])
    np.testing.assert_array_equal(scene.reflectance[2, -1, 5:5], data[2, -1, 5:5])
    if kind != "geotiff":
        assert "spatial_ref" not in scene.coords
        assert scene.x.attrs["units"] == "1" and float(scene.x[0]) == 0.5


@pytest.mark.parametrize("kind", FORMATS)
def test_pickles_and_serves_threads(tmp_path: Path, kind: str) -> None:
    data = cube(5, 40, 50)
    scene = open_scene(every_format(tmp_path, data)[kind])
    scene = pickle.loads(pickle.dumps(scene))  # noqa: S301

    def window(seed: int) -> bool:
        y, x = np.random.default_rng(seed).integers(0, 30, 2)
        got = scene.reflectance[:, y : y + 9, x : x + 9].compute(scheduler="synchronous")
        return bool((got.values == data[:, y : y + 9, x : x + 9]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(window, range(60)))


@pytest.mark.parametrize("kind", FORMATS)
def test_remote(tmp_path: Path, kind: str) -> None:
    data = cube(5, 12, 14)
    path = Path(every_format(tmp_path / "local", data)[kind])
    memory = fsspec.filesystem("memory")
    memory.put(str(path.parent), f"/{tmp_path.name}", recursive=True)
    scene = open_scene(f"memory:///{tmp_path.name}/{path.name}")
    np.testing.assert_array_equal(values(scene), data)
    assert scene.attrs["source"].startswith("memory://")


# --- ENVI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4", "f8", "u2", ">u4", ">i8", ">u8", ">i2"])
def test_envi_agrees_with_gdal(tmp_path: Path, interleave: str, kind: str) -> None:
    data = cube(4, 7, 9, kind)
    header = write_envi(tmp_path, data, interleave, skip=24)
    with rasterio.open(tmp_path / "scene.img", driver="ENVI") as file:
        expected = file.read()
    np.testing.assert_array_equal(values(open_scene(header)), expected)
    assert open_scene(header).reflectance.encoding["dtype"] == np.dtype(kind).newbyteorder("=").name


@pytest.mark.parametrize("angle", ["", ", rotation=0", ", rotation=30.5", ", rotation=-90"])
def test_envi_georeferencing_agrees_with_gdal(tmp_path: Path, angle: str) -> None:
    info = "{UTM, 1, 1, 364095, 5809965, 30, 20, 33, North, WGS-84, units=Meters" + angle + "}"
    header = write_envi(tmp_path, cube(), map_info=info)
    scene = open_scene(header)
    with rasterio.open(tmp_path / "scene.img", driver="ENVI") as file:
        truth = [float(word) for word in scene.spatial_ref.attrs["GeoTransform"].split()]
        np.testing.assert_allclose(truth, file.transform.to_gdal(), atol=1e-9)
    assert scene.rio.crs == rasterio.CRS.from_epsg(32633)
    if angle in ("", ", rotation=0"):
        assert float(scene.x[0]) == 364110 and float(scene.y[0]) == 5809955
    else:
        assert float(scene.x[0]) == 0.5 and scene.x.attrs["units"] == "1"


def test_envi_tie_point_inside_a_turned_image(tmp_path: Path) -> None:
    info = "{UTM, 3, 2, 1000, 2000, 10, 10, 33, South, WGS-84, rotation=90}"
    transform = open_scene(write_envi(tmp_path, cube(), map_info=info)).rio.transform()
    assert transform * (2, 1) == pytest.approx((1000, 2000))


def test_envi_metadata(tmp_path: Path) -> None:
    data = cube(4, dtype="i2")
    data[:, 0, 0] = -99
    header = write_envi(
        tmp_path,
        data,
        "bip",
        suffix=".DAT",
        wavelength="{\n0.45, 0.55,\n0.65, 2.1}",
        wavelength_units="Micrometers",
        fwhm="{0.01, 0.01, 0.01, 0.02}",
        bbl="{1, 0, 1, 1}",
        data_ignore_value="-99",
        reflectance_scale_factor="10000",
        sensor_type="HySpex",
        acquisition_time="2024-05-06T07:08:09Z",
    )
    scene = open_scene(header)
    np.testing.assert_allclose(scene.wavelength, [450, 550, 650, 2100])
    np.testing.assert_allclose(scene.fwhm, [10, 10, 10, 20])
    assert scene.good_band.values.tolist() == [True, False, True, True]
    assert scene.reflectance.encoding["scale_factor"] == pytest.approx(1e-4)
    assert scene.reflectance.encoding["_FillValue"] == -99
    assert scene.attrs["sensor"] == "HySpex"
    assert scene.attrs["datetime"] == "2024-05-06T07:08:09+00:00"
    assert np.isnan(values(scene)[:, 0, 0]).all()
    np.testing.assert_allclose(values(scene)[:, 1], data[:, 1] / 10000, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "centres", "expected"),
    [
        (None, [0.45, 0.55, 2.1], [450, 550, 2100]),
        (None, [450, 550, 2100], [450, 550, 2100]),
        (None, [1, 2, 3], None),
        ("Index", [1, 2, 3], None),
        ("Nanometers", [0.45, 0.55, 2.1], [450, 550, 2100]),
        ("Micrometers", [450, 550, 2100], [450, 550, 2100]),
        ("Wavenumber", [9000, 8000, 7000], None),
        ("nm", [450, 550], None),
    ],
)
def test_wavelength_units(tmp_path: Path, units: Any, centres: Any, expected: Any) -> None:
    scene = open_scene(
        write_envi(tmp_path, cube(3), wavelength=listed(centres), wavelength_units=units)
    )
    if expected is None:
        assert "wavelength" not in scene.coords and "wavelength" in scene.attrs["reader_notes"]
    else:
        np.testing.assert_allclose(scene.wavelength, expected)


@pytest.mark.parametrize(
    ("header", "data", "code"),
    [
        ("scene.hdr", None, "missing-data"),
        ("scene.img.hdr", "scene.img", None),
        ("scene.hdr", "SCENE.BSQ", None),
        ("scene.hdr", "scene", None),
        ("scene.HDR", "scene.raw", None),
    ],
)
def test_envi_finds_its_data(tmp_path: Path, header: str, data: Any, code: Any) -> None:
    expected = cube(3)
    (tmp_path / header).write_text(envi_header(expected))
    if code:
        assert code_of(tmp_path / header) == code
        return
    (tmp_path / data).write_bytes(expected.tobytes())
    np.testing.assert_array_equal(values(open_scene(str(tmp_path / header))), expected)
    if data != "SCENE.BSQ":
        np.testing.assert_array_equal(values(open_scene(str(tmp_path / data))), expected)


HOSTILE = [
    ("samples = 11\n", "bad-header"),
    (envi_header(cube()).replace("lines = 9", "lines = -9"), "bad-header"),
    (envi_header(cube()).replace("lines = 9", "lines = 9e9"), "bad-header"),
    (envi_header(cube()).replace("lines = 9", "lines = " + "9" * 5000), "bad-header"),
    (envi_header(cube()).replace("lines = 9", "lines = 999999999"), "truncated"),
    (envi_header(cube(), data_type=6), "unsupported"),
    (envi_header(cube(), data_type=99), "bad-header"),
    (envi_header(cube(), byte_order=7), "bad-header"),
    (envi_header(cube(), interleave=None).replace("interleave", "x"), "bad-header"),
    (envi_header(cube(), header_offset=-8), "bad-header"),
    (envi_header(cube(), file_compression=1), "unsupported"),
    (envi_header(cube(), file_type="ENVI Spectral Library"), "unsupported"),
    (envi_header(cube()) + "wavelength = {1, 2, 3\n" * 50, "bad-header"),
    ("\x00\x01", "bad-header"),
    (envi_header(cube()) + "junk = " + "x" * 5 * 2**20, "bad-header"),
]


@pytest.mark.parametrize(("text", "code"), HOSTILE)
def test_hostile_envi_headers(tmp_path: Path, text: str, code: str) -> None:
    header = write_envi(tmp_path, cube())
    body = text if text.startswith(("ENVI", "\0")) else "ENVI\n" + text
    Path(header).write_bytes(body.encode("latin-1"))
    assert code_of(header) == code


def test_envi_tolerates_and_notes(tmp_path: Path) -> None:
    text = envi_header(cube(), header_offset=None, byte_order=None, map_info="{UTM, x}")
    header = Path(write_envi(tmp_path, cube()))
    header.write_bytes(text.encode() + b"description = {caf\xe9 = {}\nbbl = {1}\n")
    notes = open_scene(str(header)).attrs["reader_notes"]
    for words in ("no byte order", "no header offset", "map info", "bbl has 1 entries"):
        assert words in notes
    with (tmp_path / "scene.img").open("ab") as data:
        data.write(b"\0" * 10)
    assert code_of(header) == "bad-header"


def test_envi_cut_after_opening(tmp_path: Path) -> None:
    header = write_envi(tmp_path, cube())
    scene = open_scene(header)
    (tmp_path / "scene.img").write_bytes(b"\0" * 100)
    with pytest.raises(SceneError, match="truncated"):
        scene.load()
    (tmp_path / "scene.img").unlink()
    with pytest.raises(SceneError, match="unreadable"):
        scene.load()


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
def test_opens_100_gigabytes_in_kilobytes(tmp_path: Path, interleave: str) -> None:
    bands, rows, cols = 224, 16000, 14000
    text = envi_header(cube()).replace("= 9", f"= {rows}").replace("= 11", f"= {cols}")
    text = text.replace("bands = 6", f"bands = {bands}").replace("bsq", interleave)
    (tmp_path / "huge.hdr").write_text(text)
    with (tmp_path / "huge.img").open("wb") as file:
        file.truncate(bands * rows * cols * 2)
    tracemalloc.start()
    scene = open_scene(str(tmp_path / "huge.hdr"))
    window = scene.reflectance[:, 15000:15016, 13000:13020].compute(scheduler="synchronous")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert window.shape == (bands, 16, 20) and not window.any()
    assert peak < 48 * 2**20
    assert len(pickle.dumps(scene)) < 400_000


# --- GeoTIFF ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile",
    [
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
        {"interleave": "band", "compress": "zstd", "predictor": 2},
        {"interleave": "pixel", "BIGTIFF": "YES", "blockysize": 5},
        {"ENDIANNESS": "BIG"},
    ],
)
def test_geotiff(tmp_path: Path, profile: dict[str, Any]) -> None:
    data = cube(5, 37, 45, "i2")
    data[:, 2, 3] = -32768
    path = write_geotiff(tmp_path / "a.tif", data, scale=1e-4, nodata=-32768, **profile)
    scene = open_scene(path)
    expected = np.where(data == -32768, np.nan, data * 1e-4)
    np.testing.assert_allclose(values(scene), expected, rtol=1e-6)
    encoding = scene.reflectance.encoding
    assert (encoding["scale_factor"], encoding["_FillValue"]) == (1e-4, -32768)
    assert encoding["dtype"] == "int16" and "add_offset" not in encoding
    np.testing.assert_allclose(scene.wavelength, wavelengths(5))
    np.testing.assert_allclose(scene.fwhm, 8.5)
    assert scene.good_band.values.tolist() == [True, False, True, True, True]
    assert scene.rio.crs == rasterio.CRS.from_string(CRS)
    assert scene.rio.transform() == TRANSFORM
    assert float(scene.x[0]) == 364110 and float(scene.y[0]) == 5809950


def test_rotated_geotiff(tmp_path: Path) -> None:
    turned = TRANSFORM * Affine.rotation(20)
    scene = open_scene(write_geotiff(tmp_path / "a.tif", cube(), transform=turned))
    assert scene.rio.transform() == turned and scene.rio.crs == rasterio.CRS.from_string(CRS)
    assert scene.y.attrs["long_name"] == "row centre in pixels" and float(scene.y[1]) == 1.5


def test_geotiff_lists_and_packing_per_band(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", cube(3, dtype="i2"), tags=False)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="ENVI", wavelength="{450, 550, 650}", wavelength_units="Nanometers")
        file.update_tags(start_time="2022-07-24T10:45:26")
        file.scales, file.offsets = [1.0, 2.0, 3.0], [0.0, 0.0, 5.0]
    scene = open_scene(path)
    np.testing.assert_allclose(scene.wavelength, [450, 550, 650])
    factor, plus = np.array([1, 2, 3])[:, None, None], np.array([0, 0, 5])[:, None, None]
    np.testing.assert_allclose(values(scene), cube(3, dtype="i2") * factor + plus)
    np.testing.assert_allclose(
        scene.reflectance[2:, 1].values[0], cube(3, dtype="i2")[2, 1] * 3 + 5
    )
    assert scene.reflectance.encoding["dtype"] == "float32"
    assert scene.attrs["datetime"] == "2022-07-24T10:45:26"


def test_plain_image_is_a_scene(tmp_path: Path) -> None:
    scene = open_scene(
        write_geotiff(tmp_path / "rgb.tif", cube(3, dtype="u1"), False, crs=None, transform=None)
    )
    assert "wavelength" not in scene.coords and "spatial_ref" not in scene.coords


@pytest.mark.parametrize("keep", [0, 6, 40, 0.3, 0.98])
@pytest.mark.parametrize("big", ["YES", "NO"])
def test_truncated_tiff(tmp_path: Path, keep: float, big: str) -> None:
    path = Path(write_geotiff(tmp_path / "a.tif", cube(8, 60, 50), BIGTIFF=big))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert code_of(path) in ("truncated", "bad-header")
    if keep not in (6,):
        assert code_of(path) == "truncated"


def test_corrupt_tiff_block_fails_at_load(tmp_path: Path) -> None:
    path = Path(write_geotiff(tmp_path / "a.tif", cube(8, 200, 200), compress="deflate"))
    whole = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        at = int(file.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", 3))
    whole[at : at + 300] = b"\xff" * 300
    path.write_bytes(whole)
    scene = open_scene(str(path))
    with pytest.raises(SceneError, match="unreadable"):
        scene.load()


# --- Zarr ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_written_by_xarray(tmp_path: Path, zarr_format: int) -> None:
    data = np.where(cube(4, 30, 20) % 7 == 0, np.nan, cube(4, 30, 20) * 1e-4)
    made = xr.Dataset(
        {"cube": (("y", "x", "wavelength"), data.transpose(1, 2, 0))},
        {"wavelength": wavelengths(4), "y": 100.0 - np.arange(30) * 2, "x": np.arange(20) * 2.0},
        {"sensor": "AVIRIS-NG"},
    ).rio.write_crs(CRS)
    packed = {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -1, "chunks": (16, 16, 2)}
    kind: Any = zarr_format
    made.to_zarr(tmp_path / "a.zarr", zarr_format=kind, encoding={"cube": packed})
    scene = open_scene(str(tmp_path / "a.zarr"))
    with xr.open_zarr(tmp_path / "a.zarr") as independent:
        expected = independent["cube"].transpose("wavelength", "y", "x").values
    np.testing.assert_allclose(values(scene), expected, rtol=1e-6)
    assert np.isnan(values(scene)).any()
    assert scene.reflectance.encoding["_FillValue"] == -1
    assert scene.attrs["sensor"] == "AVIRIS-NG"
    assert scene.rio.crs == rasterio.CRS.from_string(CRS)
    assert scene.rio.transform() == Affine(2, 0, -1, 0, -2, 101)
    np.testing.assert_array_equal(scene.y, made.y)


def test_own_dataset_reopens(tmp_path: Path) -> None:
    turned = TRANSFORM * Affine.rotation(20)
    path = write_geotiff(
        tmp_path / "a.tif", cube(5, 30, 40, "i2"), transform=turned, nodata=-1, scale=0.5
    )
    first = open_scene(path)
    first.to_zarr(tmp_path / "b.zarr", zarr_format=3)
    again = open_scene(str(tmp_path / "b.zarr"))
    np.testing.assert_array_equal(values(again), values(first))
    for name in ("wavelength", "fwhm", "good_band", "x", "y"):
        np.testing.assert_array_equal(again[name], first[name])
    assert again.rio.transform() == turned and again.rio.crs == first.rio.crs
    same = ("dtype", "scale_factor", "_FillValue", "grid_mapping")
    for key in same:
        assert again.reflectance.encoding[key] == first.reflectance.encoding[key]


def test_zarr_shapes_of_stores(tmp_path: Path) -> None:
    data = cube(4, 6, 7)
    bare = zarr.create_array(str(tmp_path / "bare.zarr"), data=data)
    assert bare.shape == data.shape
    scene = open_scene(str(tmp_path / "bare.zarr"))
    np.testing.assert_array_equal(values(scene), data)
    assert "no names" in scene.attrs["reader_notes"]
    last = open_scene(str(tmp_path / "bare.zarr"), band_axis=2)
    np.testing.assert_array_equal(values(last), data.transpose(2, 0, 1))
    group = zarr.open_group(str(tmp_path / "two.zarr"), mode="w")
    group.create_array("a", data=data)
    group.create_array("b", data=data)
    assert code_of(tmp_path / "two.zarr") == "ambiguous"
    zarr.open_group(str(tmp_path / "none.zarr"), mode="w").create_array("a", data=data[0])
    assert code_of(tmp_path / "none.zarr") == "no-cube"
    group = zarr.open_group(str(tmp_path / "time.zarr"), mode="w")
    group.create_array("a", data=data, dimension_names=["time", "y", "x"])
    assert code_of(tmp_path / "time.zarr") == "ambiguous"
    (tmp_path / "empty.zarr").mkdir()
    assert code_of(tmp_path / "empty.zarr") == "unsupported"
    (tmp_path / "two.zarr" / "zarr.json").write_text("{")
    assert code_of(tmp_path / "two.zarr") == "bad-header"


def test_zarr_two_dimensional_coordinates_and_broken_chunk(tmp_path: Path) -> None:
    data = cube(4, 6, 7)
    path = Path(write_zarr(tmp_path / "a.zarr", data))
    group = zarr.open_group(str(path), mode="r+")
    latitudes = np.linspace(50, 51, 42).reshape(6, 7)
    group.create_array("lat", data=latitudes, dimension_names=["y", "x"])
    scene = pickle.loads(pickle.dumps(open_scene(str(path))))  # noqa: S301
    np.testing.assert_array_equal(scene.lat, latitudes)
    chunk = next(file for file in (path / "reflectance").rglob("*") if file.name == "0")
    chunk = chunk if chunk.is_file() else next(f for f in chunk.rglob("*") if f.is_file())
    chunk.write_bytes(b"broken")
    assert code_of(path, load=True) == "unreadable"


# --- MATLAB and npz -----------------------------------------------------------------------------


def test_matlab_choices(tmp_path: Path) -> None:
    data = cube(9, 4, 5).transpose(1, 2, 0)
    path = write_matlab(tmp_path / "a.mat", a=data, b=data + 1)
    assert code_of(path) == "ambiguous"
    assert code_of(write_matlab(tmp_path / "b.mat", a=data[0])) == "no-cube"
    scene = open_scene(write_matlab(tmp_path / "c.mat", hs=data, ms=data[..., :3]))
    assert scene.sizes["band"] == 9 and "'hs'" in scene.attrs["reader_notes"]
    flat = data.reshape(20, 9, order="F").T
    scene = open_scene(write_matlab(tmp_path / "d.mat", Y=flat, nRow=4, nCol=5))
    np.testing.assert_array_equal(values(scene), data.transpose(2, 0, 1))
    scene = open_scene(write_matlab(tmp_path / "e.mat", a=data, lambda_um=np.arange(1, 5) / 2.5))
    assert scene.sizes["band"] == 4


def test_damaged_matlab(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((30, 30, 9))
    path = Path(write_matlab(tmp_path / "a.mat", data=noise))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert code_of(path, load=True) in ("bad-header", "truncated", "unreadable")
    path = Path(write_matlab73(tmp_path / "b.mat", data=noise))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert code_of(path, load=True) in ("bad-header", "truncated")
    path.write_bytes(b"nonsense" * 99)
    assert code_of(path) == "bad-header"


def test_matlab73_follows_no_links(tmp_path: Path) -> None:
    secret = write_matlab73(tmp_path / "secret.mat", data=cube())
    path = tmp_path / "link.mat"
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(secret, "/data")
    assert code_of(path) == "no-cube"


def test_npz_never_unpickles(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    objects = np.array([[[Bomb()]]], dtype=object)
    np.savez(tmp_path / "a.npz", cube=objects)
    assert code_of(tmp_path / "a.npz") == "no-cube"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_axes(tmp_path: Path, save: Any) -> None:
    data = cube(4, 6, 7, "i2")
    save(tmp_path / "first.npz", x=data, wavelengths=wavelengths(4))
    np.testing.assert_array_equal(values(open_scene(str(tmp_path / "first.npz"))), data)
    save(tmp_path / "masked.npz", data=data, mask=data < 20)
    scene = open_scene(str(tmp_path / "masked.npz"))
    np.testing.assert_array_equal(values(scene), np.where(data < 20, np.nan, data))
    assert scene.reflectance.encoding["dtype"] == "float32"
    save(tmp_path / "last.npz", x=np.asfortranarray(data.transpose(1, 2, 0)))
    scene = open_scene(str(tmp_path / "last.npz"))
    np.testing.assert_array_equal(values(scene), data)
    assert "(rows, cols, bands)" in scene.attrs["reader_notes"]
    scene = open_scene(str(tmp_path / "last.npz"), band_axis=0)
    assert scene.sizes["band"] == 6


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, cube=np.random.default_rng(0).random((9, 30, 30)))
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    assert code_of(path) == "truncated"
    path.write_bytes(whole[:3000] + b"\xff" * 50 + whole[3050:])
    assert code_of(path, load=True) in ("unreadable", "truncated")
    with zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**5, 10**5, 300)}
        )
        archive.writestr("cube.npy", buffer.getvalue())
    assert code_of(path) == "truncated"


def test_member_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_BYTES", 20_000)
    monkeypatch.setattr(cache, "_arrays", type(cache._arrays)())
    for number in range(5):
        np.savez_compressed(tmp_path / f"{number}.npz", cube=cube(9, 20, 20))
        open_scene(str(tmp_path / f"{number}.npz")).load()
    assert sum(array.nbytes for array in cache._arrays.values()) <= 20_000


# --- what is not a scene ------------------------------------------------------------------------


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.tif").write_text("hello")
    (tmp_path / "c.mat").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    assert code_of(tmp_path / "a.txt") == "unsupported"
    assert code_of(tmp_path / "b.tif") == "bad-header"
    assert code_of(tmp_path / "c.mat") == "truncated"
    assert code_of(tmp_path / "d.zip") == "unsupported"
    assert code_of(tmp_path / "nothing.tif") == "unreadable"
    assert code_of(tmp_path) == "unsupported"


# --- byte ranges over HTTP ----------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A server of tmp_path that answers ranges, and the list of how many bytes each answer had."""
    sent: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, body: bool) -> None:
            path = tmp_path / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data, status = path.read_bytes(), 200
            first, last, total = 0, len(data) - 1, len(data)
            if "Range" in self.headers:
                low, _, high = self.headers["Range"].removeprefix("bytes=").partition("-")
                first, last, status = int(low), min(int(high or last), last), 206
            part = data[first : last + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            self.end_headers()
            if body:
                sent.append(len(part))
                self.wfile.write(part)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", sent
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["geotiff", "bsq", "bip", "matlab73", "stored"])
def test_windows_read_only_their_bytes(
    tmp_path: Path, served: tuple[str, list[int]], kind: str
) -> None:
    url, sent = served
    data = cube(16, 1024, 1024)
    if kind == "geotiff":
        block = {"tiled": True, "blockxsize": 128, "blockysize": 128, "interleave": "pixel"}
        name = Path(write_geotiff(tmp_path / "a.tif", data, **block)).name
    elif kind == "matlab73":
        name = Path(write_matlab73(tmp_path / "a.mat", data=data.transpose(1, 2, 0))).name
    elif kind == "stored":
        np.savez(tmp_path / "a.npz", cube=data.transpose(1, 2, 0))
        name = "a.npz"
    else:
        name = Path(write_envi(tmp_path, data, kind, suffix=".img")).name
    scene = open_scene(f"{url}/{name}")
    assert sum(sent) < 600_000
    window = scene.reflectance[:, 200:220, 300:320].compute(scheduler="synchronous")
    np.testing.assert_array_equal(window, data[:, 200:220, 300:320])
    assert sum(sent) < data.nbytes / 6


def test_remote_handles_survive_threads_and_exit(
    tmp_path: Path, served: tuple[str, list[int]]
) -> None:
    """Handles are opened in worker threads, closed in others, and some live at exit."""
    write_geotiff(tmp_path / "a.tif", cube(5, 300, 300))
    code = (
        f"url = {served[0] + '/a.tif'!r}\n"
        "import threading\n"
        "from pipeline.readers import open_scene\n"
        "kept, gone = open_scene(url), open_scene(url)\n"
        "kept.load(); gone.reflectance.sum().compute(scheduler='threads')\n"
        "worker = threading.Thread(target=lambda: kept.reflectance.sum().compute())\n"
        "worker.start(); worker.join(); del gone\n"
        "last = open_scene(url); last.reflectance.sum().compute()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- real scenes --------------------------------------------------------------------------------


def test_real_enmap() -> None:
    path = real("enmap_potsdam/enmap_potsdam_A_64x96.tif")
    scene = open_scene(path)
    with rasterio.open(path) as file:
        raw = file.read()
        expected = np.where(raw == file.nodata, np.nan, raw * 1e-4)
        assert scene.rio.crs == file.crs and scene.rio.transform() == file.transform
    np.testing.assert_allclose(values(scene), expected, rtol=1e-6)
    assert scene.wavelength[0] == 418.24 and scene.fwhm[0] == 6.99561
    assert scene.attrs["datetime"] == "2022-07-24T10:45:26"
    assert int(np.isnan(values(scene)).all((1, 2)).sum()) == 6


def test_real_enmap_product(tmp_path: Path) -> None:
    product = real("enmap_l2a_metadata/enmap_L2A_gtif_qualification.zip")
    with zipfile.ZipFile(product) as archive:
        archive.extractall(tmp_path)
    image = next(tmp_path.rglob("*-SPECTRAL_IMAGE.TIF"))
    assert code_of(image) == "truncated"
    write_geotiff(image, cube(218, 5, 6, "i2"), tags=False)
    scene = open_scene(str(image))
    assert scene.wavelength[0] == 423.03 and scene.fwhm[0] == 6.93
    assert scene.attrs["sensor"] == "EnMAP" and scene.attrs["datetime"].startswith("2017-06-26T10")
    assert scene.reflectance.encoding["scale_factor"] == 1e-4


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        ("emit_jpl/emit20250324t221005_jpl_unmix_ex", 285),
        ("gamsberg_hyperion/cubus_gamsberg_subset", 189),
        ("corn_kernel/corn-kernel-hyperspectral.raw", 580),
    ],
)
def test_real_envi(name: str, bands: int) -> None:
    scene = open_scene(real(name))
    with rasterio.open(real(name), driver="ENVI") as file:
        raw = file.read()
    assert scene.sizes["band"] == bands and "wavelength" in scene.coords
    np.testing.assert_array_equal(values(scene), np.where(raw == -9999, np.nan, raw))
    assert "spatial_ref" not in scene.coords


def test_real_matlab() -> None:
    path = real("jasper_ridge/jasperRidge2_R198.mat")
    expected = scipy.io.loadmat(path)["Y"].reshape(198, 100, 100).transpose(0, 2, 1)
    np.testing.assert_array_equal(values(open_scene(path)), expected)
    path = real("paris_hyperion/paris_data_hs_ms.mat")
    expected = scipy.io.loadmat(path)["HSim"].transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(values(open_scene(path)), expected)
    path = real("pavia_centre/pavia.mat")
    with h5py.File(path) as file:
        expected = file["data"][:].transpose(0, 2, 1).astype(np.float32)
    np.testing.assert_array_equal(values(open_scene(path)), expected)
    path = real("abu/abu-beach-1.mat")
    assert dict(open_scene(path).sizes) == {"band": 188, "y": 150, "x": 150}


def test_real_npz() -> None:
    path = real("cave/test/sponges.npz")
    scene = open_scene(path)
    with np.load(path) as file:
        np.testing.assert_array_equal(values(scene), file["cube"].transpose(2, 0, 1))
    np.testing.assert_array_equal(scene.wavelength, np.arange(400, 701, 10))
    path = real("hyperview/0.npz")
    with np.load(path) as file:
        expected = np.ma.MaskedArray(**file).astype(np.float32).filled(np.nan)
    np.testing.assert_array_equal(values(open_scene(path)), expected)
    scene = open_scene(real("samson/samson_dn.npz"))
    assert dict(scene.sizes) == {"band": 156, "y": 95, "x": 95}
