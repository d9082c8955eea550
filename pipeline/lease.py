"""Leases: of several runs on one output, one works on a scene.

    <output>/_sr-archive/leases/<scene_id>.json

A run takes the lease of a scene before it works on it, renews it every third of its time, and
removes it at the end. A lease that is not renewed in its time may be taken over, by exactly one
other run. What makes that safe is the conditional write of `pipeline.conditional`; whoever lost its
lease learns so at its next renewal, and a run renews once more just before it publishes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from pipeline.conditional import Found, Slot, is_enforced, open_slot
from pipeline.errors import UsageError
from pipeline.liveness import is_alive, machine, started
from pipeline.storage import describe, join, redact
from pipeline.store import STATE

_FOLDER = "leases"
_DEFAULT_SECONDS = 120.0
_LONGEST_SECONDS = 3600.0
_TRIES = 5  # each ends in a lease, or shows that another process was faster


class LeaseLost(Exception):
    """Another run has the scene now; says which."""


@dataclass(frozen=True)
class Lease:
    """What the object says of who works on a scene; `beat` counts the renewals."""

    run: str = "unknown"
    host: str = "unknown"
    pid: int = 0
    machine: str = ""
    started: str = ""
    token: str = ""
    since: str = "unknown"
    seconds: float = _DEFAULT_SECONDS
    beat: int = 0

    @classmethod
    def of_this_process(cls, run_id: str, seconds: float) -> Lease:
        return cls(
            run_id,
            socket.gethostname(),
            os.getpid(),
            machine(),
            started(os.getpid()),
            secrets.token_hex(8),
            seconds=seconds,
        )

    @classmethod
    def parse(cls, data: bytes) -> Lease:
        """A lease from its object; what is missing or no lease's is left at its default."""
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            return cls()
        known = values if isinstance(values, dict) else {}
        facts: dict[str, Any] = {}
        for name in ("run", "host", "machine", "started", "token", "since"):
            if isinstance(known.get(name), str):
                facts[name] = "".join(filter(str.isprintable, known[name]))[:200]
        for name in ("pid", "beat"):
            if type(known.get(name)) is int and 0 <= known[name] < 1 << 62:
                facts[name] = known[name]
        seconds = known.get("seconds")
        if isinstance(seconds, int | float) and 0 < seconds <= _LONGEST_SECONDS:
            facts["seconds"] = float(seconds)
        return cls(**facts)

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    def beaten(self) -> Lease:
        return Lease(**{**asdict(self), "beat": self.beat + 1})

    @property
    def holder(self) -> str:
        return f"run {self.run} on host {self.host} (process {self.pid})"


@dataclass(frozen=True)
class Busy:
    """A scene that another run holds.

    Attributes:
        reason: who, since when, and when the lease ends.
        alive: the holder has shown that it works; else it may have died, and its lease will end.
    """

    reason: str
    alive: bool


@dataclass
class _Held:
    """A lease that this run has, and the state of its object."""

    slot: Slot
    lease: Lease
    token: str
    renewed: float
    lost: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


_open_runs: set[str] = set()  # tokens of this process's runs that have not ended


