"""The dispatch loop on real Ray actors that fail on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline import UsageError
from pipeline.actors import ActorPool, Failure, Work
from pipeline.dispatch import Admission, Dispatcher, Handlers
from pipeline.grid import Tile, TileGrid
from pipeline.ledger import TileRecord
from pipeline.ray_session import Share, ray_session
from pipeline.scene_job import OutputOptions, SceneJob
from pipeline.seams import SeamCertificate
from pipeline.worker import Prepared

OPTIONS = OutputOptions(8, "fp32", "scene", "auto", "auto", (), False, "source", "sharded")


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with ray_session(None):
        yield


class Moody:
    """Does no work; scene ids say how it fails. Counts calls in the folder named by the uri."""

    def __init__(self, model: bytes, device: str, threads: int, precision: str) -> None:
        assert model == b"weights"

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord | Failure:
        name = "preparation" if tile is None else tile.key
        with (Path(job.uri) / f"{job.scene_id}-{name}").open("a") as file:
            file.write("x")
        if job.scene_id == "poison" and name == "1.1":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.scene_id == "refused" and tile is None:
            return Failure("no-valid-pixels", "nothing there", False)
        if job.scene_id == "flaky" and name == "0.1" and self._calls(job, name) < 3:
            return Failure("unreadable", "the network went away", True)
        return Prepared(job.scene_id, "") if tile is None else TileRecord(tile.key, ())

    @staticmethod
    def _calls(job: SceneJob, name: str) -> int:
        return len((Path(job.uri) / f"{job.scene_id}-{name}").read_text())


class Journal:
    """What the loop told."""

    def __init__(self) -> None:
        self.done: dict[str, set[str]] = {}
        self.failed: dict[str, tuple[str, str]] = {}
        self.retries: list[tuple[str, str]] = []
        self.finish: dict[str, Callable[[], None]] = {}

    def handlers(self) -> Handlers:
        return Handlers(
            prepared=lambda job, _: self.done.setdefault(job.scene_id, set()).clear(),
            tile=self._tile,
            retried=lambda work, _: self.retries.append((work.job.scene_id, work.name)),
            failed=lambda job, code, text: self.failed.update({job.scene_id: (code, text)}),
        )

    def _tile(self, job: SceneJob, record: TileRecord) -> None:
        done = self.done.setdefault(job.scene_id, set())
        assert record.tile not in done, "a tile was reported twice"
        done.add(record.tile)
        if len(done) == len(job.grid) and "certified" in job.scene_id:
            self.finish[job.scene_id]()


class Signing:
    """Takes a while for each tile, and leaves a line with its process for everything it does."""

    def __init__(self, *arguments: object) -> None:
        pass

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord:
        if tile is None:
            return Prepared(job.scene_id, "")
        time.sleep(0.01)
        self._sign(job)
        return TileRecord(tile.key, ())

    def certify(self, job: SceneJob, borders: int) -> SeamCertificate:
        self._sign(job)
        return SeamCertificate.uncompared(job.grid)

    def _sign(self, job: SceneJob) -> None:
        with (Path(job.uri) / job.scene_id).open("a") as file:
            file.write(f"{os.getpid()}\n")


def signed(folder: Path) -> dict[str, list[str]]:
    """By scene, the processes that worked on it, in order."""
    return {path.name: path.read_text().splitlines() for path in folder.iterdir()}


def job(scene_id: str, folder: Path, size: int = 32) -> SceneJob:
    grid = TileGrid(size, size, 8, 4)
    return SceneJob(scene_id, str(folder), "v", scene_id, "out", OPTIONS, grid, 3, "0")


def dispatch(
    jobs: list[SceneJob],
    kept: dict[str, set[str]] | None = None,
    workers: int = 2,
    actor: type = Moody,
    tiles_per_worker: int = 64,
) -> Journal:
    journal = Journal()
    pool = ActorPool(b"weights", Share("cpu", workers, 1.0, 0.0), actor=actor)
    while actor is Signing and any(seat.starting is not None for seat in pool.seats):
        assert not list(pool.finished(timeout=1.0))
    done = {name: frozenset(tiles) for name, tiles in (kept or {}).items()}
    dispatcher = Dispatcher(
        pool,
        journal.handlers(),
        3,
        lambda job: Admission("go", done.get(job.scene_id)),
        tiles_per_worker,
    )
    journal.finish = {each.scene_id: partial(dispatcher.certify, each, 1) for each in jobs}
    for each in jobs:
        dispatcher.add(each)
    dispatcher.run()
    pool.close()
    return journal


def test_every_tile_is_done_once(tmp_path: Path) -> None:
    scenes = [job(f"s{number}", tmp_path, 24 + 8 * number) for number in range(5)]
    journal = dispatch(scenes)
    assert journal.failed == {}
    for each in scenes:
        assert journal.done[each.scene_id] == {tile.key for tile in each.grid}
    assert all(len(path.read_text()) == 1 for path in tmp_path.iterdir())


def test_kept_tiles_and_preparation_are_not_repeated(tmp_path: Path) -> None:
    journal = dispatch([job("half", tmp_path)], {"half": {"0.0", "3.3"}})
    assert len(journal.done["half"]) == 14
    assert not (tmp_path / "half-preparation").exists()
    assert not (tmp_path / "half-0.0").exists()


def test_a_tile_that_always_kills_costs_its_scene_only(tmp_path: Path) -> None:
    """Three deaths, then quarantine; innocent neighbours in flight are not blamed for them."""
    journal = dispatch([job("poison", tmp_path), job("sound", tmp_path), job("late", tmp_path)])
    code, text = journal.failed["poison"]
    assert code == "tile-failed" and "tile 1.1 killed its worker" in text and "3 attempts" in text
    assert set(journal.failed) == {"poison"}
    assert len(journal.done["sound"]) == len(journal.done["late"]) == 16
    assert len((tmp_path / "poison-1.1").read_text()) == 3


def test_transient_failures_are_retried_and_others_are_not(tmp_path: Path) -> None:
    journal = dispatch([job("flaky", tmp_path), job("refused", tmp_path)])
    assert journal.retries == [("flaky", "tile 0.1")] * 2
    assert len(journal.done["flaky"]) == 16
    assert journal.failed == {"refused": ("no-valid-pixels", "nothing there")}
    assert len((tmp_path / "refused-preparation").read_text()) == 1


def test_a_worker_stays_with_its_scene_while_there_are_others(tmp_path: Path) -> None:
    scenes = [job(f"s{number}", tmp_path) for number in range(10)]
    dispatch(scenes, actor=Signing, tiles_per_worker=16)
    workers = {name: len(set(pids)) for name, pids in signed(tmp_path).items()}
    assert sum(count > 1 for count in workers.values()) <= 2, "all help with the last scenes only"
    assert len(workers) == 10


def test_a_large_scene_has_several_workers_at_once(tmp_path: Path) -> None:
    large, *small = (job(f"s{number}", tmp_path, 80 if not number else 32) for number in range(4))
    dispatch([large, *small], {"s0": set()}, actor=Signing, tiles_per_worker=16)
    [first, second] = Counter(signed(tmp_path)["s0"]).values()
    assert first + second == 100 and min(first, second) > 30


def test_all_work_on_the_only_scene(tmp_path: Path) -> None:
    dispatch([job("alone", tmp_path)], actor=Signing, tiles_per_worker=16)
    assert len(set(signed(tmp_path)["alone"])) == 2


def test_borders_are_compared_where_the_scene_is_open(tmp_path: Path) -> None:
    scenes = [job(f"certified-{number}", tmp_path) for number in range(6)]
    dispatch(scenes, actor=Signing, tiles_per_worker=16)
    for pids in signed(tmp_path).values():
        assert len(pids) == 17 and pids[-1] in pids[:-1]


@pytest.mark.slow
@pytest.mark.long
def test_actors_that_have_no_room_hold_nothing_up(tmp_path: Path) -> None:
    """As after the loss of a node: the last actor waits for a CPU that never comes."""
    cpus = int(Share.of_cluster("cpu", 1).cpus)
    journal = dispatch([job("poison", tmp_path), job("sound", tmp_path)], workers=cpus + 1)
    assert set(journal.failed) == {"poison"}
    assert len(journal.done["sound"]) == 16


@pytest.mark.slow
def test_actors_that_cannot_start_end_the_run_with_their_reason(tmp_path: Path) -> None:
    class Broken(Moody):
        def __init__(self, *arguments: object) -> None:
            raise RuntimeError("no such device")

    with pytest.raises(UsageError, match=r"^no worker can be started: .*no such device"):
        dispatch([job("sound", tmp_path)], actor=Broken)
    assert list(tmp_path.iterdir()) == []


def test_work_is_named_for_people(tmp_path: Path) -> None:
    assert Work(job("s", tmp_path), None).name == "preparation"
    assert Work(job("s", tmp_path), Tile(2, 3)).name == "tile 2.3"


def test_shares_divide_the_machine() -> None:
    cpus = Share.of_cluster("cpu", 1).cpus
    assert Share.of_cluster("auto", None).device == "cpu"
    assert Share.of_cluster("cpu", int(cpus)).cpus == 1.0


def test_shares_of_what_an_autoscaler_will_bring() -> None:
    """Ray here has no GPU and few CPUs; what is asked for by name is asked for all the same."""
    assert Share.of_cluster("cuda", 50, 4, 0.5) == Share("cuda", 50, 4.0, 0.5)
    assert Share.of_cluster("auto", 50, None, 1.0).device == "cuda"
    assert Share.of_cluster("auto", 50, 2) == Share("cpu", 50, 2.0, 0.0)
    with pytest.raises(UsageError, match="--workers: how many"):
        Share.of_cluster("cuda", None, 4, 1.0)
    with pytest.raises(UsageError, match="--gpus-per-worker: there are none"):
        Share.of_cluster("cpu", 1, None, 1.0)
    with pytest.raises(UsageError, match="Ray sees no GPU"):
        Share.of_cluster("cuda", 1, 1)


@pytest.mark.parametrize(
    ("nodes", "share"),
    [
        ([{"CPU": 16.0}], Share("cpu", 8, 2.0, 0.0, True)),
        ([{"CPU": 3.0}], Share("cpu", 1, 3.0, 0.0, True)),
        ([{"CPU": 3.0}] * 2, Share("cpu", 2, 2.0, 0.0, True)),
        ([{}, {"CPU": 2.0}, {"CPU": 1.0}], Share("cpu", 1, 2.0, 0.0, True)),
        ([{"CPU": 1.0}] * 4, Share("cpu", 4, 1.0, 0.0, True)),
        ([{}], Share("cpu", 1, 1.0, 0.0, True)),
        ([{"CPU": 16.0, "GPU": 2.0}], Share("cuda", 2, 4.0, 1.0, True)),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}], Share("cuda", 1, 8.0, 1.0, True)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}], Share("cuda", 6, 1.0, 1.0, True)),
    ],
)
def test_a_share_fits_on_a_node(nodes: list[dict[str, float]], share: Share) -> None:
    assert Share.of_nodes(nodes, "auto", None) == share


CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}


def test_mixed_nodes_have_actors_of_their_own_kind() -> None:
    both = Share.of_nodes([{}, CPU_NODE, GPU_NODE], "mixed", None)
    cpus = Share("any", 4, 2.0, 0.0, True)
    assert both == Share("any", 2, 4.0, 1.0, True, cpus)
    assert both.parts == [both, cpus]
    assert [share.places([CPU_NODE, GPU_NODE, GPU_NODE]) for share in both.parts] == [4, 4]
    assert Share.of_nodes([CPU_NODE], "mixed", None) == cpus
    assert Share.of_nodes([GPU_NODE], "mixed", None, 8, 0.5) == Share("any", 2, 8.0, 0.5, True)
    with pytest.raises(UsageError, match="--workers: with --devices mixed"):
        Share.of_nodes([CPU_NODE], "mixed", 3)
    with pytest.raises(UsageError, match="--devices mixed: Ray has no node yet"):
        Share.of_nodes([{}], "mixed", None)


@pytest.mark.parametrize(
    ("share", "node", "places"),
    [
        (Share("cpu", 1, 2.0, 0.0), {"CPU": 7.0, "GPU": 1.0}, 3),
        (Share("cuda", 1, 2.0, 0.5), {"CPU": 16.0, "GPU": 2.0}, 4),
        (Share("cuda", 1, 2.0, 1 / 3), {"CPU": 16.0, "GPU": 1.0}, 3),
        (Share("cuda", 1, 2.0, 0.66), {"CPU": 16.0, "GPU": 2.0}, 2),  # a part is of one GPU
        (Share("cuda", 1, 4.0, 0.5), {"CPU": 4.0, "GPU": 2.0}, 1),
        (Share("cuda", 1, 2.0, 1.0), {"CPU": 16.0}, 0),
        (Share("cpu", 1, 2.0, 0.0), {}, 0),
    ],
)
def test_a_node_holds_so_many_actors(share: Share, node: dict[str, float], places: int) -> None:
    assert share.places([node]) == places


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_unreachable_cluster_is_one_line_within_seconds(address: str) -> None:
    from pipeline.ray_session import _check_reachable

    with pytest.raises(UsageError, match="nothing answers there"):
        _check_reachable(address)
