"""Valid files of every format, ways to make them lie, and a look at what a process touches."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

from tests.products import pack, write_desis, write_emit, write_enmap, write_prisma
from tests.scenes import (
    cube,
    listed,
    wavelengths,
    write_envi,
    write_geotiff,
    write_matlab,
    write_matlab73,
    write_zarr,
)

BANDS, ROWS, COLS = 12, 16, 20


class Content(bytes):
    """Bytes of a file that a failing test does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes, {self[:64]!r}...>"


NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    255,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64,
    -(2**63),
]
WORDS = [
    "",
    "nan",
    "-inf",
    "1e999",
    "{",
    "}",
    "../../../outside",
    "/etc/hostname",
    "file:///etc/hostname",
    "http://127.0.0.1:9/x",
    "\u202eevil",
    "a\x00b",
    "a\nb",
    "\x1b[31m",
    "9" * 400,
    "%s%n{0}",
    "\ud7ff\uffff",
]
ANY: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.floats(),
    st.lists(st.sampled_from([*NUMBERS, *WORDS, None]), max_size=4),
    st.dictionaries(st.sampled_from(["name", "configuration", "x"]), st.sampled_from(NUMBERS)),
)


@dataclass(frozen=True)
class Seed:
    """A valid scene: how to write it, and which of its files is tampered with in which way."""

    write: Callable[[Path], Path]
    target: Callable[[Path], Path]
    tamper: Callable[[st.DrawFn, bytes], bytes]


def _values() -> np.ndarray[Any, Any]:
    return cube(BANDS, ROWS, COLS, "i2")


# --- how a file is made to lie --------------------------------------------------------------------


def tamper_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """A few edits: numbers of 1 to 8 bytes written over, parts cut out, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        near_front = draw(st.booleans())
        at = draw(st.integers(0, min(len(changed) - 1, 700 if near_front else len(changed) - 1)))
        kind = draw(st.sampled_from(["number", "number", "number", "cut", "double", "end"]))
        if kind == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * size)
            changed[at : at + size] = number.to_bytes(
                size, draw(st.sampled_from(["little", "big"]))
            )
        elif kind == "cut":
            del changed[at : at + draw(st.integers(1, 64))]
        elif kind == "double":
            changed[at:at] = changed[at : at + draw(st.integers(1, 64))]
        else:
            del changed[at:]
    return Content(changed)


def tamper_tags(draw: st.DrawFn, data: bytes) -> bytes:
    """Type, count or value of entries of a little-endian classic TIFF's first directory."""
    changed = bytearray(data)
    (start,) = struct.unpack_from("<I", changed, 4)
    (entries,) = struct.unpack_from("<H", changed, start)
    for _ in range(draw(st.integers(1, 3))):
        at = start + 2 + 12 * draw(st.integers(0, entries - 1))
        place, size = draw(st.sampled_from([(0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 2)]))
        number = draw(st.sampled_from(NUMBERS) | st.integers(0, 400)) % 2 ** (8 * size)
        changed[at + place : at + place + size] = number.to_bytes(size, "little")
    return Content(changed)


def tamper_lines(draw: st.DrawFn, data: bytes) -> bytes:
    """Values of an ENVI header's fields."""
    lines = data.decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(1, len(lines) - 1))
        value = draw(st.sampled_from([*NUMBERS, *WORDS]))
        lines[at] = f"{lines[at].partition('=')[0]}= {value}"
    return Content("\n".join(lines).encode(errors="replace"))


def tamper_json(draw: st.DrawFn, data: bytes) -> bytes:
    """Values anywhere in a JSON document replaced, or members taken out."""
    document = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if isinstance(holder, dict) and draw(st.integers(0, 5)) == 0:
            del holder[key]
        else:
            holder[key] = draw(ANY)
    return Content(json.dumps(document).encode(errors="replace"))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = (
        list(node) if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
    )
    for key in keys:
        yield node, key
        yield from _places(node[key])


def tamper_xml(draw: st.DrawFn, data: bytes) -> bytes:
    """Texts of elements replaced, and sometimes a document type put in front."""
    parts = data.decode().split(">")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        _, bracket, tag = parts[at].partition("<")
        parts[at] = str(draw(st.sampled_from([*NUMBERS, *WORDS]))) + bracket + tag
    text = ">".join(parts)
    if draw(st.integers(0, 9)) == 0:
        text = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + text
    return Content(text.encode(errors="replace"))


def tamper_hdf5(draw: st.DrawFn, path: Path) -> None:
    """Attributes of other types and sizes, datasets of other shapes, links that lead outside."""
    with h5py.File(path, "r+") as file:
        for _ in range(draw(st.integers(1, 3))):
            names: list[str] = []
            file.visit(names.append)
            if not names:
                break
            name = draw(st.sampled_from(names))
            item = file[name]
            kind = draw(st.sampled_from(["attribute", "root", "shape", "link", "gone"]))
            if kind in ("attribute", "root"):
                holder = item if kind == "attribute" else file
                keys = [*holder.attrs, "_FillValue", "units"]
                value = draw(
                    st.sampled_from(NUMBERS[:9]) | st.sampled_from(["", "x", [], [1e308] * 6])
                )
                holder.attrs[draw(st.sampled_from(keys))] = value
            elif kind == "gone":
                del file[name]
            elif kind == "link":
                del file[name]
                file[name] = draw(
                    st.sampled_from(
                        [
                            h5py.ExternalLink("/etc/hostname", "/x"),
                            h5py.SoftLink("/"),
                            h5py.SoftLink(name),
                        ]
                    )
                )
            elif isinstance(item, h5py.Dataset):
                shape = draw(st.lists(st.sampled_from([0, 1, 3, 16, 2**20, 2**33]), max_size=4))
                dtype = draw(st.sampled_from(["u2", "f8", "S3", "c16", "b1"]))
                chunks = True if shape and 0 not in shape else None
                del file[name]
                file.create_dataset(name, shape, dtype, chunks=chunks)


