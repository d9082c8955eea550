"""Products as agencies deliver them: each is one scene, with its own georeferencing and flags."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from rasterio.transform import Affine

from infra.local_s3 import LocalS3
from pipeline.catalog import list_scenes
from pipeline.readers import archive as archives
from pipeline.readers import emit, open_scene
from pipeline.readers.flags import FLAGS
from tests.products import (
    DESIS_STEM,
    EMIT_NAME,
    ENMAP_STEM,
    NODATA,
    enmap_xml,
    pack,
    write_desis,
    write_emit,
    write_emit_mask,
    write_enmap,
    write_prisma,
)
from tests.scenes import (
    CRS,
    TRANSFORM,
    cube,
    fault_of,
    listed,
    real,
    wavelengths,
    write_envi,
    write_geotiff,
)

BANDS, ROWS, COLS = 5, 40, 30


def flags_of(scene: xr.Dataset) -> set[str]:
    """The names of all bits that are set anywhere, by the variable's own CF attributes."""
    found = scene.quality_flags
    names = found.attrs["flag_meanings"].split()
    used = np.bitwise_or.reduce(found.values, axis=None)
    return {
        name for name, mask in zip(names, found.attrs["flag_masks"], strict=True) if used & mask
    }


def where(scene: xr.Dataset, flag: str) -> Any:
    return scene.quality_flags.values & FLAGS[flag] > 0


def image(rows: int = ROWS, cols: int = COLS) -> Any:
    """EnMAP-like counts with a corner outside the swath."""
    values = cube(BANDS, rows, cols, "i2")
    values[:, :4, :3] = NODATA
    return values


def layers(rows: int = ROWS, cols: int = COLS) -> dict[str, Any]:
    """Each of EnMAP's layers with its own place of interest; 255 outside the swath."""

    def layer(row: int, value: int) -> Any:
        values = np.zeros((1, rows, cols), np.uint8)
        values[:, row] = value
        values[:, :4, :3] = 255
        return values

    mask = np.zeros((BANDS, rows, cols), np.uint8)
    mask[2, :, 7] = 1  # a dead column of one band
    mask[:, :4, :3] = 255
    return {
        "QL_QUALITY_CLOUD": layer(5, 1),
        "QL_QUALITY_CLOUDSHADOW": layer(6, 1),
        "QL_QUALITY_HAZE": layer(7, 1),
        "QL_QUALITY_CIRRUS": layer(8, 3),
        "QL_QUALITY_SNOW": layer(9, 1),
        "QL_QUALITY_CLASSES": np.maximum(layer(10, 2), layer(11, 1)),
        "QL_QUALITY_TESTFLAGS": np.maximum(layer(12, 0b100000), layer(13, 0b1)),
        "QL_PIXELMASK": mask,
    }


def check_enmap(scene: xr.Dataset) -> None:
    """Values, masks, flags and georeferencing against the arrays that were written."""
    raw = image()
    gains = 1e-4 * np.arange(1, BANDS + 1)[:, None, None]
    expected = np.where(raw == NODATA, np.nan, raw * gains)
    expected[2, :, 7] = np.nan
    np.testing.assert_allclose(scene.reflectance, expected, rtol=1e-6)
    np.testing.assert_allclose(scene.wavelength, wavelengths(BANDS))
    np.testing.assert_allclose(scene.fwhm, 7.5)
    assert scene.attrs["sensor"] == "EnMAP" and scene.attrs["format"] == "enmap"
    assert scene.attrs["datetime"].startswith("2022-07-24T10:45:26")
    assert scene.rio.crs == rasterio.CRS.from_user_input(CRS)
    assert scene.rio.transform() == TRANSFORM
    assert scene.quality_flags.dtype == np.uint16
    assert scene.quality_flags.chunks == scene.reflectance.chunks[1:]
    bits = scene.quality_flags.values
    assert not bits[:4, :3].any()
    rows = {"cloud": 5, "cloud_shadow": 6, "haze": 7, "cirrus": 8, "snow": 9, "water": 10}
    for name, row in {**rows, "saturated": 12}.items():
        np.testing.assert_array_equal(where(scene, name).any(axis=1), np.arange(ROWS) == row)
    column = where(scene, "defective_band")[4:].all(axis=0)
    np.testing.assert_array_equal(column, np.arange(COLS) == 7)
    part = scene.isel(y=slice(3, 9), x=[8, 2, 7])
    np.testing.assert_allclose(part.reflectance, expected[:, 3:9][:, :, [8, 2, 7]], rtol=1e-6)
    np.testing.assert_array_equal(part.quality_flags, bits[3:9][:, [8, 2, 7]])


# --- EnMAP --------------------------------------------------------------------------------------


@pytest.fixture
def enmap(tmp_path: Path) -> Path:
    """The folder of a product with all of its layers."""
    write_enmap(tmp_path / "product", image(), **layers())
    return tmp_path / "product"


@pytest.mark.parametrize("form", ["image", "folder", "zip", "stored.zip", "tar", "tar.gz", "tgz"])
def test_enmap_in_every_form(enmap: Path, tmp_path: Path, form: str) -> None:
    if form == "image":
        uri = enmap / f"{ENMAP_STEM}-SPECTRAL_IMAGE.TIF"
    elif form == "folder":
        uri = enmap
    else:
        uri = pack(enmap, tmp_path / f"ENMAP_x.{form}", deflate=form == "zip")
    scene = open_scene(str(uri))
    assert scene.attrs["reader_notes"] == "scale, offset or nodata differ by band"
    check_enmap(pickle.loads(pickle.dumps(scene)))  # noqa: S301
    before = sorted(tmp_path.rglob("*"))
    open_scene(str(uri)).load()
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked, nothing left behind
    if form not in ("image", "folder"):
        assert scene.attrs["scene_id"] == re.sub(r"\.(zip|tar|tgz|tar\.gz)$", "", uri.name)


