"""Many small questions to a store at once: `infos` of thousands of objects in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import fsspec.asyn

from pipeline.storage import open_filesystem

_AT_ONCE = 64


def infos(urls: Sequence[str]) -> list[dict[str, Any] | Exception]:
    """The filesystem's `info` of every object, in order, or why there is none.

    Remote stores are asked `_AT_ONCE` at a time. What an earlier listing left in a filesystem's
    cache is not believed.
    """
    groups: dict[int, tuple[Any, list[int], list[str]]] = {}
    results: list[dict[str, Any] | Exception] = [FileNotFoundError()] * len(urls)
    for index, url in enumerate(urls):
        try:
            filesystem, path = open_filesystem(url)
        except Exception as error:  # an address that no filesystem takes
            results[index] = error
            continue
        _, places, paths = groups.setdefault(id(filesystem), (filesystem, [], []))
        places.append(index)
        paths.append(path)
    for filesystem, places, paths in groups.values():
        filesystem.invalidate_cache()
        for place, answer in zip(places, _ask(filesystem, paths), strict=True):
            results[place] = answer
    return results


def _ask(filesystem: Any, paths: list[str]) -> list[dict[str, Any] | Exception]:
    if getattr(filesystem, "async_impl", False):
        answers: list[dict[str, Any] | Exception] = fsspec.asyn.sync(
            filesystem.loop, _gather, filesystem, paths
        )
        return answers
    return [_one(filesystem, path) for path in paths]


def _one(filesystem: Any, path: str) -> dict[str, Any] | Exception:
    try:
        return dict(filesystem.info(path))
    except Exception as error:  # each object's own
        return error


async def _gather(filesystem: Any, paths: list[str]) -> list[dict[str, Any] | Exception]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(path: str) -> dict[str, Any] | Exception:
        async with gate:
            try:
                return dict(await filesystem._info(path))
            except Exception as error:  # each object's own
                return error

    return list(await asyncio.gather(*(ask(path) for path in paths)))