class Leases:
    """The leases of one run; a thread of its own renews them while the context is open.

    Args:
        output: of the run.
        run_id: of the run.
        seconds: how long a lease lives that is not renewed.
    """

    def __init__(self, output: str, run_id: str, seconds: float = _DEFAULT_SECONDS) -> None:
        self._folder = join(output, STATE, _FOLDER)
        self._own = Lease.of_this_process(run_id, seconds)
        _open_runs.add(self._own.token)
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_all, name="leases", daemon=True)
        self.note = ""  # why runs are not kept apart here

    @property
    def token(self) -> str:
        """What the leases of this run carry; empty where there are none."""
        return "" if self.note else self._own.token

    def __enter__(self) -> Leases:
        """Find out whether the store can keep runs apart.

        Raises:
            UsageError: no lease can be written there.
        """
        probe = open_slot(self._folder, f".probe-{self._own.token}")
        try:
            if probe is None:
                self.note = "this kind of store has no conditional writes"
            elif not is_enforced(probe):
                self.note = "the store of the output ignores the conditions of writes"
        except Exception as error:  # whatever a store raises, it is of no use
            place = redact(self._folder)
            raise UsageError(f"cannot write to output {place}: {describe(error)}") from error
        if self.note:
            self.note += ": let no second run work on this output at the same time"
        else:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._own.seconds)
        for scene_id in list(self._held):
            self.release(scene_id)
        _open_runs.discard(self._own.token)

    def take(self, scene_id: str) -> Busy | None:
        """Take the lease of a scene, also from a run that is dead; None: it is ours.

        Whatever the store raises passes.
        """
        if self.note or scene_id in self._held:
            return None
        slot = open_slot(self._folder, f"{scene_id}.json")
        assert slot is not None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        lease = Lease(**{**asdict(self._own), "since": since})
        found: Found | None = None
        for _ in range(_TRIES):
            found = slot.read()
            if found is not None and not self._is_free(found):
                break
            asked = _clock()
            token = _write(slot, lease.encode(), None if found is None else found.token)
            if token is not None:
                self._held[scene_id] = _Held(slot, lease, token, asked)
                return None
        return self._busy(scene_id, found)

    def keep(self, scene_id: str) -> None:
        """Renew a lease now; after it the whole time of the lease is left.

        Raises:
            LeaseLost: another run has it. Whatever the store raises passes too.
        """
        held = self._held.get(scene_id)
        if held is not None:
            self._renew(held)

    def lost(self, scene_id: str) -> str:
        """Who has taken a lease of this run over, as far as is known; empty if nobody."""
        held = self._held.get(scene_id)
        return "" if held is None else held.lost

    def release(self, scene_id: str) -> None:
        """Give a lease back; one that cannot be given back ends by itself."""
        held = self._held.pop(scene_id, None)
        if held is None:
            return
        try:
            if _clock() - held.renewed > held.lease.seconds / 2:
                self._renew(held)  # so that nobody takes it over between the look and the removal
            with held.lock:
                held.slot.remove(held.token)
        except Exception:  # lost, or the store does not answer
            return

    def _is_free(self, found: Found) -> bool:
        lease = Lease.parse(found.data)
        if lease.token == self._own.token:  # a write of ours whose answer was lost
            return True
        if self._is_of_ended_run(lease):
            return True
        return found.age > lease.seconds or _lives(lease) is False

    def _is_of_ended_run(self, lease: Lease) -> bool:
        """Whether an earlier run of this very process left it, having found no way to the store."""
        own = self._own
        same = (lease.machine, lease.pid, lease.started) == (own.machine, own.pid, own.started)
        return same and bool(own.started) and lease.token not in _open_runs

    def _busy(self, scene_id: str, found: Found | None) -> Busy:
        if found is None:
            return Busy("another run has just taken it", alive=True)
        lease = Lease.parse(found.data)
        renewed = self._seen.setdefault(scene_id, found.token) != found.token
        end = datetime.now(UTC) + timedelta(seconds=lease.seconds - found.age)
        reason = (
            f"{lease.holder} is working on it since {lease.since}; its lease ends at "
            f"{end.isoformat(timespec='seconds')} unless it is renewed"
        )
        return Busy(reason, alive=renewed or _lives(lease) is True)

    def _renew_all(self) -> None:
        while not self._stop.wait(self._own.seconds / 3):
            for held in list(self._held.values()):
                try:
                    self._renew(held)
                except Exception:  # the store may answer next time; publishing asks for itself
                    continue

    def _renew(self, held: _Held) -> None:
        with held.lock:
            for _ in range(_TRIES):
                if held.lost:
                    break
                lease, asked = held.lease.beaten(), _clock()
                token = held.slot.replace(lease.encode(), held.token)
                if token is None:
                    self._look_again(held)
                    continue
                held.lease, held.token, held.renewed = lease, token, asked
                return
        raise LeaseLost(held.lost or "its lease could not be renewed")

    def _look_again(self, held: _Held) -> None:
        """After a refusal: a write whose answer was lost, or another run."""
        found = held.slot.read()
        lease = Lease() if found is None else Lease.parse(found.data)
        if found is not None and lease.token == self._own.token:
            held.token = found.token
            return
        whose = lease.holder if found is not None else "another run, which has ended since,"
        held.lost = (
            f"its lease was lost to {whose}: this run stood still for longer than "
            f"{self._own.seconds:g} s; it publishes nothing of this scene, its tiles are left"
        )


def is_holder(output: str, scene_id: str, token: str) -> bool:
    """Whether the run with that token has the lease of a scene; an empty token needs none."""
    if not token:
        return True
    slot = open_slot(join(output, STATE, _FOLDER), f"{scene_id}.json")
    found = None if slot is None else slot.read()
    return found is not None and Lease.parse(found.data).token == token


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _lives(lease: Lease) -> bool | None:
    return is_alive(lease.machine, lease.pid, lease.started)


def _write(slot: Slot, data: bytes, token: str | None) -> str | None:
    return slot.create(data) if token is None else slot.replace(data, token)
