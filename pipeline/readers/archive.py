"""Products inside zip and tar archives, read in place and never unpacked.

A member is named `zip://NAME::ARCHIVE` or `tar://NAME::ARCHIVE`, the form in which fsspec chains
filesystems. Local archives are read by GDAL (`/vsizip/`, `/vsisubfile/`, `/vsigzip/`). Of remote
ones a stored zip member or a plain tar member is a byte range of the archive, and a deflated member
is inflated from kept points. Layouts: PKWARE's APPNOTE 6.3 and the pax format of POSIX.1-2001.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.errors import SceneError
from pipeline.readers.blocks import open_blocks
from pipeline.readers.boundary import boundary, failure
from pipeline.storage import is_local, open_filesystem, version_of

_BLOCK = 2**20
_MOST_BLOCKS = 32
_MOST_INFLATED = 1032  # times its bytes, by the format of deflate (RFC 1951)
_MOST_MEMBERS = 10_000
_KEPT = 16
_POINT_EVERY = 16 * 2**20  # a kept point costs about 50 kB, starting anew up to this much
_UNSAFE = re.compile(r'^/|(^|/)\.\.(/|$)|::|[\\{}"\x00-\x1f]')


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    `start` is where its bytes begin in a tar (in the inflated one of a compressed tar), and where
    its local header begins in a zip. `packed` bytes of a deflated member are `size` bytes.
    """

    name: str
    size: int
    start: int
    packed: int
    deflated: bool = False


@dataclass(frozen=True)
class Archive:
    """The directory of an archive: its regular files by their path inside it."""

    uri: str
    kind: str
    members: dict[str, Member] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """What `gdal_path` and `geotiff.open_tiff` take."""
        return f"{'zip' if self.kind == 'zip' else 'tar'}://{name}::{self.uri}"

    def read(self, name: str, most: int) -> bytes:
        """The first `most` bytes of a member."""
        with open_file(self, name) as file:
            return bytes(file.read(most))


def archive_kind(head: bytes) -> str | None:
    """`zip`, `tar` or `tar.gz` by the first 512 bytes of a file, or None."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    return "tar.gz" if head.startswith(b"\x1f\x8b") else None


def open_archive(uri: str) -> Archive:
    """Read the directory of an archive. A compressed tar has none: all of it is read once.

    Raises:
        SceneError: `truncated`; `bad-header` where a member's path leads out of the archive;
            `unsupported` for encrypted archives and for compressed tars that are not local.
    """
    filesystem, path = open_filesystem(uri)
    with boundary(uri, "cannot read the archive"):
        version = version_of(filesystem.info(path))
        return _directory(uri, version)


@lru_cache(maxsize=_KEPT)
def _directory(uri: str, version: str) -> Archive:
    """The directory of one version of an archive, kept: every handle of a member asks for it."""
    filesystem, path = open_filesystem(uri)
    with open_blocks(filesystem, path, _BLOCK, _MOST_BLOCKS) as file:
        kind = archive_kind(file.read(512))
        if kind is None:
            raise failure("unsupported", uri, "neither a zip nor a tar archive")
        if kind == "tar.gz" and not is_local(filesystem):
            reason = "a compressed tar is read from a local disk only: unpack it, or use zip"
            raise failure("unsupported", uri, reason)
        file.seek(0)
        try:
            found = _zip_members(uri, file) if kind == "zip" else _tar_members(uri, file, kind)
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise _cut(uri, error) from error
    return Archive(uri, kind, {_safe(uri, member.name): member for member in found})


def _cut(uri: str, error: Exception | None = None) -> SceneError:
    return failure("truncated", uri, "the archive is cut or damaged: copy it again", error)


def _safe(uri: str, name: str) -> str:
    if _UNSAFE.search(name):
        raise failure("bad-header", uri, f"archive with the unsafe member name {name[:60]!r}")
    return name


def _zip_members(uri: str, file: Any) -> list[Member]:
    found = []
    with zipfile.ZipFile(file) as archive:
        _check_count(uri, len(archive.infolist()))
        for entry in archive.infolist():
            deflated = entry.compress_type == zipfile.ZIP_DEFLATED
            if entry.flag_bits & 1 or not (deflated or entry.compress_type == zipfile.ZIP_STORED):
                raise failure(
                    "unsupported", uri, "zip that is encrypted or not deflated: unpack it"
                )
            if not entry.is_dir():
                found.append(_zip_member(uri, entry, deflated))
    size = file.seek(0, io.SEEK_END)
    if any(member.start + member.packed > size for member in found):
        raise _cut(uri)
    return found


def _zip_member(uri: str, entry: zipfile.ZipInfo, deflated: bool) -> Member:
    most = entry.compress_size * (_MOST_INFLATED if deflated else 1)
    if entry.file_size > most:
        reason = f"a member of {entry.compress_size} bytes claims {entry.file_size}"
        raise failure("bad-header", uri, reason)
    size, packed = entry.file_size, entry.compress_size
    return Member(entry.filename, size, entry.header_offset, packed, deflated)


def _tar_members(uri: str, file: Any, kind: str) -> list[Member]:
    found = []
    with tarfile.open(fileobj=file, mode="r:gz" if kind == "tar.gz" else "r:") as archive:
        for count, entry in enumerate(archive):
            _check_count(uri, count)
            if entry.isfile() and not entry.issparse():
                name = entry.name.removeprefix("./")
                found.append(Member(name, entry.size, entry.offset_data, entry.size))
        # tarfile takes a file cut inside a header for one that ends there, without its last blocks.
        last = archive.offset
    if kind == "tar" and file.seek(0, io.SEEK_END) < last + tarfile.BLOCKSIZE:
        raise _cut(uri)
    return found


def _check_count(uri: str, count: int) -> None:
    if count > _MOST_MEMBERS:
        raise failure("unsupported", uri, f"archive of over {_MOST_MEMBERS} members: unpack it")


def split_address(address: str) -> tuple[str, str] | None:
    """(name, archive) of a member's address; None for any other address."""
    for scheme in ("zip://", "tar://"):
        if address.startswith(scheme) and "::" in address:
            name, _, archive = address[len(scheme) :].partition("::")
            return name, archive
    return None


