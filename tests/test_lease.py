"""Two runs at once, runs that die or stand still, and sources that change under a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pipeline.job
from infra.local_s3 import LocalS3
from pipeline import events
from pipeline.actors import ActorPool, Failure, TileActor
from pipeline.catalog import list_scenes
from pipeline.changes import version_now
from pipeline.conditional import Found, Slot, is_enforced, open_slot
from pipeline.errors import SceneError
from pipeline.grid import Tile
from pipeline.integrity import verify_scene
from pipeline.job import run
from pipeline.lease import Lease, LeaseLost, Leases, is_holder
from pipeline.ledger import TileRecord
from pipeline.liveness import is_alive, machine, started
from pipeline.plan import make_plan
from pipeline.ray_session import ray_session
from pipeline.run_report import RunReport, SceneRow
from pipeline.scene_job import SceneJob
from pipeline.settings import RunSettings
from pipeline.store import SceneStore
from pipeline.worker import Prepared, Worker
from tests.archives import array_bytes, command, counts, run_job
from tests.scenes import write_envi, write_geotiff, write_zarr

ELSEWHERE = Lease("other", "faraway", 4, "another boot", "5", "their token", "then", 60.0)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on a disk, or prefix on the S3 server."""
    if request.param == "local":
        return str(tmp_path / "out")
    server: LocalS3 = request.getfixturevalue("s3")
    return server.url(f"leases/{tmp_path.name}-{os.getpid()}")


@pytest.fixture(scope="module")
def cluster(s3: LocalS3) -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_zarr(folder / "one.zarr", counts(48, 48), scale_factor=1e-4)
    return folder


def slot_of(folder: str, name: str = "one") -> Slot:
    slot = open_slot(f"{folder}/_sr-archive/leases", f"{name}.json")
    assert slot is not None
    return slot


