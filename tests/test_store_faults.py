"""A store that fails for a while costs time and nothing else; one that stays away costs a line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs

from infra.local_s3 import LocalS3
from infra.processes import port_is_free
from pipeline import SceneError, UsageError, events, open_scene, s3
from pipeline.errors import StoreUnavailable
from pipeline.integrity import verify_scene
from pipeline.job import load_model, run
from pipeline.plan import make_plan
from pipeline.ray_session import ray_session
from pipeline.run_report import RunReport
from pipeline.scene_job import Model
from pipeline.settings import RunSettings
from pipeline.storage import check_reachable, open_filesystem, retry_seconds
from pipeline.store import SceneStore
from pipeline.worker import Worker
from tests.archives import SCALE_FACTOR, counts, sr_archive, write_model, write_tiles
from tests.fault_proxy import Fault, FaultProxy
from tests.scenes import write_envi, write_geotiff, write_zarr

ROOT = "archive/faults"
BUDGET = "SR_ARCHIVE_STORE_RETRY_SECONDS"
# Of each kind about a third of the requests; a hang costs the client's read timeout each time.
KINDS = [
    Fault("slow-down", 0.3),
    Fault("internal-error", 0.3),
    Fault("reset", 0.3),
    Fault("cut", 0.3),
    Fault("lost-reply", 0.3),
    Fault("late-error", 0.3),
    Fault("hang", 0.06, seconds=1.5),
    Fault("delay", seconds=0.04),
    Fault("delay", 0.1, seconds=0.4),
]


@pytest.fixture(scope="module")
def direct(s3: LocalS3) -> Any:
    """The store itself, past the proxy."""
    return s3fs.S3FileSystem(endpoint_url=s3.endpoint, skip_instance_cache=True)


@pytest.fixture(scope="module")
def weak(s3: LocalS3) -> Iterator[FaultProxy]:
    """The proxy; what this process and its workers call S3 lies behind it."""
    with FaultProxy(s3.endpoint, seed=7) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setenv(BUDGET, "2")
        patch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.7}})
        _forget_connections()
        yield proxy
        proxy.heal()
    _forget_connections()


def _forget_connections() -> None:
    """fsspec keeps filesystems by their options, which do not name the endpoint."""
    s3.PatientS3FileSystem.clear_instance_cache()
    s3._answered.clear()
    s3._away.clear()


@pytest.fixture
def store(weak: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The same with short pauses and a long budget, for what runs in this process."""
    monkeypatch.setattr(s3, "_FIRST_DELAY", 0.01)
    monkeypatch.setenv(BUDGET, "20")
    check_reachable(f"s3://{ROOT}", "the store")
    yield weak
    weak.heal()
    s3._away.clear()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return load_model(RunSettings(source="-", output="-", model=str(model_path)))