def gdal_path(archive: Archive, name: str) -> str | None:
    """GDAL's path of a member, or None where the archive is not on a local disk.

    Members of a tar are named by their place: GDAL's own `/vsitar/` reads no pax headers, and so
    finds no member with a long name.
    """
    filesystem, path = open_filesystem(archive.uri)
    if not is_local(filesystem):
        return None
    if archive.kind == "zip":
        return f"/vsizip/{{{path}}}/{name}"
    member = archive.members[name]
    inflated = f"/vsigzip/{path}" if archive.kind == "tar.gz" else path
    return f"/vsisubfile/{member.start}_{member.size},{inflated}"


def open_file(archive: Archive, name: str) -> Any:
    """A seekable binary file over one member; seeking back in a compressed tar reads it anew."""
    filesystem, path = open_filesystem(archive.uri)
    file = open_blocks(filesystem, path, _BLOCK, _MOST_BLOCKS)
    member = archive.members[name]
    start = member.start
    if archive.kind == "tar.gz":
        return _Section(gzip.GzipFile(fileobj=file), start, member.size)
    if archive.kind == "zip":
        # The local header repeats the name and may have another extra field than the directory.
        file.seek(start)
        header = file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise EOFError(f"no member at byte {start}")
        start += 30 + sum(struct.unpack_from("<HH", header, 26))
    part = _Section(file, start, member.packed)
    return _Inflated(part, member.size) if member.deflated else part


class _Section(io.RawIOBase):
    """A byte range of a file, as a file."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        self._file.seek(self._start + self._at)
        data = bytes(self._file.read(count))
        self._at += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Inflated(_Section):
    """A deflated byte range as a file of `size` bytes, with points kept to seek back to."""

    def __init__(self, packed: _Section, size: int) -> None:
        super().__init__(packed, 0, size)
        self._points = [(0, 0, zlib.decompressobj(-zlib.MAX_WBITS))]
        self._here = self._copy(0)

    def _copy(self, index: int) -> tuple[int, int, Any]:
        out, at, state = self._points[index]
        return out, at, state.copy()

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        below = max(i for i, point in enumerate(self._points) if point[0] <= self._at)
        if not self._points[below][0] <= self._here[0] <= self._at:
            self._here = self._copy(below)
        pieces, wanted = [], self._at + count
        while self._here[0] < wanted:
            before = self._here[0]
            data = self._inflate(wanted - before)
            if before + len(data) > self._at:
                pieces.append(data[max(0, self._at - before) :])
        self._at = wanted
        return b"".join(pieces)

    def _inflate(self, most: int) -> bytes:
        """The next bytes of the stream, at most `most` and at most a mebibyte."""
        out, at, state = self._here
        packed = state.unconsumed_tail
        if not packed:
            self._file.seek(at)
            packed = self._file.read(_BLOCK)
            at += len(packed)
        data = state.decompress(packed, min(most, _BLOCK))
        if not data and (state.eof or not packed):
            raise EOFError("the deflated data ends early")
        self._here = out + len(data), at, state
        if self._here[0] >= self._points[-1][0] + _POINT_EVERY:
            self._points.append((self._here[0], at, state.copy()))
        return bytes(data)