def in_parallel(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Results of a call in `count` threads that start together."""
    barrier = threading.Barrier(count)

    def wait_and_call(number: int) -> Any:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


def test_a_change_needs_the_present_state(folder: str) -> None:
    slot = slot_of(folder)
    assert slot.read() is None
    assert slot.replace(b"none", "no such token") is None and slot.read() is None
    first = slot.create(b"first")
    assert first is not None and slot.create(b"again") is None
    second = slot.replace(b"second", first)
    assert second is not None and slot.replace(b"stale", first) is None
    slot.remove(first)
    found = slot.read()
    assert found is not None
    assert (found.data, found.token) == (b"second", second) and -1 <= found.age < 5
    slot.remove(second)
    assert slot.read() is None


def test_of_many_changes_at_once_one_is_made(folder: str) -> None:
    for round_ in range(2):
        slots = [slot_of(folder, f"race{round_}") for _ in range(4)]
        created = in_parallel(4, lambda n, slots=slots: slots[n].create(b"%d" % n))
        assert sum(token is not None for token in created) == 1
        token = next(filter(None, created))
        changed = in_parallel(4, lambda n, s=slots, t=token: s[n].replace(b"new %d" % n, t))
        assert sum(token is not None for token in changed) == 1


class Careless:
    """An object of a server that takes conditional requests and ignores the conditions."""

    def read(self) -> Found | None:
        return None

    def create(self, data: bytes) -> str | None:
        return "token"

    def replace(self, data: bytes, token: str) -> str | None:
        return "token"

    def remove(self, token: str) -> None:
        pass


def test_stores_that_cannot_keep_runs_apart_are_known(folder: str) -> None:
    assert is_enforced(slot_of(folder, ".probe")) and slot_of(folder, ".probe").read() is None
    assert not is_enforced(Careless())
    with Leases("memory://out", "a") as leases:
        assert "no second run" in leases.note and leases.token == ""
        assert leases.take("one") is None
        leases.keep("one")


def test_one_run_holds_a_scene_and_the_other_says_who(folder: str) -> None:
    with Leases(folder, "first") as first, Leases(folder, "second") as second:
        assert first.take("one") is None and second.take("two") is None
        busy = second.take("one")
        assert busy is not None and busy.alive
        for fact in ("run first", f"process {os.getpid()}", "since 2", "ends at 2"):
            assert fact in busy.reason
        assert is_holder(folder, "one", first.token)
        assert not is_holder(folder, "one", second.token)
        first.release("one")
        assert second.take("one") is None
        first.release("one")  # no lease of its own any more
        assert is_holder(folder, "one", second.token)
    assert slot_of(folder).read() is None and slot_of(folder, "two").read() is None


def test_an_ended_lease_is_taken_over_by_exactly_one(folder: str) -> None:
    slot_of(folder).create(replace(ELSEWHERE, seconds=1.0).encode())
    runs = [Leases(folder, f"run{number}") for number in range(6)]
    first = runs[0].take("one")
    assert first is not None and not first.alive and "run other on host faraway" in first.reason
    time.sleep(2.6)  # S3 tells whole seconds
    taken = in_parallel(6, lambda n: runs[n].take("one"))
    assert sum(busy is None for busy in taken) == 1
    assert all(busy.alive for busy in taken if busy is not None)


def test_a_renewed_lease_shows_that_its_run_lives(tmp_path: Path) -> None:
    slot, run_ = slot_of(str(tmp_path)), Leases(str(tmp_path), "mine")
    token = slot.create(ELSEWHERE.encode())
    for alive in (False, False):
        busy = run_.take("one")
        assert busy is not None and busy.alive is alive
    slot.replace(ELSEWHERE.beaten().encode(), token or "")
    busy = run_.take("one")
    assert busy is not None and busy.alive


def test_leases_are_renewed_while_the_run_goes_on(tmp_path: Path) -> None:
    with Leases(str(tmp_path), "mine", 0.6) as leases:
        leases.take("one")
        time.sleep(1.5)
        found = slot_of(str(tmp_path)).read()
        assert found is not None and found.age < 0.6 and Lease.parse(found.data).beat >= 3


def test_a_lost_lease_is_noticed_and_left_alone(folder: str) -> None:
    with Leases(folder, "slept") as leases:
        leases.take("one")
        leases.keep("one")
        found = slot_of(folder).read()
        assert found is not None and leases.lost("one") == ""
        slot_of(folder).replace(ELSEWHERE.encode(), found.token)
        with pytest.raises(LeaseLost, match="lost to run other on host faraway"):
            leases.keep("one")
        assert "other" in leases.lost("one")
    assert is_holder(folder, "one", "their token")


def test_a_write_whose_answer_was_lost_costs_no_lease(folder: str) -> None:
    with Leases(folder, "mine") as leases:
        leases.take("one")
        found = slot_of(folder).read()
        assert found is not None
        slot_of(folder).replace(Lease.parse(found.data).beaten().encode(), found.token)
        leases.keep("one")
        leases.keep("one")
        assert is_holder(folder, "one", leases.token)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\x00",
        b"[" * 50_000,
        b'{"run": 1, "pid": -4, "seconds": 1e99, "host": "a\\n\\u001b[2Jb"}',
        json.dumps({"run": "x" * 10_000, "seconds": True, "beat": 1 << 80}).encode(),
    ],
)
def test_a_foreign_object_is_a_lease_of_somebody(tmp_path: Path, data: bytes) -> None:
    """It is believed in nothing that would hold a scene for ever or spoil a line."""
    slot_of(str(tmp_path)).create(data)
    busy = Leases(str(tmp_path), "mine").take("one")
    assert busy is not None and not busy.alive
    assert busy.reason.isprintable() and len(busy.reason) < 1000
    file = tmp_path / "_sr-archive" / "leases" / "one.json"
    os.utime(file, (time.time() - 130, time.time() - 130))
    assert Leases(str(tmp_path), "mine").take("one") is None


@pytest.mark.skipif(not machine(), reason="this system does not tell which process is which")
def test_the_lease_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pipeline.lease import Leases; "
        "leases = Leases(sys.argv[1], 'dead').__enter__(); assert leases.take('one') is None; "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    dead = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert slot_of(str(tmp_path)).read() is not None
    assert Leases(str(tmp_path), "next").take("one") is None


def test_processes_are_told_apart() -> None:
    own = started(os.getpid())
    assert is_alive("", os.getpid(), own) is None
    assert is_alive("another boot", os.getpid(), own) is None
    if machine():
        assert is_alive(machine(), os.getpid(), own) is True
        assert is_alive(machine(), os.getpid(), "1") is False  # the number was given again
        assert is_alive(machine(), 1 << 30, own) is False


def test_versions_now_are_those_of_the_listing(tmp_path: Path, s3: LocalS3) -> None:
    import fsspec

    write_zarr(tmp_path / "z.zarr", counts(8, 8))
    write_geotiff(tmp_path / "t.tif", counts(8, 8))
    write_envi(tmp_path, counts(8, 8), name="e")
    place = s3.url(f"versions-{os.getpid()}")
    fsspec.filesystem("s3").put(str(tmp_path) + "/", place + "/", recursive=True)
    for root in (str(tmp_path), place):
        scenes = list_scenes(root).scenes
        assert [scene.scene_id for scene in scenes] == ["e", "t", "z"]
        assert [version_now(scene.uri, scene.parts) for scene in scenes] == [
            scene.version for scene in scenes
        ]
        assert [version_now(scene.uri) for scene in list_scenes(f"{root}/z.zarr").scenes] == [
            scenes[2].version
        ]
    before = [version_now(scene.uri, scene.parts) for scene in list_scenes(str(tmp_path)).scenes]
    with (tmp_path / "e.img").open("ab") as file:
        file.write(b"x")
    os.utime(tmp_path / "t.tif")
    (tmp_path / "z.zarr" / "more").write_text("x")
    after = [version_now(scene.uri, scene.parts) for scene in list_scenes(str(tmp_path)).scenes]
    assert not set(before) & set(after)
    (tmp_path / "t.tif").unlink()
    for name, parts in (("t.tif", (str(tmp_path / "t.tif"),)), ("gone.zarr", ())):
        with pytest.raises(SceneError, match="not there any more") as caught:
            version_now(str(tmp_path / name), parts)
        assert caught.value.code == "unreadable"


def test_a_source_that_changes_under_a_run_is_not_published(
    cluster: None, source: Path, model: Path, tmp_path: Path
) -> None:
    """Its tiles are dropped, the next run does it again from the new bytes."""
    changed: list[str] = []

    def change(event: events.Event) -> None:
        if isinstance(event, events.TileFinished) and not changed:
            changed.append(event.tile)
            write_zarr(source / "one.zarr", counts(48, 48, seed=9), scale_factor=1e-4)

    target = tmp_path / "out"
    row = run_listening(source, target, model, change)
    assert changed and row.status == "quarantined"
    assert row.reason.startswith("source-changed: ") and "run again" in row.reason
    store = SceneStore(str(target), "one")
    assert store.published() is None and store.state() is None and store.objects() == {}
    assert slot_of(str(target)).read() is None
    again = run_job(source, target, model)
    assert [(row.status, row.tiles_kept) for row in again.rows] == [("published", 0)]
    assert store.quarantined() is None


def test_a_source_that_changed_since_it_was_listed_is_not_begun(
    cluster: None, source: Path, model: Path, tmp_path: Path
) -> None:
    def change(event: events.Event) -> None:
        if isinstance(event, events.RunPlanned):
            write_zarr(source / "one.zarr", counts(48, 48, seed=9), scale_factor=1e-4)

    row = run_listening(source, tmp_path / "out", model, change)
    assert row.status == "quarantined" and "changed since it was listed" in row.reason
    assert SceneStore(str(tmp_path / "out"), "one").state() is None


def run_listening(
    source: Path, target: Path, model: Path, listener: Callable[[events.Event], None]
) -> SceneRow:
    settings = RunSettings(source=str(source), output=str(target), model=str(model), tile=16)
    return run(settings, [listener]).rows[0]


def test_a_run_that_lost_its_lease_publishes_nothing(
    cluster: None, source: Path, model: Path, tmp_path: Path
) -> None:
    """Its tiles are left, and a later run goes on with them once the other's lease has ended."""
    target = tmp_path / "out"

    def take_over(event: events.Event) -> None:
        found = slot_of(str(target)).read() if isinstance(event, events.TileFinished) else None
        if found is not None and Lease.parse(found.data).run != "other":
            slot_of(str(target)).replace(replace(ELSEWHERE, seconds=4.0).encode(), found.token)

    row = run_listening(source, target, model, take_over)
    assert row.status == "skipped" and "lost to run other on host faraway" in row.reason
    store = SceneStore(str(target), "one")
    assert store.published() is None and store.quarantined() is None and store.finished()
    held: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.SceneHeld):
            held.append(event.reason)

    row = run_listening(source, target, model, listen)
    assert row.status == "published" and row.tiles_kept >= 1
    run_job(source, tmp_path / "undisturbed", model)
    assert array_bytes(target / "one.zarr") == array_bytes(tmp_path / "undisturbed" / "one.zarr")


