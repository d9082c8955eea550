"""What this process has sent to and received from S3, counted where requests leave it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KINDS = ("GET", "HEAD", "LIST", "PUT", "POST", "DELETE")


@dataclass(frozen=True)
class Traffic:
    """Requests by kind, and bytes of bodies; a repeated request counts each time it is sent.

    Attributes:
        requests: by kind, one of `KINDS`; a POST that deletes is a DELETE.
        received: bytes of answers to GET whose length was stated, which listings' is not.
        sent: bytes of request bodies.
    """

    requests: Mapping[str, float] = field(default_factory=dict)
    received: float = 0.0
    sent: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        kinds = self.requests.keys() | other.requests.keys()
        requests = {kind: self.of(kind) + other.of(kind) for kind in kinds}
        return Traffic(requests, self.received + other.received, self.sent + other.sent)

    def __mul__(self, factor: float) -> Traffic:
        requests = {kind: count * factor for kind, count in self.requests.items()}
        return Traffic(requests, self.received * factor, self.sent * factor)

    def __sub__(self, other: Traffic) -> Traffic:
        return self + other * -1

    def of(self, kind: str) -> float:
        return self.requests.get(kind, 0)

    def resized(self, factor: float) -> Traffic:
        """As many requests, for so much more content."""
        return Traffic(self.requests, self.received * factor, self.sent * factor)

    def at_least_none(self) -> Traffic:
        """The same without what is less than none, as a difference may be."""
        requests = {kind: max(0, count) for kind, count in self.requests.items()}
        return Traffic(requests, max(0, self.received), max(0, self.sent))


_lock = threading.Lock()  # several event loops send
_total = Traffic()


def so_far() -> Traffic:
    """Of this process since it began."""
    return _total


def add(method: str, url: str, received: int, sent: int) -> None:
    """Count one request that was answered, or was not."""
    global _total
    with _lock:
        _total += Traffic({kind_of(method, url): 1}, received, sent)


def kind_of(method: str, url: str) -> str:
    """The kind of a request, one of `KINDS`."""
    query = urlsplit(url).query
    if method == "GET" and ("list-type=2" in query or "versions" in query):
        return "LIST"
    return "DELETE" if method == "POST" and "delete" in query.split("=")[0] else method