@pytest.mark.parametrize("form", ["folder", "zip", "stored.zip", "tar"])
def test_enmap_remote(enmap: Path, tmp_path: Path, form: str) -> None:
    memory = fsspec.filesystem("memory")
    if form == "folder":
        memory.put(str(enmap), f"/{tmp_path.name}", recursive=True)
        uri = f"memory:///{tmp_path.name}/{ENMAP_STEM}-SPECTRAL_IMAGE.TIF"
    else:
        packed = pack(enmap, tmp_path / f"ENMAP_x.{form}", deflate=form == "zip")
        memory.put(str(packed), f"/{tmp_path.name}-{packed.name}")
        uri = f"memory:///{tmp_path.name}-{packed.name}"
    check_enmap(open_scene(uri))


def test_enmap_zip_on_s3(enmap: Path, tmp_path: Path, s3: LocalS3) -> None:
    packed = pack(enmap, tmp_path / "ENMAP_x.zip")
    fsspec.filesystem("s3").put(str(packed), f"s3://{s3.bucket}/products/ENMAP_x.zip")
    (found,) = list_scenes(f"s3://{s3.bucket}/products").scenes
    assert (found.scene_id, found.format) == ("ENMAP_x", "product")
    check_enmap(open_scene(found.uri))


def test_remote_compressed_tar_is_refused(enmap: Path, tmp_path: Path) -> None:
    packed = pack(enmap, tmp_path / "ENMAP_x.tar.gz")
    fsspec.filesystem("memory").put(str(packed), f"/{tmp_path.name}.tar.gz")
    code, message = fault_of(f"memory:///{tmp_path.name}.tar.gz")
    assert code == "unsupported" and "unpack" in message


def test_layers_are_optional_and_faulty_ones_noted(tmp_path: Path) -> None:
    made = layers()
    del made["QL_QUALITY_SNOW"]
    path = write_enmap(tmp_path, image(), **made)
    (tmp_path / f"{ENMAP_STEM}-QL_QUALITY_CLOUD.TIF").write_bytes(b"")
    whole = (tmp_path / f"{ENMAP_STEM}-QL_QUALITY_HAZE.TIF").read_bytes()
    (tmp_path / f"{ENMAP_STEM}-QL_QUALITY_HAZE.TIF").write_bytes(whole[: len(whole) // 2])
    other = np.zeros((1, ROWS, COLS + 1), np.uint8)
    write_geotiff(tmp_path / f"{ENMAP_STEM}-QL_QUALITY_CIRRUS.TIF", other, tags=False)
    scene = open_scene(str(path))
    assert flags_of(scene) == {"cloud_shadow", "water", "saturated", "defective_band"}
    notes = scene.attrs["reader_notes"]
    for name, code in (("CLOUD", "truncated"), ("HAZE", "truncated"), ("CIRRUS", "bad-header")):
        assert f"QL_QUALITY_{name} is not used ({code})" in notes
    assert "SNOW" not in notes
    (tmp_path / "plain").mkdir()
    assert "quality_flags" not in open_scene(str(write_enmap(tmp_path / "plain", image())))


def test_defects_keep_the_integer_type(tmp_path: Path) -> None:
    """A dead column costs its values, not the scene's own type; fill is what the file says."""
    mask = layers()["QL_PIXELMASK"]
    path = write_enmap(tmp_path / "a", image(), QL_PIXELMASK=mask)
    (tmp_path / "a" / f"{ENMAP_STEM}-METADATA.XML").write_text(
        re.sub(r"(?<=<GainOfBand>)[^<]+", "0.0001", enmap_xml(BANDS))
    )
    encoding = open_scene(str(path)).reflectance.encoding
    assert (encoding["dtype"], encoding["_FillValue"]) == ("int16", NODATA)
    assert encoding["scale_factor"] == 1e-4
    values = cube(BANDS, ROWS, COLS, "i2")
    bare = open_scene(str(write_enmap(tmp_path / "b", values, nodata=None, QL_PIXELMASK=mask)))
    assert int(np.isnan(bare.reflectance).sum()) == ROWS


def test_missing_metadata_is_noted(tmp_path: Path) -> None:
    path = write_enmap(tmp_path, image())
    (tmp_path / f"{ENMAP_STEM}-METADATA.XML").unlink()
    scene = open_scene(str(path))
    assert "wavelength" not in scene.coords and "METADATA.XML" in scene.attrs["reader_notes"]
    (tmp_path / f"{ENMAP_STEM}-METADATA.XML").write_text(enmap_xml(BANDS + 1))
    assert "6 bands for 5" in open_scene(str(path)).attrs["reader_notes"]


BILLION = (
    '<!DOCTYPE a [<!ENTITY l "lol">'
    + "".join(f'<!ENTITY l{n} "{"&l;" * 10}">' for n in range(9))
    + "]><a>&l8;</a>"
)


@pytest.mark.parametrize(
    "text",
    [
        BILLION,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + enmap_xml(BANDS),
        "",
        "<a/>" * 1000,
        enmap_xml(BANDS).replace("7.5", "seven"),
        enmap_xml(BANDS).replace("7.5", "1e999"),
        "\0\xff" * 500,
    ],
    ids=["billion laughs", "external entity", "empty", "no bands", "words", "infinite", "binary"],
)
def test_hostile_metadata(tmp_path: Path, text: str) -> None:
    path = write_enmap(tmp_path, image())
    (tmp_path / f"{ENMAP_STEM}-METADATA.XML").write_text(text)
    assert fault_of(path)[0] == "bad-header"
    assert fault_of(pack(tmp_path, tmp_path.parent / f"{tmp_path.name}.zip"))[0] == "bad-header"


def test_huge_metadata_is_refused(tmp_path: Path) -> None:
    path = write_enmap(tmp_path, image())
    os.truncate(tmp_path / f"{ENMAP_STEM}-METADATA.XML", 17 * 2**20)
    assert fault_of(path)[0] == "bad-header"


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_image(tmp_path: Path, form: str, keep: float) -> None:
    path = write_enmap(tmp_path / "product", image())
    os.truncate(path, int(keep if keep > 1 else keep * path.stat().st_size))
    uri = path if form == "folder" else pack(path.parent, tmp_path / f"enmap.{form}")
    assert fault_of(uri)[0] == "truncated"


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_archive(enmap: Path, tmp_path: Path, form: str, share: float) -> None:
    packed = pack(enmap, tmp_path / f"enmap.{form}")
    os.truncate(packed, int(share * packed.stat().st_size))
    assert fault_of(packed, load=True)[0] in ("truncated", "unreadable")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "a\\x", "a}x", 'a"x'])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_paths_that_lead_out_are_refused(enmap: Path, tmp_path: Path, form: str, name: str) -> None:
    packed = pack(enmap, tmp_path / f"enmap.{form}")
    if form == "zip":
        with zipfile.ZipFile(packed, "a") as extended:
            entry = zipfile.ZipInfo("x")
            entry.filename = f"{name}-SPECTRAL_IMAGE.TIF"
            extended.writestr(entry, b"x")
    else:
        with tarfile.open(packed, "a") as tar:
            tar.addfile(tarfile.TarInfo(f"{name}-SPECTRAL_IMAGE.TIF"))
    code, message = fault_of(packed)
    assert code == "bad-header" and "unsafe" in message