# --- what a process touches -----------------------------------------------------------------------


class Watch:
    """Files that Python code writes or removes, connections it makes, programs it starts."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self._hook)  # cannot be taken away again, hence `on`

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if isinstance(path, str | bytes | os.PathLike):
                self.seen.append(("write" if writes else "read", os.fsdecode(path)))
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink"):
            self.seen.append(("write", os.fsdecode(arguments[0])))
        elif event in ("socket.connect", "socket.getaddrinfo"):
            self.seen.append(("connect", str(arguments[1:])))
        elif event in ("subprocess.Popen", "os.system", "os.exec"):
            self.seen.append(("program", str(arguments[0])))

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def outside(self, *folders: Path) -> list[tuple[str, str]]:
        """What was done elsewhere than below `folders`; reading is only told of /etc."""
        inside = tuple(str(folder) for folder in folders)
        return [
            (what, where)
            for what, where in self.seen
            # A bare name is one below a folder that is open already.
            if ("/" in where or what in ("connect", "program"))
            and not where.startswith((*inside, "/dev/null", "/proc/"))
            and (what != "read" or where.startswith("/etc/hostname"))
        ]


# --- valid scenes ---------------------------------------------------------------------------------


def _same(path: Path) -> Path:
    return path


def _envi(folder: Path) -> Path:
    return Path(
        write_envi(
            folder,
            _values(),
            "bil",
            wavelength=listed(wavelengths(BANDS)),
            fwhm=listed([8.5] * BANDS),
            bbl=listed([1] * BANDS),
            map_info="{UTM, 1, 1, 364095, 5809965, 30, 30, 33, North, WGS-84, rotation=10}",
            data_ignore_value=-32768,
            reflectance_scale_factor=10000,
        )
    )


def _npz(folder: Path) -> Path:
    data = _values().transpose(1, 2, 0)
    np.savez_compressed(folder / "a.npz", cube=data, wavelength=wavelengths(BANDS))
    return folder / "a.npz"


def _matlab5(folder: Path) -> Path:
    path = folder / "a.mat"
    write_matlab(path, data=_values().transpose(1, 2, 0), wavelength=wavelengths(BANDS))
    return path


def _zarr(version: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return Path(write_zarr(folder / "a.zarr", _values(), version, scale_factor=1e-4))

    return write


def _emit(folder: Path) -> Path:
    lat, lon = np.mgrid[50 : 51 : ROWS * 1j, 10 : 11 : COLS * 1j]
    return Path(write_emit(folder, _values() / 30000.0, lat, lon))


def _prisma(folder: Path) -> Path:
    vnir, swir = np.abs(_values()[:7]).astype("u2"), np.abs(_values()[7:]).astype("u2")
    centres = 900.0 - 60 * np.arange(7), 1800.0 - 80 * np.arange(5)
    return write_prisma(folder, vnir, swir, centres, errors=(vnir % 4, swir % 4))


SEEDS = {
    "envi": Seed(_envi, _same, tamper_lines),
    "tiff tags": Seed(
        lambda folder: Path(write_geotiff(folder / "a.tif", _values(), compress="deflate")),
        _same,
        tamper_tags,
    ),
    "tiff": Seed(
        lambda folder: Path(write_geotiff(folder / "a.tif", _values(), scale=1e-4)),
        _same,
        tamper_bytes,
    ),
    "matlab5": Seed(_matlab5, _same, tamper_bytes),
    "matlab73": Seed(
        lambda folder: Path(write_matlab73(folder / "a.mat", data=_values().transpose(1, 2, 0))),
        _same,
        tamper_bytes,
    ),
    "npz": Seed(_npz, _same, tamper_bytes),
    "zarr2 array": Seed(_zarr(2), lambda p: p / "reflectance" / ".zarray", tamper_json),
    "zarr2 attributes": Seed(_zarr(2), lambda p: p / "reflectance" / ".zattrs", tamper_json),
    "zarr3 array": Seed(_zarr(3), lambda p: p / "reflectance" / "zarr.json", tamper_json),
    "zarr3 group": Seed(_zarr(3), lambda p: p / "zarr.json", tamper_json),
    "zarr3 wavelengths": Seed(_zarr(3), lambda p: p / "wavelength" / "zarr.json", tamper_json),
    "enmap": Seed(
        lambda folder: write_enmap(folder, _values()),
        lambda p: next(p.parent.glob("*METADATA.XML")),
        tamper_xml,
    ),
    "desis": Seed(
        lambda folder: write_desis(folder, _values()),
        lambda p: next(p.parent.glob("*METADATA.xml")),
        tamper_xml,
    ),
    "zip": Seed(
        lambda folder: pack(write_enmap(folder / "p", _values()).parent, folder / "enmap.zip"),
        _same,
        tamper_bytes,
    ),
    "tar": Seed(
        lambda folder: pack(write_enmap(folder / "p", _values()).parent, folder / "enmap.tar"),
        _same,
        tamper_bytes,
    ),
    "tar.gz": Seed(
        lambda folder: pack(write_enmap(folder / "p", _values()).parent, folder / "enmap.tar.gz"),
        _same,
        tamper_bytes,
    ),
    "emit bytes": Seed(_emit, _same, tamper_bytes),
}
HDF5 = {
    "emit": _emit,
    "prisma": _prisma,
    "matlab73": SEEDS["matlab73"].write,
}
