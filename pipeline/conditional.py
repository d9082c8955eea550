"""One small object that several processes change, each change only if nobody was faster.

On S3 by conditional requests (`If-None-Match: *` and `If-Match`, Amazon S3 User Guide, "conditional
writes"); in a local folder under a file lock that the system drops when its process dies. Ages are
told by the clock of the store, so the clocks of the machines need not agree.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec.asyn

from pipeline.storage import is_local, join, open_filesystem, removed_on_failure

try:
    import fcntl
except ImportError:  # not on Windows, where only the exclusive creation is left
    fcntl = None  # type: ignore[assignment]

_LONGEST = 64 << 10  # bytes; a foreign object of this name may be of any size
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_REFUSED = frozenset({404, 409, 412})  # gone, being written by another, changed


@dataclass(frozen=True)
class Found:
    """What an object holds, the token of that state, and its age in seconds."""

    data: bytes
    token: str
    age: float


class Slot(Protocol):
    """One object; every change but the first names the state that it replaces."""

    def read(self) -> Found | None: ...

    def create(self, data: bytes) -> str | None:
        """The new token, or None if there is an object."""

    def replace(self, data: bytes, token: str) -> str | None:
        """The new token, or None if the object is not in that state any more."""

    def remove(self, token: str) -> None:
        """Remove the object if it is in that state."""


def open_slot(folder: str, name: str) -> Slot | None:
    """The object of that name, or None where the store has no such changes."""
    filesystem, path = open_filesystem(join(folder, name))
    if is_local(filesystem):
        return LocalSlot(Path(path))
    return S3Slot(filesystem, path) if hasattr(filesystem, "_call_s3") else None


def is_enforced(slot: Slot) -> bool:
    """Whether the store minds the conditions; some S3 servers take such requests and ignore them.

    Args:
        slot: of a name that nobody else uses.
    """
    try:
        token = slot.create(b"first")
    except OSError as error:
        if error.errno == errno.ENOSYS:  # S3's NotImplemented
            return False
        raise
    if token is None:
        return True
    second = slot.create(b"second")
    third = slot.replace(b"third", '"00000000000000000000000000000000"')
    with suppress(OSError):  # where nothing may be removed, a lease ends by itself
        slot.remove(third or second or token)
    return second is None and third is None


class LocalSlot:
    """A file; the lock and the file system's clock are a neighbour called `.lock`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(".lock")

    def read(self) -> Found | None:
        with self._locked():
            return self._found()

    def create(self, data: bytes) -> str | None:
        with self._locked():
            try:
                file = self._path.open("xb")
            except FileExistsError:
                return None
            with removed_on_failure(self._path), file:
                file.write(data)
        return _digest(data)

    def replace(self, data: bytes, token: str) -> str | None:
        with self._locked():
            present = self._found()
            if present is None or present.token != token:
                return None
            own = f"{self._path.name}.{os.getpid()}-{threading.get_ident()}.tmp"
            neighbour = self._path.with_name(own)
            with removed_on_failure(neighbour):
                neighbour.write_bytes(data)
                neighbour.replace(self._path)
        return _digest(data)

    def remove(self, token: str) -> None:
        with self._locked():
            present = self._found()
            if present is not None and present.token == token:
                self._path.unlink(missing_ok=True)

    def _found(self) -> Found | None:
        try:
            with self._path.open("rb") as file:
                data, written = file.read(_LONGEST), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        # Of a network file system the time is the server's, for the lock as for the file.
        return Found(data, _digest(data), self._lock.stat().st_mtime - written)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_whole(descriptor)
            os.utime(self._lock)
            yield
        finally:
            os.close(descriptor)


def _lock_whole(descriptor: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class S3Slot:
    """An object of S3; its token is its entity tag."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self._fs = filesystem
        bucket, key, _ = filesystem.split_path(path)
        self._place = {"Bucket": bucket, "Key": key}

    def read(self) -> Found | None:
        try:
            found: Found = fsspec.asyn.sync(self._fs.loop, self._get)
        except FileNotFoundError:
            return None
        return found

    def create(self, data: bytes) -> str | None:
        return self._put(data, IfNoneMatch="*")

    def replace(self, data: bytes, token: str) -> str | None:
        return self._put(data, IfMatch=token)

    def remove(self, token: str) -> None:
        # Asked before, because not every server minds the condition of a DELETE.
        present = self.read()
        if present is not None and present.token == token:
            self._ask("delete_object", IfMatch=token)

    def _put(self, data: bytes, **condition: str) -> str | None:
        answer = self._ask("put_object", Body=data, **condition)
        return None if answer is None else str(answer["ETag"])

    def _ask(self, method: str, **options: Any) -> dict[str, Any] | None:
        """The answer, or None if the condition does not hold."""
        try:
            answer: dict[str, Any] = self._fs.call_s3(method, **self._place, **options)
        except OSError as error:
            if _status(error) in _REFUSED and _error_code(error) != "NoSuchBucket":
                return None
            raise
        return answer

    async def _get(self) -> Found:
        answer = await self._fs._call_s3("get_object", **self._place)
        async with answer["Body"] as body:
            data = await body.read(_LONGEST)
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Found(data, answer["ETag"], (now - answer["LastModified"]).total_seconds())


def _status(error: OSError) -> int | None:
    """s3fs names a refusal differently from server to server; its cause has the status."""
    response = getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _error_code(error: OSError) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code"))