def test_patches_without_metadata(tmp_path: Path) -> None:
    """A patch cut out of a product, named as HySpecNet names it: one scene, still with flags."""
    write_enmap(tmp_path, image(), **layers())
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace(ENMAP_STEM, "tile_001-patch_01"))
    (tmp_path / "tile_001-patch_01-METADATA.XML").unlink()
    (found,) = list_scenes(str(tmp_path)).scenes
    assert "defective_band" in flags_of(open_scene(found.uri))


def test_links_in_a_tar_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "secret.tif").write_bytes(b"II*\0")
    with tarfile.open(tmp_path / "enmap.tar", "w") as tar:
        link = tarfile.TarInfo(f"{ENMAP_STEM}-SPECTRAL_IMAGE.TIF")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.tif")
        tar.addfile(link)
    assert fault_of(tmp_path / "enmap.tar")[0] == "unsupported"


def test_archives_that_are_no_single_product(enmap: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    for name in ("a", "b"):
        write_geotiff((two / name).with_suffix(".tif"), image()) if two.exists() else two.mkdir()
        write_geotiff(two / f"{name}-SPECTRAL_IMAGE.TIF", image())
    assert fault_of(pack(two, tmp_path / "enmap2.zip"))[0] == "ambiguous"
    outer = tmp_path / "outer"
    outer.mkdir()
    pack(enmap, outer / "inner.zip")
    code, message = fault_of(pack(outer, tmp_path / "dims_op_1.tar"))
    assert code == "unsupported" and "unpack" in message
    with zipfile.ZipFile(tmp_path / "enmap_many.zip", "w") as packed:
        for number in range(10_001):
            packed.writestr(f"{number}", b"")
    assert fault_of(tmp_path / "enmap_many.zip")[0] == "unsupported"


def test_archive_lies_about_sizes(enmap: Path, tmp_path: Path) -> None:
    """A directory that promises gigabytes for a small member: one clear line, no memory."""
    packed = pack(enmap, tmp_path / "enmap.zip")
    data = bytearray(packed.read_bytes())
    name = f"product/{ENMAP_STEM}-SPECTRAL_IMAGE.TIF".encode()
    at = data.rindex(name) - 46
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 24 : at + 28] = b"\xfe\xff\xff\xff"  # uncompressed size, almost 4 GiB
    packed.write_bytes(data)
    code, message = fault_of(packed)
    assert code == "bad-header" and "claims 4294967294" in message


def test_tiff_claims_ten_terabytes(tmp_path: Path) -> None:
    """A sparse giant whose one block is larger than memory is refused, in no time."""
    path = write_enmap(tmp_path, image())
    with rasterio.open(
        path, "w", "GTiff", 30_000, 30_000, 3000, dtype="int16", BIGTIFF="YES", SPARSE_OK="TRUE",
        tiled=True, blockxsize=4096, blockysize=4096, nodata=NODATA,
    ):  # fmt: skip
        pass
    code, message = fault_of(path)
    assert code == "unsupported" and "smaller blocks" in message


