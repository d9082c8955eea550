"""Paths and URLs: one way to reach local folders, S3 and whatever else fsspec knows."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StoreUnavailable, UsageError, one_line

_RETRY_VARIABLE = "SR_ARCHIVE_STORE_RETRY_SECONDS"
_RETRY_SECONDS = 60.0
_MOST_SECONDS = 600.0  # signatures of S3 requests expire after 15 minutes
_PATIENT_S3 = ("pipeline.s3", "PatientS3FileSystem")

# A password may hold "/" and "@" where nobody encoded it; "host:8080/a@b" has none.
_USERINFO = re.compile(
    r"(?P<scheme>[a-z0-9+.-]+://)([^/@:\s]+:(?!\d+(/|\s|$))\S*@|[^/@\s]+@)", re.IGNORECASE
)
# What signed URLs and error messages name credentials.
_NAMED = re.compile(
    r"(?P<name>\b(x-amz-(signature|credential|security-token)|sig|signature|awsaccesskeyid"
    r"|(access|secret|account)_?key|secret_?access_?key|password|token)=)[^\s&'\"]+",
    re.IGNORECASE,
)
_LONGEST_CAUSE = 200
_QUERY = re.compile(r"\?[^\s]*")


def redact(url: str) -> str:
    """The URL without user information and query string, where credentials and signatures live."""
    return _QUERY.sub("", _USERINFO.sub(r"\g<scheme>", url))


def without_secrets(text: str) -> str:
    """Text of others, an error's mostly, without what may be a credential."""
    return _NAMED.sub(r"\g<name>***", redact(text))


def retry_seconds() -> float:
    """How long a request to an object store is repeated while the store fails.

    Raises:
        UsageError: `SR_ARCHIVE_STORE_RETRY_SECONDS` is no number of seconds from 0 to 600.
    """
    text = os.environ.get(_RETRY_VARIABLE, "").strip()
    try:
        seconds = float(text) if text else _RETRY_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise UsageError(f"{_RETRY_VARIABLE}: seconds from 0 to {_MOST_SECONDS:.0f} (got {text!r})")
    return seconds


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path inside it, without a trailing slash.

    Credentials and endpoints come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
    ...) or from fsspec's own configuration files, never from the job's options.

    Raises:
        UsageError: the protocol is unknown, its fsspec implementation is not installed, or
            `SR_ARCHIVE_STORE_RETRY_SECONDS` cannot be used.
    """
    retry_seconds()
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UsageError(f"cannot open {redact(url)}: {describe(error)}") from error
    return filesystem, path.rstrip("/") or "/"


def is_local(filesystem: Any) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def folds_case(filesystem: Any, path: str) -> bool:
    """Whether a local folder takes names that differ in nothing but case for one.

    Nothing is written to find out: the nearest folder that exists is looked for under its own name
    in the other case. Buckets never do.
    """
    if not is_local(filesystem):
        return False
    there = next(each for each in (Path(path), *Path(path).parents) if each.exists())
    for each in (there, *there.parents):
        if each.name != each.name.swapcase():
            twin = each.with_name(each.name.swapcase())
            return twin.exists() and twin.samefile(each)
    return False


def unstrip(filesystem: Any, path: str) -> str:
    """The shortest address that opens `path` again: plain for local files, a URL for the rest."""
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


def describe(error: BaseException) -> str:
    """A library's error in one short line without credentials."""
    if isinstance(error, StoreUnavailable):
        return without_secrets(one_line(str(error)))
    text = without_secrets(one_line(str(error)))[:_LONGEST_CAUSE]
    return f"{type(error).__name__} {text}".strip()


def read_if_present(filesystem: Any, path: str) -> bytes | None:
    """The bytes of an object, or None where there is none."""
    try:
        data: bytes = filesystem.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data


def check_reachable(url: str, what: str) -> None:
    """Fail now, in one line, if a folder or bucket cannot be asked for an object.

    Raises:
        UsageError: no network, no credentials, no permission, no such bucket.
    """
    filesystem, path = open_filesystem(url)
    try:
        read_if_present(filesystem, join(path, ".reachable"))
    except Exception as error:  # whatever a store raises, it is of no use
        raise UsageError(f"cannot reach {what} {redact(url)}: {describe(error)}") from error


def version_of(info: dict[str, Any]) -> str:
    """What tells one version of an object from the next, from a filesystem's `info` or `find`.

    The entity tag where the store gives one, else size and modification time.
    """
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if etag:
        return f"etag:{str(etag).strip(chr(34))}"
    names = ("mtime", "LastModified", "Last-Modified", "created")
    modified = next((info[name] for name in names if info.get(name)), "")
    return f"size:{info.get('size')},mtime:{modified}"


def join(base: str, *parts: str) -> str:
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def write_atomic(filesystem: Any, path: str, data: bytes, *, durable: bool = True) -> None:
    """Write one whole object; a reader sees the old bytes or the new ones, never a part.

    Object stores do so by themselves; on a local disk the bytes go to a neighbour, are flushed
    to the disk and renamed. `durable=False` does not flush: for what can be made again.
    """
    if not is_local(filesystem):
        filesystem.pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    neighbour = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    with removed_on_failure(neighbour):
        with neighbour.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        neighbour.replace(target)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """A file that is written inside does not stay, half written, on a disk that is full."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def is_leftover(path: str) -> bool:
    """Whether a local file is what a process that was killed had begun to write.

    The first ending is `write_atomic`'s, the second that of Zarr's local store.
    """
    return path.endswith((".tmp", ".partial"))


def _use_patient_s3() -> None:
    """Make fsspec's `s3` the one that repeats requests, for all that opens URLs in this process."""
    module, name = _PATIENT_S3
    for protocol in ("s3", "s3a"):
        # A name costs nothing until it is used, but is not looked at where a class is in use.
        used = protocol in fsspec.registry
        patient = getattr(importlib.import_module(module), name) if used else f"{module}.{name}"
        fsspec.register_implementation(protocol, patient, clobber=True)


_use_patient_s3()
