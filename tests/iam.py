"""What an S3 request needs to be allowed, and whether a policy allows it.

The actions are those of Amazon's "Required permissions for Amazon S3 API operations"; of the
language of policies only what the files under infra/aws use is known here, anything else fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_OBJECT_ACTIONS = {
    ("GET", ""): "s3:GetObject",
    ("HEAD", ""): "s3:GetObject",
    ("PUT", ""): "s3:PutObject",
    ("PUT", "uploadId"): "s3:PutObject",
    ("POST", "uploads"): "s3:PutObject",
    ("POST", "uploadId"): "s3:PutObject",
    ("DELETE", ""): "s3:DeleteObject",
    ("DELETE", "uploadId"): "s3:AbortMultipartUpload",
}
_TELLING = ("uploads", "uploadId")
_PASSED_OVER = {"partNumber", "x-id"}


@dataclass(frozen=True)
class Need:
    """One action on one resource; `prefix` is that of a listing."""

    action: str
    resource: str
    prefix: str | None = None


def needs(method: str, path: str, body: bytes) -> list[Need]:
    """What a request needs.

    Raises:
        KeyError: it is none that was thought of.
    """
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    if key:
        told = [name for name in _TELLING if name in query]
        if query.keys() - _PASSED_OVER - set(told):
            raise KeyError(f"{method} {path}")
        action = _OBJECT_ACTIONS[method, told[0] if told else ""]
        return [Need(action, f"arn:aws:s3:::{bucket}/{key}")]
    if method == "GET" and query.get("list-type") == ["2"]:
        return [Need("s3:ListBucket", f"arn:aws:s3:::{bucket}", query.get("prefix", [""])[0])]
    if method == "POST" and "delete" in query:
        keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
        return [Need("s3:DeleteObject", f"arn:aws:s3:::{bucket}/{each}") for each in keys]
    raise KeyError(f"{method} {path}")


def allows(statements: list[dict[str, Any]], need: Need) -> bool:
    """Whether one of these Allow statements covers it."""
    return any(_covers(statement, need) for statement in statements)


def _covers(statement: dict[str, Any], need: Need) -> bool:
    assert statement["Effect"] == "Allow"
    if need.action not in as_list(statement["Action"]):
        return False
    if not any(fnmatchcase(need.resource, each) for each in as_list(statement["Resource"])):
        return False
    for operator, keys in statement.get("Condition", {}).items():
        assert (operator, list(keys)) == ("StringLike", ["s3:prefix"])
        if not any(fnmatchcase(need.prefix or "", each) for each in keys["s3:prefix"]):
            return False
    return True


def as_list(value: str | list[str]) -> list[str]:
    """A policy's value, which may stand alone."""
    return [value] if isinstance(value, str) else value