def test_inflated_member_equals_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads in any order through kept points give the bytes that were packed."""
    monkeypatch.setattr(archives, "_POINT_EVERY", 2**14)
    monkeypatch.setattr(archives, "_BLOCK", 2**12)
    random = np.random.default_rng(0)
    data = (random.integers(0, 50, 300_000, np.uint8)).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", data)
    file = archives.open_file(archives.open_archive(str(tmp_path / "a.zip")), "a")
    for start in (0, 299_990, 5, 150_000, 149_000, 16_384, 0):
        file.seek(start)
        assert file.read(1000) == data[start : start + 1000]
        assert file.tell() == min(start + 1000, len(data))
    assert file.seek(-7, io.SEEK_END) == len(data) - 7 and file.read() == data[-7:]
    file.close()


def test_enmap_cloud_optimised_copies(tmp_path: Path) -> None:
    write_enmap(tmp_path, image(), **layers())
    for path in tmp_path.glob("*.TIF"):
        path.rename(path.with_name(f"{path.stem}_COG.TIF"))
    check_enmap(open_scene(str(tmp_path / f"{ENMAP_STEM}-SPECTRAL_IMAGE_COG.TIF")))
    assert len(list_scenes(str(tmp_path)).scenes) == 1
    path = write_enmap(tmp_path, image(), **layers())  # both beside each other: still one scene
    assert [scene.uri for scene in list_scenes(str(tmp_path)).scenes] == [str(path)]
    check_enmap(open_scene(str(tmp_path)))


def test_real_enmap_zip_says_why(tmp_path: Path) -> None:
    path = Path(real("enmap_l2a_metadata/enmap_L2A_gtif_qualification.zip"))
    (found,) = list_scenes(str(path.parent)).scenes
    assert (found.scene_id, found.format) == ("enmap_L2A_gtif_qualification", "product")
    (alone,) = list_scenes(str(path)).scenes
    assert alone == found
    code, message = fault_of(path)
    assert code == "truncated" and "empty" in message


def test_real_enmap_layers(tmp_path: Path) -> None:
    """DLR's metadata and land/water classes with an image put in the empty one's place."""
    product = real("enmap_l2a_metadata/enmap_L2A_gtif_qualification.zip")
    with zipfile.ZipFile(product) as packed:
        packed.extractall(tmp_path)
    path = next(tmp_path.rglob("*-SPECTRAL_IMAGE.TIF"))
    with rasterio.open(next(tmp_path.rglob("*QL_QUALITY_CLASSES.TIF"))) as file:
        classes, profile = file.read(1), file.profile
    profile |= {"dtype": "int16", "count": 218, "SPARSE_OK": "TRUE", "interleave": "band"}
    with rasterio.open(path, "w", **profile):
        pass
    scene = open_scene(str(path))
    assert scene.sizes == {"band": 218, "y": 1212, "x": 1128}
    assert flags_of(scene) == {"water"}
    np.testing.assert_array_equal(where(scene, "water"), classes == 2)
    assert scene.wavelength[0] == 423.03 and "QL_PIXELMASK is not used" in scene.reader_notes
    assert scene.reflectance.encoding["_FillValue"] == 0  # the product's backgroundValue


# --- EMIT ---------------------------------------------------------------------------------------


def lat_lon(rows: int = ROWS, cols: int = COLS) -> tuple[Any, Any]:
    y, x = np.mgrid[:rows, :cols].astype(float)
    return 50 - 4e-4 * y + 1e-5 * x, 10 + 6e-4 * x + 2e-5 * y


def emit_mask(labels: list[str]) -> dict[str, Any]:
    """One flagged row per band, in order."""
    made = {}
    for row, label in enumerate(labels):
        made[label] = np.zeros((ROWS, COLS))
        made[label][row] = 1
        made[label][-1] = -9999
    return made


def test_emit(tmp_path: Path) -> None:
    data = cube(BANDS, ROWS, COLS, "f4") / 30000
    data[:, 0, :4] = -9999
    lat, lon = lat_lon()
    lat[0, 0] = lon[0, 0] = -9999
    path = write_emit(tmp_path, data, lat, lon)
    scene = pickle.loads(pickle.dumps(open_scene(str(path))))  # noqa: S301
    np.testing.assert_array_equal(scene.reflectance, np.where(data == -9999, np.nan, data))
    np.testing.assert_allclose(scene.wavelength, wavelengths(BANDS), rtol=1e-6)
    assert scene.good_band.values.tolist() == [True, False, True, True, True]
    assert scene.attrs["sensor"] == "EMIT"
    assert scene.attrs["datetime"] == "2022-09-03T16:31:29+00:00"
    assert "spatial_ref" not in scene.coords and scene.x.attrs["units"] == "1"
    for name, expected in (("lat", lat), ("lon", lon)):
        found = scene[name]
        assert found.dims == ("y", "x") and found.dtype == np.float64
        assert found.chunks == scene.reflectance.chunks[1:]
        np.testing.assert_array_equal(found, np.where(expected == -9999, np.nan, expected))
    assert scene.lat.attrs["standard_name"] == "latitude"
    assert scene.lon.attrs["units"] == "degrees_east"
    assert "quality_flags" not in scene
    assert scene.reflectance.encoding["dtype"] == "float32"


V1 = ["Cloud flag", "Cirrus flag", "Water flag", "Spacecraft Flag", "Dilated Cloud Flag"]
V1 += ["AOD550", "H2O (g cm-2)", "Aggregate Flag"]
V3 = ["Water Flag", "Cloud Flag", "Cirrus Flag", "SpecTf-Cloud Probability", "SpecTf-Cloud Flag"]


@pytest.mark.parametrize(
    ("version", "labels", "rows"),
    [
        ("001", V1, {"cloud": [0], "cirrus": [1], "water": [2], "defective": [3]}),
        ("003", V3, {"cloud": [1, 4], "cirrus": [2], "water": [0], "defective": []}),
    ],
)
def test_emit_mask(tmp_path: Path, version: str, labels: list[str], rows: Any) -> None:
    path = write_emit(tmp_path, cube(BANDS, ROWS, COLS, "f4"), *lat_lon())
    before = list_scenes(str(path)).scenes[0].version
    write_emit_mask(path, emit_mask(labels), version)
    scene = open_scene(str(path))
    assert flags_of(scene) == {name for name, expected in rows.items() if expected}
    for name, expected in rows.items():
        assert np.flatnonzero(where(scene, name).all(axis=1)).tolist() == expected
        assert not where(scene, name)[-1].any()  # the mask's own fill is no flag
    (alone,), (walked,) = list_scenes(str(path)).scenes, list_scenes(str(tmp_path)).scenes
    assert alone == walked and walked.format == "hdf" and walked.version != before


def test_emit_mask_of_another_scene_is_not_used(tmp_path: Path) -> None:
    path = write_emit(tmp_path, cube(BANDS, ROWS, COLS, "f4"), *lat_lon())
    write_emit_mask(path, {"Cloud flag": np.ones((ROWS, COLS - 1))})
    scene = open_scene(str(path))
    assert "quality_flags" not in scene and "is not used (bad-header)" in scene.reader_notes


def test_emit_positions_from_the_lookup_table(tmp_path: Path) -> None:
    """Each pixel lies at the mean of its map cells, computed here cell by cell."""
    random = np.random.default_rng(1)
    glt_x, glt_y = random.integers(0, 7, (12, 15)), random.integers(0, 6, (12, 15))
    transform = (10.0, 0.01, 0.0, 50.0, 0.0, -0.02)
    path = write_emit(tmp_path, cube(BANDS, 6, 8, "f4"), glt=(glt_x, glt_y), transform=transform)
    scene = open_scene(str(path))
    affine = Affine.from_gdal(*transform)
    for line in range(6):
        for sample in range(8):
            cells = [
                affine @ (col + 0.5, row + 0.5)
                for row, col in np.argwhere((glt_x == sample + 1) & (glt_y == line + 1))
            ]
            lon, lat = np.mean(cells, axis=0) if cells else (np.nan, np.nan)
            np.testing.assert_allclose(scene.lon[line, sample], lon)
            np.testing.assert_allclose(scene.lat[line, sample], lat)
    assert "look-up table" in scene.reader_notes
    assert np.isnan(scene.lat[:, 6:]).all()


def test_emit_without_any_position(tmp_path: Path) -> None:
    scene = open_scene(str(write_emit(tmp_path, cube(BANDS, 6, 8, "f4"))))
    assert "lat" not in scene.coords and "no latitude" in scene.reader_notes


def test_emit_remote_and_lazy(tmp_path: Path) -> None:
    data = cube(BANDS, ROWS, COLS, "f4")
    path = write_emit(tmp_path, data, *lat_lon())
    write_emit_mask(path, emit_mask(V1))
    fsspec.filesystem("memory").put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
    scene = open_scene(f"memory:///{tmp_path.name}/{EMIT_NAME}")
    np.testing.assert_array_equal(scene.reflectance, data)
    np.testing.assert_array_equal(scene.lon, lat_lon()[1])
    assert "cloud" in flags_of(scene)
    assert len(list_scenes(f"memory:///{tmp_path.name}").scenes) == 1


def test_hdf5_faults(tmp_path: Path) -> None:
    path = write_emit(tmp_path, cube(BANDS, ROWS, COLS, "f4"), *lat_lon())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert fault_of(path)[0] == "truncated"
    path.write_bytes(b"")
    assert fault_of(path)[0] == "truncated"
    path.write_bytes(b"CDF\1" + bytes(100))
    assert fault_of(path)[0] == "bad-header"
    with h5py.File(path, "w") as file:
        file["temperature"] = np.zeros((3, 3))
    assert fault_of(path)[0] == "unsupported"
    with h5py.File(path, "w") as file:  # the cube lives in another file
        file["reflectance"] = h5py.ExternalLink("/etc/passwd", "x")
        file["sensor_band_parameters/wavelengths"] = wavelengths(BANDS)
    assert fault_of(path)[0] == "unsupported"
    with h5py.File(path, "w") as file:
        file["reflectance"] = np.zeros((3, 3, 3), "f4")
        file["sensor_band_parameters"] = h5py.ExternalLink("other.nc", "sensor_band_parameters")
    assert fault_of(path)[0] == "unsupported"
    with h5py.File(path, "w") as file:
        file["reflectance"] = np.zeros((3, 3), "f4")
        file["sensor_band_parameters/wavelengths"] = wavelengths(BANDS)
    assert fault_of(path)[0] == "bad-header"


def test_emit_claims_ten_terabytes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / EMIT_NAME, "w") as file:
        shape = (1_000_000, 10_000, 285)
        file.create_dataset("reflectance", shape, "f4", chunks=(64, 64, 285), fillvalue=-9999)
        file["reflectance"].attrs["_FillValue"] = -9999.0
        file["sensor_band_parameters/wavelengths"] = wavelengths(285)
        file["location/glt_x"] = file["location/glt_y"] = np.ones((2, 2), "i4")
        file.attrs["geotransform"] = np.arange(6.0)
    code, message = fault_of(tmp_path / EMIT_NAME)
    assert code == "bad-header" and "claims" in message


def test_lookup_table_of_a_giant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that would not fit the memory costs the positions, not the worker."""
    monkeypatch.setattr(emit, "_MOST_CELLS", 100)
    tables = np.ones((11, 10)), np.ones((11, 10))
    scene = open_scene(str(write_emit(tmp_path, cube(BANDS, 6, 8, "f4"), glt=tables)))
    assert "lat" not in scene.coords and "too large" in scene.reader_notes