def test_a_worker_leaves_alone_what_is_another_runs(
    source: Path, model: Path, tmp_path: Path
) -> None:
    """As after a sleep: it neither removes what is there nor writes into it."""
    target = str(tmp_path / "out")
    settings = RunSettings(source=str(source), output=target, model=str(model), tile=16)
    loaded = pipeline.job.load_model(settings)
    job = make_plan(settings, loaded).work[0].job
    assert job is not None
    worker, store = Worker(loaded.data, "cpu", 1, "fp32"), SceneStore(target, "one")
    with Leases(target, "other") as other:
        assert other.take("one") is None
        with pytest.raises(SceneError, match="another run has the lease"):
            worker.prepare(replace(job, holder="mine"))
        assert store.state() is None
        worker.prepare(replace(job, holder=other.token))
    constants = store.calibration()
    assert constants is not None
    store.prepare({}, constants, {"fingerprint": "another", "tiles": len(job.grid)})
    with pytest.raises(SceneError, match="prepared anew by another run"):
        worker.process(job, next(iter(job.grid)))
    assert store.objects() == {} and store.ledger() == {}


class Deadly(TileActor):
    """The real actor, but one scene's last tile ends its process."""

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord | Failure:
        if job.scene_id == "poison" and tile is not None and tile.key == "2.2":
            os._exit(1)
        return super().work(job, tile)