@pytest.fixture(scope="module")
def source(direct: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scene of each kind of access: GDAL through blocks, ranges of raw bytes, Zarr."""
    folder = tmp_path_factory.mktemp("source")
    write_geotiff(folder / "tiff.tif", counts(16, 24), scale=SCALE_FACTOR)
    write_envi(folder, counts(20, 16, seed=1), "bil", "envi", ".dat", reflectance_scale_factor=1e4)
    write_zarr(folder / "store.zarr", counts(16, 20, seed=2), scale_factor=SCALE_FACTOR)
    direct.put(f"{folder}/", f"{ROOT}/source", recursive=True)
    return f"s3://{ROOT}/source"


def settings(source: str, output: str, model: Path | str = "-", **options: object) -> RunSettings:
    return RunSettings(source=source, output=output, model=str(model), tile=16, **options)  # type: ignore[arg-type]


def super_resolve(source: str, output: str, model: Model) -> None:
    """A whole run without Ray: plan, prepare, every tile, publish."""
    worker = Worker(model.data, "cpu", 1, "fp32")
    for scene in make_plan(settings(source, output, precision="fp32"), model).work:
        assert scene.job is not None
        write_tiles(worker, scene.job)
        kept = scene.job.store()
        kept.publish({"made": "by a test"}, kept.ledger())


def objects(direct: Any, output: str) -> dict[str, bytes]:
    """Every object of the output's scenes but the roots, which tell times, by key."""
    direct.invalidate_cache()
    base = output.removeprefix("s3://")
    paths = [path for path in direct.find(base) if "/_sr-archive/" not in path]
    shards = [p for p in paths if "/stac/" not in p and not p.endswith(".zarr/zarr.json")]
    return {path[len(base) + 1 :]: data for path, data in direct.cat(shards).items()}


@pytest.fixture(scope="module")
def undisturbed(weak: FaultProxy, direct: Any, source: str, model: Model) -> dict[str, bytes]:
    output = f"s3://{ROOT}/undisturbed"
    weak.heal()
    super_resolve(source, output, model)
    return objects(direct, output)


@pytest.mark.parametrize("fault", KINDS, ids=lambda fault: f"{fault.kind}-{fault.seconds:g}")
def test_every_fault_leaves_the_same_bytes(
    fault: Fault,
    store: FaultProxy,
    direct: Any,
    source: str,
    model: Model,
    undisturbed: dict[str, bytes],
) -> None:
    output = f"s3://{ROOT}/{fault.kind}-{fault.seconds:g}"
    store.disturb(fault)
    super_resolve(f"{source}/store.zarr", output, model)
    assert store.done[fault.kind] >= 3
    store.heal()
    expected = {key: data for key, data in undisturbed.items() if key.startswith("store.zarr/")}
    assert objects(direct, output) == expected and expected
    assert verify_scene(SceneStore(output, "store"), deep=True) == []


@pytest.mark.parametrize("name", ["tiff.tif", "envi.hdr", "store.zarr"])
def test_cut_reads_never_reach_a_reader(store: FaultProxy, source: str, name: str) -> None:
    expected = open_scene(f"{source}/{name}")["reflectance"].values
    fsspec.filesystem("s3").invalidate_cache()
    store.disturb(Fault("cut", 0.3), Fault("slow-down", 0.2), Fault("reset", 0.2))
    found = open_scene(f"{source}/{name}")["reflectance"].values
    assert sum(store.done.values()) >= 2
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["tiff.tif", "envi.hdr", "store.zarr"])
def test_a_reader_says_that_the_store_is_away(
    store: FaultProxy, source: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL calls a file bad whose bytes it cannot get; a bad header would not be tried again."""
    monkeypatch.setenv(BUDGET, "0.1")
    scene = open_scene(f"{source}/{name}")
    store.disturb(Fault("slow-down"))
    with pytest.raises(SceneError, match="gave no answer") as error:
        scene["reflectance"].values  # noqa: B018
    assert error.value.code == "unreadable"


def test_what_is_absent_or_forbidden_is_known_at_once(
    store: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem = fsspec.filesystem("s3")
    store.disturb()
    with pytest.raises(FileNotFoundError):
        filesystem.cat_file(f"{ROOT}/absent", start=0, end=10)
    assert store.requests == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stranger = fsspec.filesystem("s3", skip_instance_cache=True)
    store.disturb()
    with pytest.raises(PermissionError):
        stranger.pipe_file(f"{ROOT}/forbidden", b"x")
    assert store.requests == 1


def test_the_end_of_the_budget_is_one_line_and_then_brief(
    store: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BUDGET, "1")
    filesystem, path = open_filesystem(f"s3://{ROOT}/away")
    store.disturb(Fault("slow-down"))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"gave no answer to archive/faults/away for .* 503"):
        filesystem.pipe_file(path, b"x")
    first = time.monotonic() - began
    with pytest.raises(StoreUnavailable) as error:
        filesystem.pipe_file(path, b"x")
    assert "\n" not in str(error.value) and BUDGET in str(error.value)
    assert 0.2 < first < 1.5 and time.monotonic() - began - first < 0.3
    store.heal()
    filesystem.pipe_file(path, b"x")
    store.disturb(Fault("slow-down", first=4))  # the whole budget is back
    filesystem.pipe_file(path, b"y")
    assert filesystem.cat_file(path) == b"y"


def test_a_listing_that_fails_is_no_short_listing(
    store: FaultProxy, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's walk leaves out a folder whose listing raises an OSError."""
    monkeypatch.setenv(BUDGET, "0.2")
    filesystem, path = open_filesystem(source)
    assert len(filesystem.find(path, maxdepth=1)) == 3
    filesystem.invalidate_cache()
    store.disturb(Fault("internal-error"))
    with pytest.raises(StoreUnavailable):
        filesystem.find(path, maxdepth=1)
    with pytest.raises(StoreUnavailable):
        filesystem.find(path)


def test_an_address_where_nobody_listens_is_no_long_wait(
    store: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = next(port for port in range(23_000, 24_000) if port_is_free(port))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    stranger = fsspec.filesystem("s3", skip_instance_cache=True)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        stranger.cat_file(f"{ROOT}/x")
    assert time.monotonic() - began < 5.0  # of 20


@pytest.mark.parametrize("kind", ["lost-reply", "late-error", "hidden-error"])
def test_an_upload_in_parts_survives_its_last_answer(
    store: FaultProxy, direct: Any, kind: Any
) -> None:
    filesystem = fsspec.filesystem("s3")
    data = np.random.default_rng(1).bytes(11 << 20)
    store.disturb(Fault(kind, method="POST", key="*uploadId=*", first=1))
    filesystem.pipe_file(f"{ROOT}/parts-{kind}", data, chunksize=5 << 20)
    assert store.done[kind] >= 1
    direct.invalidate_cache()
    assert direct.cat_file(f"{ROOT}/parts-{kind}") == data


def test_what_was_not_deleted_is_deleted_again(store: FaultProxy, direct: Any) -> None:
    """DeleteObjects reports its failures with status 200."""
    filesystem, path = open_filesystem(f"s3://{ROOT}/doomed")
    for number in range(3):
        direct.pipe_file(f"{path}/{number}", b"x")
    filesystem.invalidate_cache()
    store.disturb(Fault("hidden-error", method="POST", first=2))
    filesystem.rm(path, recursive=True)
    assert store.done["hidden-error"] == 2
    direct.invalidate_cache()
    assert not any("/doomed/" in found for found in direct.find(path))


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9"])
def test_a_budget_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUDGET, text)
    with pytest.raises(UsageError, match=BUDGET):
        open_filesystem("s3://bucket/x")
    monkeypatch.setenv(BUDGET, "")
    assert retry_seconds() == 60.0


@pytest.fixture(scope="module")
def ray_cluster(weak: FaultProxy) -> Iterator[None]:
    with ray_session(None):
        yield


def run_on_ray(source: str, output: str, model: Path, *listeners: Any) -> RunReport:
    return run(
        settings(source, output, model, precision="fp32", include=["store", "tiff"]), listeners
    )


@pytest.fixture(scope="module")
def on_ray(
    weak: FaultProxy, direct: Any, source: str, model_path: Path, ray_cluster: None
) -> dict[str, bytes]:
    """The undisturbed result with as many threads as a worker on Ray has."""
    weak.heal()
    assert run_on_ray(source, f"s3://{ROOT}/on-ray", model_path).exit_status == 0
    return objects(direct, f"s3://{ROOT}/on-ray")


def test_a_whole_run_on_a_weak_store(
    weak: FaultProxy, direct: Any, source: str, model_path: Path, on_ray: dict[str, bytes]
) -> None:
    output = f"s3://{ROOT}/weak"
    weak.disturb(*(Fault(kind, 0.02) for kind in ("slow-down", "reset", "cut", "lost-reply")))
    report = run_on_ray(source, output, model_path)
    assert sum(weak.done.values()) > 5
    weak.heal()
    assert (report.exit_status, report.notes) == (0, [])
    assert objects(direct, output) == on_ray


def test_a_store_that_stays_away_ends_the_run_and_the_next_finishes_it(
    weak: FaultProxy, direct: Any, source: str, model_path: Path, on_ray: dict[str, bytes]
) -> None:
    output = f"s3://{ROOT}/away-for-long"

    def goes_away(event: events.Event) -> None:
        if isinstance(event, events.TileFinished):
            weak.disturb(Fault("slow-down"))

    weak.heal()
    began = time.monotonic()
    report = run_on_ray(source, output, model_path, goes_away)
    assert time.monotonic() - began < 40.0
    assert report.exit_status == 3 and report.count("quarantined") == 2
    lines = [row.reason for row in report.rows] + report.notes
    assert all("gave no answer" in line and "\n" not in line for line in lines)
    assert any("report was not written" in line for line in report.notes)
    weak.heal()
    assert [path for path in direct.find(output) if path.endswith(".zarr/zarr.json")] == []
    second = run_on_ray(source, output, model_path)
    assert second.exit_status == 0 and sum(row.tiles_kept for row in second.rows) >= 1
    assert objects(direct, output) == on_ray


def test_a_store_away_from_the_start_is_one_line(
    weak: FaultProxy, source: str, model_path: Path, tmp_path: Path
) -> None:
    weak.disturb(Fault("internal-error"))
    done = sr_archive("run", source, f"s3://{ROOT}/never", "--model", model_path)
    weak.heal()
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "last: 500" in done.stderr