# --- PRISMA -------------------------------------------------------------------------------------

VNIR = [977.0, 950.0, 900.0, 500.0, 407.0, 0.0]
SWIR = [2497.0, 1500.0, 1000.0, 960.0, 943.0, 0.0]
KEPT = [407, 500, 900, 950, 977, 1000, 1500, 2497]


def prisma_cubes() -> tuple[Any, Any]:
    """Counts with padding in one corner and a cut negative (0) in one band elsewhere."""
    cubes = cube(6, ROWS, COLS, seed=1) + 1, cube(6, ROWS, COLS, seed=2) + 1
    for values in cubes:
        values[:, :5, :6] = 0
    cubes[0][2, 20, 20] = 0
    return cubes


def prisma_expected(vnir: Any, swir: Any) -> Any:
    """The kept bands' counts in ascending order."""
    return np.concatenate([vnir[[4, 3, 2, 1, 0]], swir[[2, 1, 0]]])


@pytest.mark.parametrize("scale", [((0.0, 1.0), (0.0, 1.0)), ((0.0, 0.9), (-0.1, 0.7))])
def test_prisma(tmp_path: Path, scale: Any) -> None:
    vnir, swir = prisma_cubes()
    path = write_prisma(tmp_path, vnir, swir, (VNIR, SWIR), scale)
    scene = pickle.loads(pickle.dumps(open_scene(str(path))))  # noqa: S301
    counts = prisma_expected(vnir, swir).astype(float)
    padding = counts.sum(axis=0) == 0
    assert padding.sum() == 30
    counts[counts == 0] = 1
    counts[:, padding] = np.nan
    low, high = np.array([scale[0]] * 5 + [scale[1]] * 3, "f4").astype(float).T[:, :, None, None]
    np.testing.assert_allclose(
        scene.reflectance, low + counts / 65535 * (high - low), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(scene.wavelength, KEPT)
    np.testing.assert_allclose(scene.fwhm, 10 + np.array(KEPT) / 1000, rtol=1e-6)
    assert scene.attrs["sensor"] == "PRISMA"
    assert scene.attrs["datetime"] == "2020-08-13T10:30:56.123000"
    assert scene.rio.crs == rasterio.CRS.from_epsg(32633)
    assert scene.rio.transform() == Affine(30, 0, 352740, 0, -30, 5987250)
    assert float(scene.x[0]) == 352755 and float(scene.y[0]) == 5987235
    assert "quality_flags" not in scene
    same = scale[0] == scale[1]
    assert scene.reflectance.encoding["dtype"] == ("uint16" if same else "float32")
    window = scene.reflectance[4:6, 18:22, [21, 20]]
    np.testing.assert_allclose(window, scene.reflectance.values[4:6, 18:22][:, :, [21, 20]])


def test_prisma_outer_corners(tmp_path: Path) -> None:
    """Corners that enclose whole pixels of 30 m are corners, not centres."""
    corners = (352740.0, 5987250.0, 352740.0 + 30 * COLS, 5987250.0 - 30 * ROWS)
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR), corners=corners)
    assert open_scene(str(path)).rio.transform() == Affine(30, 0, 352740, 0, -30, 5987250)