def test_a_scene_that_kills_its_workers_is_set_aside_and_the_others_finish(
    cluster: None, source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zarr(source / "poison.zarr", counts(48, 48, seed=3), scale_factor=1e-4)
    monkeypatch.setattr(pipeline.job, "ActorPool", partial(ActorPool, actor=Deadly))
    report = run_job(source, tmp_path / "out", model, max_attempts=2)
    rows = {row.scene_id: row for row in report.rows}
    assert rows["one"].status == "published" and report.exit_status == 3
    assert "tile 2.2 killed its worker (2 attempts)" in rows["poison"].reason
    kept = SceneStore(str(tmp_path / "out"), "poison").finished()
    assert "0.0" in kept and "2.2" not in kept
    assert slot_of(str(tmp_path / "out"), "poison").read() is None


def start_run(source: Path, target: str, model: Path) -> subprocess.Popen[str]:
    arguments = command("run", source, target, "--model", model, "--tile", 16, "--workers", 1)
    return subprocess.Popen(
        [*arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", [pytest.param("local", marks=pytest.mark.long), "s3"], indirect=True
)
def test_two_runs_share_the_work(folder: str, model: Path, tmp_path: Path) -> None:
    """Both end well, each scene is published by one of them, and what is there is whole."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        path = source / f"s{number}.zarr"
        write_zarr(path, counts(32, 32, seed=number), scale_factor=1e-4)
    runs = [start_run(source, folder, model) for _ in range(2)]
    reports = []
    for process in runs:
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        reports.append({row["scene_id"]: row for row in json.loads(out)["rows"]})
    for scene_id in reports[0]:
        rows = [report[scene_id] for report in reports]
        assert sorted(row["status"] for row in rows) == ["published", "skipped"], rows
        reason = next(row["reason"] for row in rows if row["status"] == "skipped")
        known = ("is working on it since", "by another run meanwhile", "the same fingerprint")
        assert any(part in reason for part in known)
        assert verify_scene(SceneStore(folder, scene_id), deep=True) == []
        assert slot_of(folder, scene_id).read() is None


@pytest.mark.slow
def test_what_a_killed_run_held_is_taken_over(
    cluster: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the killed run had been on another machine: its lease has to end first."""
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_zarr(source / "one.zarr", counts(192, 192), scale_factor=1e-4)
    monkeypatch.setenv("SR_ARCHIVE_LEASE_SECONDS", "12")
    killed = start_run(source, str(target), model)
    tiles = target / "_sr-archive" / "scenes" / "one" / "tiles"
    while not tiles.is_dir() or len(list(tiles.glob("*.json"))) < 2:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    slot = slot_of(str(target))
    found = slot.read()
    assert found is not None and Lease.parse(found.data).seconds == 12
    elsewhere = asdict(Lease.parse(found.data)) | {"machine": "another boot", "host": "faraway"}
    slot.replace(Lease(**elsewhere).encode(), found.token)
    seen: list[events.Event] = []
    began = time.monotonic()
    settings = RunSettings(source=str(source), output=str(target), model=str(model), tile=16)
    report: RunReport = run(settings, [seen.append])
    assert [row.status for row in report.rows] == ["published"]
    assert report.rows[0].tiles_kept >= 2
    assert time.monotonic() - began > 10
    assert any(isinstance(each, events.SceneHeld) and "faraway" in each.reason for each in seen)
    assert verify_scene(SceneStore(str(target), "one"), deep=True) == []
