"""Files that killed processes had begun to write on a local disk; object stores keep no such."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pipeline.storage import is_leftover, is_local, join, open_filesystem
from pipeline.store import STATE

# Where a run's small objects lie. Those of a scene are removed when it is published.
_FOLDERS = (
    f"{STATE}/runs",
    f"{STATE}/quarantine",
    f"{STATE}/leases",
    "stac",
    "stac/items",
    "stac/quicklooks",
)


def sweep(output: str, record: str) -> None:
    """Remove what is older than a run that goes on now.

    What other runs are writing at this moment is younger. Times of one disk are compared, so clocks
    do not count.

    Args:
        output: of the archive job.
        record: below it, an object that this run wrote first.

    Raises:
        OSError: a folder cannot be read or changed.
    """
    filesystem, root = open_filesystem(output)
    if not is_local(filesystem):
        return
    began = Path(join(root, record)).stat().st_mtime_ns
    for folder in _FOLDERS:
        for path in Path(root, folder).glob("*"):
            with suppress(FileNotFoundError):  # another run was faster
                if is_leftover(path.name) and path.stat().st_mtime_ns < began:
                    path.unlink()