def test_prisma_flags(tmp_path: Path) -> None:
    errors = np.zeros((6, ROWS, COLS), np.uint8), np.zeros((6, ROWS, COLS), np.uint8)
    errors[0][3, 7] = 1
    errors[1][0, 8] = 3
    errors[0][0, 9] = 2
    errors[1][4, 10] = 1  # a band that the overlap rule leaves out
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR), errors=errors)
    scene = open_scene(str(path))
    assert flags_of(scene) == {"defective_band", "saturated"}
    np.testing.assert_array_equal(where(scene, "defective_band").all(axis=1), np.arange(ROWS) == 7)
    gaps = np.isnan(scene.reflectance.values)
    (tmp_path / "sound").mkdir()
    sound = write_prisma(tmp_path / "sound", *prisma_cubes(), (VNIR, SWIR))
    fresh = gaps & ~np.isnan(open_scene(str(sound)).reflectance.values)
    assert np.unique(np.nonzero(fresh)[1]).tolist() == [7]
    assert fresh[:, 7].sum(axis=0).max() == 1  # one band, the others stay
    np.testing.assert_array_equal(where(scene, "saturated").all(axis=1), np.arange(ROWS) == 8)


def test_prisma_remote(tmp_path: Path) -> None:
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR))
    fsspec.filesystem("memory").put(str(path), f"/{tmp_path.name}.he5")
    remote = open_scene(f"memory:///{tmp_path.name}.he5")
    np.testing.assert_array_equal(remote.reflectance, open_scene(str(path)).reflectance)


def test_prisma_faults(tmp_path: Path) -> None:
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR), level="L2C")
    assert fault_of(path)[0] == "unsupported"
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR))
    for change in (
        lambda file: file.attrs.pop("List_Cw_Vnir"),
        lambda file: file.attrs.create("List_Cw_Vnir", np.ones(5, "f4")),
        lambda file: file.attrs.modify("L2ScaleSwirMax", np.float32(-1)),
        lambda file: file.attrs.modify("Product_LRcorner_easting", 0.0),
        lambda file: file.attrs.modify("Product_LRcorner_easting", float("nan")),
        lambda file: file.attrs.create("Epsg_Code", np.float64("inf")),
    ):
        whole = path.read_bytes()
        with h5py.File(path, "r+") as file:
            change(file)
        assert fault_of(path)[0] == "bad-header"
        path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file.attrs["Epsg_Code"]
    scene = open_scene(str(path))
    assert "spatial_ref" not in scene.coords and "not georeferenced" in scene.reader_notes


def test_prisma_claims_ten_terabytes(tmp_path: Path) -> None:
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR))
    with h5py.File(path, "r+") as file:
        fields = file["HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"]
        for name in ("VNIR_Cube", "SWIR_Cube"):
            del fields[name]
            shape = (700_000, 6, 700_000)
            fields.create_dataset(name, shape, "u2", chunks=(64, 6, 64))
    assert fault_of(path)[0] == "bad-header"


