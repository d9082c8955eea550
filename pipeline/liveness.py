"""Which process this is, told so that another on the same machine can see whether it lives."""

from __future__ import annotations

from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """One boot of one machine, and the space its process numbers belong to; empty if not known."""
    try:
        return f"{_BOOT.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux, or /proc is hidden
        return ""


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks since boot; empty if there is none.

    Field 22 of /proc/PID/stat (proc(5)); it tells a process from a later one of the same number.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # from the third on: the second may hold spaces
    return "" if fields[0] in ("Z", "X") else fields[19]


def is_alive(place: str, pid: int, start: str) -> bool | None:
    """Whether that process still runs; None if it cannot be told from here.

    Args:
        place: its `machine()`.
        pid: its number.
        start: its `started`.
    """
    if not place or not start or place != machine():
        return None
    return started(pid) == start
