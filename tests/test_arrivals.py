"""New objects in a bucket lead to a published result, with no further command."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import Any

import fsspec
import pytest
import xarray as xr
from fastapi.testclient import TestClient

from infra.arrivals import Announcer, Arrivals, application, objects_of
from infra.local_s3 import LocalS3
from infra.prefect_local import NEW_ACQUISITIONS, LocalPrefect, Watch
from infra.processes import free_port
from tests.archives import SCALE_FACTOR, counts, write_model
from tests.flow_runs import DONE, FINAL, wait_until
from tests.scenes import write_zarr

TOKEN = "a secret of the tests"
S3_RECORD = {
    "eventName": "s3:ObjectCreated:Put",
    "s3": {"bucket": {"name": "archive"}, "object": {"key": "scenes/a+b%C3%BC.tif", "size": 5}},
}
EVENTBRIDGE = {
    "detail-type": "Object Created",
    "detail": {"bucket": {"name": "archive"}, "object": {"key": "scenes/a b.tif"}},
}
SEAWEEDFS = {"event_type": "create", "key": "/buckets/archive/scenes/a b.tif", "message": {}}


@pytest.mark.parametrize(
    ("notification", "objects"),
    [
        ({"Records": [S3_RECORD, S3_RECORD]}, ["s3://archive/scenes/a bü.tif"] * 2),
        ({"Records": [{**S3_RECORD, "eventName": "ObjectRemoved:Delete"}]}, []),
        (EVENTBRIDGE, ["s3://archive/scenes/a b.tif"]),
        ({**EVENTBRIDGE, "detail-type": "Object Deleted"}, []),
        (SEAWEEDFS, ["s3://archive/scenes/a b.tif"]),
        ({**SEAWEEDFS, "event_type": "delete"}, []),
        ({**SEAWEEDFS, "key": "/etc/passwd"}, []),
        (None, []),
        ([S3_RECORD], []),
        ({"Records": "ObjectCreated"}, []),
        ({"Records": [None, 3, {"eventName": "ObjectCreated", "s3": []}]}, []),
        ({"Records": [{"eventName": "ObjectCreated", "s3": {"bucket": {"name": "b"}}}]}, []),
        ({"detail-type": "Object Created", "detail": {"bucket": "b", "object": None}}, []),
    ],
)
def test_objects_of_notifications(notification: Any, objects: list[str]) -> None:
    assert list(objects_of(notification)) == objects


def test_prefect_is_told_when_it_is_quiet() -> None:
    arrivals = Arrivals("s3://archive/scenes")
    assert not arrivals.due(30, 1000)
    assert not arrivals.add("s3://archive/scenes-of-others/x", 0)
    assert arrivals.add("s3://archive/scenes/x", 100)
    assert arrivals.add("s3://archive/scenes/y", 120)
    assert not arrivals.due(30, 149)
    assert arrivals.due(30, 150)
    for second in range(120, 700, 10):
        assert not arrivals.due(30, second - 0.1)
        arrivals.add("s3://archive/scenes/z", second)
    assert arrivals.due(30, 700), "an upload without a pause must not be waited for without end"


def test_only_who_has_the_token_is_heard() -> None:
    announcer = Announcer(["s3://archive/scenes"], quiet=3600)
    client = TestClient(application(announcer, TOKEN))
    body = json.dumps({"Records": [S3_RECORD]})
    basic = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    for header in ("", "Bearer", "Bearer wrong", "Basic !!!", "Basic " + basic[:-4]):
        answer = client.post("/", content=body, headers={"Authorization": header})
        assert answer.status_code == 401
    for header in (f"Bearer {TOKEN}", f"Basic {basic}"):
        answer = client.post("/", content=body, headers={"Authorization": header})
        assert (answer.status_code, answer.json()) == (202, {"objects": 1})


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"\xff\xfe", 400), (b"[" * 200_000, 400), (b" " * 2**21, 413)],
)
def test_what_is_no_notification_is_refused(body: bytes, status: int) -> None:
    client = TestClient(application(Announcer(["s3://archive/scenes"], 3600), TOKEN))
    answer = client.post("/", content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == status


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scene_that_is_dropped_into_a_bucket_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS calls the web hook, which tells Prefect, whose trigger starts the deployment."""
    token, port = secrets.token_urlsafe(24), free_port()
    model = write_model(tmp_path)
    with LocalS3(webhook=(f"http://127.0.0.1:{port}/", token)) as server:
        source, output = server.url("scenes"), server.url("superres")
        for name, value in server.merged_environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SR_ARCHIVE_MODEL", str(model))
        watch = Watch(source, output, token, port, quiet=2.0)
        with LocalPrefect(tmp_path / "prefect", free_port(), watch=watch) as prefect:
            assert flow_runs(prefect) == []
            write_zarr(tmp_path / "late.zarr", counts(24, 24), scale_factor=SCALE_FACTOR)
            filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
            filesystem.put(str(tmp_path / "late.zarr"), f"{source}/late.zarr", recursive=True)
            wait_until(lambda: flow_runs(prefect) != [], "a flow run by itself")
            wait_until(lambda: all_ended(prefect), "the end of the flow run")
            states = [run["state"] for run in flow_runs(prefect)]
            assert [(state["type"], state["message"]) for state in states] == [("COMPLETED", DONE)]
        scene = xr.open_zarr(f"{output}/late.zarr")
        assert scene["reflectance"].shape == (12, 96, 96)


def flow_runs(prefect: LocalPrefect) -> list[dict[str, Any]]:
    """Of new-acquisitions, but for those that its schedule has planned."""
    deployment = prefect.request(f"/deployments/name/{NEW_ACQUISITIONS}")["id"]
    query = {"deployments": {"id": {"any_": [deployment]}}}
    runs: list[dict[str, Any]] = prefect.request("/flow_runs/filter", query)
    return [run for run in runs if not run["auto_scheduled"]]


def all_ended(prefect: LocalPrefect) -> bool:
    return all(run["state"]["type"] in FINAL for run in flow_runs(prefect))