def test_prisma_pixels_of_another_size_are_noted(tmp_path: Path) -> None:
    corners = (352755.0, 5987235.0, 352755.0 + 5 * (COLS - 1), 5987235.0 - 5 * (ROWS - 1))
    path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR), corners=corners)
    scene = open_scene(str(path))
    assert scene.rio.transform() == Affine(5, 0, 352752.5, 0, -5, 5987237.5)
    assert "5 x 5 m, not 30 m" in scene.reader_notes


# --- DESIS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_desis(tmp_path: Path, form: str) -> None:
    raw = image()
    quality = np.zeros((10, ROWS, COLS), np.uint8)
    for band in range(10):
        quality[band, band + 5] = 1
    path = write_desis(tmp_path / "product", raw, quality)
    uri = path if form == "folder" else pack(path.parent, tmp_path / f"DESIS.{form}")
    scene = open_scene(str(uri))
    number = np.arange(1, BANDS + 1)[:, None, None]
    expected = np.where(raw == NODATA, np.nan, raw * 1e-4 * number + 0.01 * number)
    np.testing.assert_allclose(scene.reflectance, expected, rtol=1e-5)
    np.testing.assert_allclose(scene.wavelength, wavelengths(BANDS))
    np.testing.assert_allclose(scene.fwhm, 3.5)
    assert scene.attrs["sensor"] == "DESIS" and scene.attrs["format"] == "desis"
    assert scene.attrs["datetime"].startswith("2019-12-03T02:11:28.1")
    rows = {"cloud_shadow": [5], "snow": [7], "haze": [8, 9], "cloud": [10, 11], "water": [12]}
    assert flags_of(scene) == set(rows)
    for name, expected_rows in rows.items():
        assert np.flatnonzero(where(scene, name).all(axis=1)).tolist() == expected_rows
    (found,) = list_scenes(str(tmp_path / "product")).scenes
    assert found.scene_id == f"{DESIS_STEM}-SPECTRAL_IMAGE"


# --- ENVI of airborne products -------------------------------------------------------------------


def write_line(folder: Path, georeferenced: bool = False) -> str:
    """A flight line as JPL names it: reflectance, location, and files that are no scenes."""
    data = cube(BANDS, ROWS, COLS, "f4")
    lat, lon = lat_lon()
    line = "ang20170228t170016"
    info = "{UTM, 1, 1, 364095, 5809965, 5.4, 5.4, 33, North, WGS-84, units=Meters, rotation=-61}"
    for code, bands in (("glt", 2), ("igm", 3), ("obs", 11), ("obs_ort", 11)):
        write_envi(folder, cube(bands, ROWS, COLS, "f4"), "bil", f"{line}_rdn_v2p5_{code}", "")
    position = np.stack([lon, lat, np.full_like(lat, 400)])
    position[:, 0, 0] = -9999
    name = f"{line}_rdn_v2p5_loc"
    write_envi(folder, position, "bip", name, "", data_ignore_value=-9999)
    return write_envi(
        folder,
        data,
        "bil",
        f"{line}_rfl_v2p5_img",
        "",
        map_info=info if georeferenced else None,
        wavelength=listed(wavelengths(BANDS)),
        data_ignore_value=-9999,
    )


@pytest.mark.parametrize("remote", [False, True])
def test_location_of_a_flight_line(tmp_path: Path, remote: bool) -> None:
    uri = write_line(tmp_path)
    if remote:
        fsspec.filesystem("memory").put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
        uri = f"memory:///{tmp_path.name}/{Path(uri).name}"
    scene = pickle.loads(pickle.dumps(open_scene(uri)))  # noqa: S301
    lat, lon = lat_lon()
    for name, expected in (("lat", lat), ("lon", lon)):
        expected[0, 0] = np.nan
        np.testing.assert_array_equal(scene[name], expected)
        assert scene[name].dtype == np.float64
    assert scene.lat.chunks == scene.reflectance.chunks[1:]
    (found,) = list_scenes(uri.rpartition("/")[0]).scenes
    assert found.uri == uri


def test_georeferenced_line_needs_no_location(tmp_path: Path) -> None:
    scene = open_scene(write_line(tmp_path, georeferenced=True))
    assert "lat" not in scene.coords and "spatial_ref" in scene.coords
    assert len(list_scenes(str(tmp_path)).scenes) == 1


def test_location_that_does_not_fit(tmp_path: Path) -> None:
    write_envi(tmp_path, cube(3, ROWS, COLS + 1, "f4"), name="line1_loc")
    scene = open_scene(write_envi(tmp_path, cube(BANDS, ROWS, COLS, "f4"), name="line1_rfl"))
    assert "lat" not in scene.coords and "line1_loc.hdr is not used" in scene.reader_notes


def test_geometry_alone_is_still_listed(tmp_path: Path) -> None:
    """A file is passed over for what it belongs to, not for its name."""
    write_envi(tmp_path, cube(), name="my_loc")
    assert [scene.scene_id for scene in list_scenes(str(tmp_path)).scenes] == ["my_loc"]


def test_version_follows_the_location(tmp_path: Path) -> None:
    uri = write_line(tmp_path)
    before = list_scenes(str(tmp_path)).scenes
    assert before == list_scenes(uri).scenes
    os.utime(tmp_path / "ang20170228t170016_rdn_v2p5_loc", (1, 1))
    assert list_scenes(str(tmp_path)).scenes[0].version != before[0].version


