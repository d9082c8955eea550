"""Where the errors of libraries become `SceneError`s of one line."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ReasonCode, SceneError, StoreUnavailable, UsageError
from pipeline.storage import describe, redact


@contextmanager
def boundary(uri: str, what: str, code: ReasonCode = "unreadable") -> Iterator[None]:
    """Turn whatever a library raises inside into a `SceneError` of one line."""
    try:
        yield
    except (SceneError, UsageError):
        raise
    except MemoryError as error:
        reason = f"{what}: it asks for more memory than there is"
        raise failure("unreadable", uri, reason, error) from error
    except FileNotFoundError as error:
        raise failure("unreadable", uri, f"{what}: the file is not there", error) from error
    except PermissionError as error:
        raise failure("unreadable", uri, f"{what}: permission denied", error) from error
    except StoreUnavailable as error:
        raise failure("unreadable", uri, what, error) from error
    except (EOFError, zlib.error) as error:
        raise failure("truncated", uri, f"{what}: copy the file again", error) from error
    except Exception as error:  # a hostile file may raise anything in a format library
        raise failure(code, uri, what, error) from error


def failure(
    code: ReasonCode, uri: str, what: str, error: BaseException | None = None
) -> SceneError:
    """A `SceneError` that names the scene, and the cause in a few words."""
    text = f"{redact(uri)}: {what}"
    if error is not None:
        text += f" ({describe(error)})"
    return SceneError(code, text)


def is_file(filesystem: Any, path: str) -> bool:
    """Whether one object is there, in one request (over HTTP `isfile` starts to read the whole)."""
    try:
        return bool(filesystem.info(path)["type"] == "file")
    except (FileNotFoundError, NotADirectoryError):
        return False
