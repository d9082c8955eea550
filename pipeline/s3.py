"""S3 whose requests survive a store that fails for a while.

Every request that fsspec, Zarr, the readers or GDAL send to S3 passes through `_PatientSession`,
the one place where requests are repeated. What the libraries do by themselves is bounded by a
number of tries, differs from call to call, does not repeat a body that is cut while chunks are read
side by side, and leaves out the folders of a listing that fails; it is turned off here.

Which answers are transient is taken from Amazon's "Error responses" of the S3 API reference and its
"Best practices design patterns: timeouts and retries": 5xx and 429 by status, the rest by code.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import time
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    SSLError,
)
from s3fs import S3FileSystem

from pipeline import traffic
from pipeline.errors import StoreUnavailable
from pipeline.storage import describe, retry_seconds

_TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})
# Of 4xx: the request was cut or damaged on its way. Of 200: what was asked for was not done.
_TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
    | {"InternalError", "SlowDown", "ServiceUnavailable"}
)
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_LOST = (aiohttp.ClientError, asyncio.TimeoutError, HTTPClientError, NoConnectionError)
_NO_CONNECTION = (EndpointConnectionError, ConnectTimeoutError)
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 8.0
_BRIEF = 0.1  # part of the budget that is left to a store that used up a whole one
_LONGEST_HELD = 1 << 30
_LONGEST_ERROR = 1 << 20

# By the server's host, in this process.
_answered: set[str] = set()
_away: set[str] = set()


class Patience:
    """How long one request is repeated, and with which pauses."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._name = parts.netloc, unquote(parts.path.lstrip("/"))
        self._began = time.monotonic()
        self._tries = 0

    def answered(self) -> None:
        _answered.add(self._host)
        _away.discard(self._host)

    async def wait(self, fault: str, *, unreachable: bool) -> None:
        """Pause before the next try.

        Args:
            fault: of the last try, in a few words.
            unreachable: whether there was not even a connection. From a host that never answered
                this is more likely a wrong address than a fault that passes.

        Raises:
            StoreUnavailable: the budget is over.
        """
        self._tries += 1
        budget = retry_seconds()
        if self._host in _away or (unreachable and self._host not in _answered):
            budget *= _BRIEF
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(self._tries, 16))
        pause = random.uniform(longest / 2, longest)
        spent = time.monotonic() - self._began
        if spent + pause > budget:
            _away.add(self._host)
            raise StoreUnavailable(
                f"the store at {self._host} gave no answer to {self._name or 'a listing'} for "
                f"{spent:.1f} s, {self._tries} tries (last: {fault}); run the same command again "
                "when it is back, or raise SR_ARCHIVE_STORE_RETRY_SECONDS"
            )
        await asyncio.sleep(pause)


class _Content:
    """Bytes where aiobotocore expects aiohttp's stream."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def at_eof(self) -> bool:
        return self._file.tell() == len(self._file.getbuffer())


class _Held:
    """A response whose body was read whole, in the place of aiohttp's."""

    def __init__(self, response: Any, body: bytes) -> None:
        self._response = response
        self.content = _Content(body)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


class _PatientSession(AIOHTTPSession):  # type: ignore[misc]
    """Repeats a request until its answer is whole, or the budget is over.

    A repeated PUT or DELETE does what the first one did, should that have arrived and only its
    answer be lost. A conditional PUT that is repeated for this reason is answered with 412: who
    sends one has to look whose object is there.
    """

    async def send(self, request: Any) -> Any:
        patience = Patience(request.url)
        while True:
            unreachable = False
            response = None
            try:
                response = await super().send(request)
                fault = await _fault_of(request, response)
            except SSLError:
                raise
            except _LOST as error:
                fault = describe(error)
                unreachable = isinstance(error, _NO_CONNECTION)
            finally:
                _count(request, response)
            if not fault:
                patience.answered()
                return response
            await patience.wait(fault, unreachable=unreachable)
            request.reset_stream()


def _count(request: Any, response: Any) -> None:
    """A request and its answer, None where there was none, for `pipeline.traffic`."""
    got = response is not None and request.method == "GET"
    received = int(response.headers.get("content-length", 0)) if got else 0
    headers = request.headers
    sent = headers.get("X-Amz-Decoded-Content-Length") or headers.get("Content-Length") or 0
    traffic.add(request.method, request.url, received, int(sent))


async def _fault_of(request: Any, response: Any) -> str:
    """What is transient in an answer; empty where it is one to go on with. Reads its body."""
    if int(response.headers.get("content-length", 0)) > _LONGEST_HELD:
        return ""
    body = await response.content
    status = response.status_code
    if request.method == "GET" and status < 300:
        response.raw = _Held(response.raw, body)
        return ""
    codes = [code.decode() for code in _CODE.findall(body[:_LONGEST_ERROR])]
    if status in _TRANSIENT_STATUS:
        return " ".join([str(status), *codes[:1]])
    # DeleteObjects and CompleteMultipartUpload also fail with status 200 and a code in the body.
    found = next((code for code in codes if code in _TRANSIENT_CODES), "")
    return f"{status} {found}" if found else ""


class PatientS3FileSystem(S3FileSystem):  # type: ignore[misc]
    """s3fs, whose requests are repeated by `_PatientSession` and by nobody else.

    `import pipeline` makes it fsspec's `s3`; options are those of s3fs.
    """

    retries = 1

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        config: dict[str, Any] = super()._prepare_config_kwargs()
        config["retries"] = {"total_max_attempts": 1, "mode": "standard"}
        return {**config, "http_session_cls": _PatientSession}

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        answer = await super()._call_s3(method, *arguments, **options)
        if method == "delete_objects" and answer.get("Errors"):
            first = answer["Errors"][0]  # s3fs would not tell, and what is left could be taken up
            raise PermissionError(f"cannot delete {first.get('Key')}: {first.get('Code')}")
        return answer

    async def _cat_file(self, path: str, **options: Any) -> bytes:
        """In one request; s3fs would ask for the size of each object before, and chunks are small.

        Options are those of s3fs.
        """
        data: bytes = await super()._cat_file(path, **{"max_concurrency": 1, **options})
        return data

    async def _pipe_file(self, path: str, data: bytes, **options: Any) -> Any:
        try:
            return await super()._pipe_file(path, data, **options)
        except FileNotFoundError as error:
            if _code_of(error) != "NoSuchUpload":
                raise
        # The upload was completed, and the answer to that lost; to be sure it is done again.
        return await super()._pipe_file(path, data, **options)


def _code_of(error: Exception) -> str:
    """The store's own code behind an error that s3fs translated."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))