@pytest.mark.parametrize("angle", ["-61", "12.5", "180", "-180", "270"])
@pytest.mark.parametrize("steps", ["5.4, 5.4", "30, 20"])
def test_rotation_is_gdals(tmp_path: Path, angle: str, steps: str) -> None:
    info = f"{{UTM, 1, 1, 364095, 5809965, {steps}, 33, North, WGS-84, rotation={angle}}}"
    scene = open_scene(write_envi(tmp_path, cube(), map_info=info))
    with rasterio.open(tmp_path / "scene.img", driver="ENVI") as file:
        truth = [float(word) for word in scene.spatial_ref.attrs["GeoTransform"].split()]
        np.testing.assert_allclose(truth, file.transform.to_gdal(), atol=1e-9)
    assert ("rotation=180" in scene.attrs.get("reader_notes", "")) == ("180" in angle)


# --- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "remote zip", "tar.gz", "emit", "prisma", "envi"])
def test_many_threads(enmap: Path, tmp_path: Path, kind: str) -> None:
    """Windows of cube, flags and positions, read at once, are those read one by one."""
    if kind == "emit":
        path = write_emit(tmp_path, cube(BANDS, ROWS, COLS, "f4"), *lat_lon())
        write_emit_mask(path, emit_mask(V1))
    elif kind == "prisma":
        errors = (np.ones((6, ROWS, COLS), np.uint8),) * 2
        path = write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR), errors=errors)
    elif kind == "envi":
        path = Path(write_line(tmp_path))
    else:
        path = pack(enmap, tmp_path / f"enmap.{kind.removeprefix('remote ')}")
    uri = str(path)
    if kind.startswith("remote"):
        fsspec.filesystem("memory").put(uri, f"/{tmp_path.name}/enmap.zip")
        uri = f"memory:///{tmp_path.name}/enmap.zip"
    whole = open_scene(uri).load(scheduler="synchronous")
    scene = open_scene(uri)

    def window(seed: int) -> bool:
        y, x = (int(n) for n in np.random.default_rng(seed).integers(0, 20, 2))
        part = {"y": slice(y, y + 9), "x": slice(x, x + 9)}
        return whole.isel(part).identical(scene.isel(part).compute(scheduler="synchronous"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(window, range(40)))


# --- the catalogue ------------------------------------------------------------------------------


def test_products_are_one_scene_each(enmap: Path, tmp_path: Path) -> None:
    write_desis(tmp_path / "desis", image(), np.zeros((10, ROWS, COLS), np.uint8))
    path = write_emit(tmp_path, cube(BANDS, ROWS, COLS, "f4"), *lat_lon())
    write_emit_mask(path, emit_mask(V1))
    for name in ("EMIT_L2A_RFLUNCERT_001_x.nc", "EMIT_L1B_OBS_001_x.nc"):
        (tmp_path / name).write_bytes(b"x")
    write_prisma(tmp_path, *prisma_cubes(), (VNIR, SWIR))
    pack(enmap, tmp_path / "dims_op_oc_1.tar.gz")
    (tmp_path / "other.zip").write_bytes(b"PK")
    catalogue = list_scenes(str(tmp_path))
    assert {scene.scene_id: scene.format for scene in catalogue.scenes} == {
        f"product__{ENMAP_STEM}-SPECTRAL_IMAGE": "product",
        f"desis__{DESIS_STEM}-SPECTRAL_IMAGE": "product",
        path.stem: "hdf",
        "PRS_L2D_STD_20200813103056_20200813103100_0001": "hdf",
        "dims_op_oc_1": "product",
    }
    assert not catalogue.rejected and catalogue.ignored == [str(tmp_path / "other.zip")]
    for scene in catalogue.scenes:
        assert open_scene(scene.uri).sizes["y"] == ROWS
        assert list_scenes(scene.uri).scenes[0].version == scene.version


@pytest.mark.parametrize("name", ["METADATA.XML", "QL_PIXELMASK.TIF", "SPECTRAL_IMAGE.TIF"])
def test_version_follows_what_is_read(enmap: Path, name: str) -> None:
    before = list_scenes(str(enmap)).scenes[0]
    os.utime(enmap / f"{ENMAP_STEM}-QL_VNIR.TIF", (1, 1))  # a quicklook is not read
    assert list_scenes(str(enmap)).scenes[0] == before
    os.utime(enmap / f"{ENMAP_STEM}-{name}", (1, 1))
    assert list_scenes(str(enmap)).scenes[0].version != before.version


def test_ten_thousand_objects_take_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, sizes and tags are all that a listing looks at."""
    memory = fsspec.filesystem("memory")
    names = [f"ENMAP01-____L2A-DT{n:010d}" for n in range(700)]
    parts = ["METADATA.XML", "SPECTRAL_IMAGE.TIF", "QL_PIXELMASK.TIF", "QL_QUALITY_CLOUD.TIF"]
    made = [f"{name}-{part}" for name in names for part in parts]
    made += [f"ang{n}t1_{code}{end}" for n in range(700) for code in ("rfl", "loc", "glt", "obs")
             for end in ("", ".hdr")]  # fmt: skip
    made += [f"EMIT_L2A_{code}_001_{n}.nc" for n in range(700) for code in ("RFL", "MASK")]
    memory.pipe({f"/many/{name}": b"x" for name in made})
    asked: list[str] = []
    for method in ("cat_file", "open", "info", "ls", "cat_ranges", "exists", "isdir"):
        original = getattr(type(memory), method)

        def spy(
            self: Any, *args: Any, _name: str = method, _original: Any = original, **kwargs: Any
        ) -> Any:
            asked.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(type(memory), method, spy)
    catalogue = list_scenes("memory://many")
    assert len(catalogue.scenes) == 2100 and not catalogue.rejected
    assert set(asked) <= {"ls", "info"} and len(asked) <= 4
    for name in made:  # one by one: a recursive removal of so many takes seconds
        del memory.store[f"/many/{name}"]
