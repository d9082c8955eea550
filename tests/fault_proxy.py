"""An HTTP proxy in front of the S3 server of the tests that misbehaves by a plan.

A client is pointed at the proxy as its endpoint. It signs the proxy's `Host`; the proxy passes that
header on unchanged, and the server checks the signature against the header, not against its own
address. Nothing is mocked: what is not disturbed goes to the real server and back.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import aiohttp
import yarl
from aiohttp import web
from multidict import CIMultiDict

Kind = Literal[
    "slow-down",  # 503 SlowDown, nothing is done
    "internal-error",  # 500 InternalError, nothing is done
    "reset",  # the connection is reset before the request is read
    "hang",  # no answer for `seconds`, then a reset; nothing is done
    "cut",  # done, and answered with half of the body, then a reset
    "lost-reply",  # done, and the connection is reset instead of an answer
    "late-error",  # done, and answered with 500 InternalError
    "hidden-error",  # 200 whose body says that nothing was done; for POST
    "delay",  # done after `seconds`
]
_BEFORE = ("slow-down", "internal-error", "reset", "hang", "hidden-error", "delay")
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")
_ERRORS = {
    "slow-down": (503, "SlowDown", "Please reduce your request rate."),
    "internal-error": (500, "InternalError", "We encountered an internal error."),
    "hidden-error": (200, "InternalError", "We encountered an internal error."),
    "late-error": (500, "InternalError", "We encountered an internal error."),
}


@dataclass(frozen=True)
class Fault:
    """What to do to which requests.

    Attributes:
        probability: of each request that matches.
        method, key: globs on the HTTP method and on "bucket/key?query", unquoted.
        first: only the first so many requests of each key; None for all.
        seconds: of `hang` and `delay`.
    """

    kind: Kind
    probability: float = 1.0
    method: str = "*"
    key: str = "*"
    first: int | None = None
    seconds: float = 0.0


class FaultProxy:
    """Listens on 127.0.0.1 in a thread of its own.

    The draw for a request depends on the seed, the request and how often it came, so that a plan
    does the same whatever the order in which several workers ask.

    Args:
        upstream: the server's endpoint, `http://host:port`.
        seed: of the draws.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.endpoint = ""
        self.done: Counter[str] = Counter()  # faults by kind
        self.requests = 0
        self.log: list[tuple[str, str, bytes]] = []  # method, path with query, a POST's body
        self._upstream = upstream
        self._seed = seed
        self._plan: tuple[Fault, ...] = ()
        self._seen: Counter[tuple[int, str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    def disturb(self, *plan: Fault) -> None:
        """From now on follow this plan; the first fault whose draw hits is taken."""
        self._seen, self.done, self.requests, self.log = Counter(), Counter(), 0, []
        self._plan = plan

    def heal(self) -> None:
        """From now on pass everything on; what was counted stays."""
        self._plan = ()

    async def _run(self) -> None:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        self.endpoint = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        async with aiohttp.ClientSession(auto_decompress=False) as self._client:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    def _draw(self, method: str, key: str, plan: Sequence[Fault]) -> Fault | None:
        for number, fault in enumerate(plan):
            if not (fnmatchcase(method, fault.method) and fnmatchcase(key, fault.key)):
                continue
            self._seen[number, method, key] += 1
            count = self._seen[number, method, key]
            if fault.first is not None and count > fault.first:
                continue
            words = f"{self._seed} {number} {method} {key} {count}"
            digest = hashlib.sha256(words.encode()).hexdigest()
            if random.Random(digest).random() < fault.probability:
                self.done[fault.kind] += 1
                return fault
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        body = await request.read() if request.method == "POST" else b""
        self.log.append((request.method, request.raw_path, body))
        key = urllib.parse.unquote(request.raw_path).lstrip("/")
        fault = self._draw(request.method, key, self._plan)
        kind = fault.kind if fault else None
        if fault is not None and kind in _BEFORE:
            await asyncio.sleep(fault.seconds)
            if kind in ("reset", "hang"):
                return self._abort(request)
            if kind in _ERRORS:
                await request.read()
                return self._error(fault.kind)
        status, headers, body = await self._forward(request)
        if kind == "late-error":
            return self._error("late-error")
        if kind == "lost-reply" or (kind == "cut" and not body):
            return self._abort(request)
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if kind == "cut":
            await response.write(body[: len(body) // 2])
            await asyncio.sleep(0.05)  # let it leave before the reset overtakes it
            return self._abort(request)
        await response.write(body)
        return response

    async def _forward(self, request: web.Request) -> tuple[int, CIMultiDict[str], bytes]:
        passed = [(n, v) for n, v in request.headers.items() if n.lower() not in _HOP_BY_HOP]
        async with self._client.request(
            request.method,
            yarl.URL(self._upstream + request.raw_path, encoded=True),
            headers=CIMultiDict(passed),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            data=await request.read() or None,
            allow_redirects=False,
        ) as answer:
            body = await answer.read()
            kept = ((n, v) for n, v in answer.headers.items() if n.lower() not in _HOP_BY_HOP)
            headers = CIMultiDict(kept)
            headers["Content-Length"] = answer.headers.get("Content-Length", str(len(body)))
            return answer.status, headers, body

    @staticmethod
    def _error(kind: Kind) -> web.Response:
        status, code, message = _ERRORS[kind]
        text = f"<Error><Key>?</Key><Code>{code}</Code><Message>{message}</Message></Error>"
        if status == 200:
            text = f"<DeleteResult>{text}</DeleteResult>"
        return web.Response(status=status, text=text, content_type="application/xml")

    @staticmethod
    def _abort(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)
