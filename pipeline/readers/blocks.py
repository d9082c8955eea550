"""Remote files as seekable objects that fetch small blocks, for libraries that want a file."""

from __future__ import annotations

from typing import Any

from pipeline.storage import is_local

_MOST_BLOCKS = 256


def open_blocks(
    filesystem: Any, path: str, block_size: int = 64 * 2**10, blocks: int = _MOST_BLOCKS
) -> Any:
    """A binary file; a remote one keeps the last `blocks` it read instead of reading ahead."""
    if is_local(filesystem):
        return filesystem.open(path, "rb")
    return filesystem.open(
        path,
        "rb",
        block_size=block_size,
        cache_type="blockcache",
        cache_options={"maxblocks": blocks},
    )
