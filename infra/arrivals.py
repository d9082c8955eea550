"""A web hook that buckets call when objects are written; it tells Prefect when scenes have arrived.

    SR_ARCHIVE_ARRIVALS_TOKEN=... python -m infra.arrivals --source s3://bucket/scenes

Understood are the notifications of S3 (`Records`, as MinIO and Ceph send them too), of Amazon
EventBridge (`Object Created`) and of SeaweedFS's filer. A scene is many objects and an upload takes
its time, so Prefect gets one event when nothing has arrived for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource

from infra.prefect_local import ARRIVALS_TOKEN
from pipeline.storage import redact

EVENT = "sr-archive.scenes-arrived"
RESOURCE = "sr-archive.source."  # the source's address follows
DEFAULT_PORT = 4280
_LONGEST_BODY = 1 << 20
_LONGEST_WAIT = 20  # quiet periods, while uploads never pause
_TICK = 0.2  # seconds


def objects_of(notification: Any) -> Iterator[str]:
    """Addresses `s3://bucket/key` of the objects that a notification says were written.

    Anything else in it is passed over, whatever its shape: it comes from outside.
    """
    if not isinstance(notification, dict):
        return
    for record in _list(notification.get("Records")):
        if "ObjectCreated" in str(record.get("eventName")):
            yield from _address(record.get("s3"), unquote_plus)
    if notification.get("detail-type") == "Object Created":
        yield from _address(notification.get("detail"), str)
    path = str(notification.get("key"))
    if path.startswith("/buckets/") and notification.get("event_type") in ("create", "update"):
        yield f"s3://{path.removeprefix('/buckets/')}"


def _list(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _address(found: Any, decode: Callable[[str], str]) -> Iterator[str]:
    with contextlib.suppress(KeyError, TypeError):
        yield f"s3://{found['bucket']['name']}/{decode(str(found['object']['key']))}"


@dataclass
class Arrivals:
    """What has arrived below one source and Prefect was not told of."""

    source: str
    objects: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, address: str, now: float) -> bool:
        """Take an object into account; False if it lies elsewhere."""
        if not address.startswith(self.source.rstrip("/") + "/"):
            return False
        self.first = self.first if self.objects else now
        self.objects, self.last = self.objects + 1, now
        return True

    def due(self, quiet: float, now: float) -> bool:
        """Whether nothing came for `quiet` seconds, or uploads go on for too long to wait."""
        waited = now - self.last >= quiet or now - self.first >= _LONGEST_WAIT * quiet
        return bool(self.objects) and waited

    def event(self) -> Event:
        resource = Resource({"prefect.resource.id": f"{RESOURCE}{self.source}"})
        return Event(event=EVENT, resource=resource, payload={"objects": self.objects})


class Announcer:
    """Collects arrivals and tells Prefect; what it cannot tell now it tells later."""

    def __init__(self, sources: Sequence[str], quiet: float) -> None:
        self._arrivals = [Arrivals(source) for source in sources]
        self._quiet = quiet

    def add(self, notification: Any) -> int:
        """The number of objects in it that lie below a source."""
        now = time.monotonic()
        addresses = list(objects_of(notification))
        return sum(each.add(address, now) for address in addresses for each in self._arrivals)

    async def run(self) -> None:
        """For ever: an event for each source where something has arrived and it is quiet again."""
        while True:
            await asyncio.sleep(_TICK)
            for arrivals in self._arrivals:
                if arrivals.due(self._quiet, time.monotonic()):
                    await self._tell(arrivals)

    async def _tell(self, arrivals: Arrivals) -> None:
        told = arrivals.objects
        try:
            async with get_client() as client:
                event = arrivals.event().model_dump(mode="json")
                await client.request("POST", "/events", json=[event])
        except Exception as error:  # whatever Prefect does, what has arrived is not forgotten
            print(f"arrivals: Prefect was not told, will be: {type(error).__name__}", flush=True)
            arrivals.first = arrivals.last = time.monotonic()
            return
        arrivals.objects -= told
        arrivals.first = arrivals.last
        print(f"arrivals: {told} objects below {redact(arrivals.source)}", flush=True)


def application(announcer: Announcer, token: str) -> FastAPI:
    """The web hook, at `/`, for who has the token; `/health` is for everybody."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(announcer.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> bool:
        return True

    @app.post("/", status_code=202)
    async def notify(request: Request) -> dict[str, int]:
        if not _allowed(request.headers.get("authorization", ""), token):
            raise HTTPException(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
        try:
            return {"objects": announcer.add(await _json(request))}
        except (ValueError, RecursionError):
            raise HTTPException(400, "the notification is no JSON") from None

    return app


async def _json(request: Request) -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_BODY:
            raise HTTPException(413, "the notification is too long")
    return json.loads(body)


def _allowed(header: str, token: str) -> bool:
    """`Bearer TOKEN`, the token alone (MinIO), or a basic password (a URL's)."""
    kind, _, given = header.partition(" ")
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error):
            given = base64.b64decode(given).decode(errors="replace").partition(":")[2]
    return secrets.compare_digest((given or kind).encode(), token.encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.arrivals", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--source", action="append", required=True, help="s3://bucket/prefix")
    parser.add_argument("--quiet", type=float, default=30.0, help="seconds without a new object")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    token = os.environ.get(ARRIVALS_TOKEN, "")
    if len(token) < 16:
        print(
            f"arrivals: set {ARRIVALS_TOKEN} to a secret of 16 characters or more", file=sys.stderr
        )
        return 2
    announcer = Announcer(given.source, given.quiet)
    # No access log: its lines hold what anybody sends.
    uvicorn.run(
        application(announcer, token),
        host=given.host,
        port=given.port,
        access_log=False,
        log_level="warning",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
