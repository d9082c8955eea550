"""The policies under infra/aws against what the code asks of S3, observed on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from infra.local_s3 import LocalS3
from pipeline.integrity import verify_scene
from pipeline.inventory import scenes_of
from pipeline.job import load_model
from pipeline.lease import Leases
from pipeline.settings import RunSettings
from pipeline.stac.publication import bring_up_to_date, save_quicklook
from pipeline.storage import open_filesystem
from pipeline.store import SceneStore
from tests.archives import SCALE_FACTOR, counts, write_model
from tests.fault_proxy import FaultProxy
from tests.iam import Need, allows, as_list, needs
from tests.scenes import write_geotiff, write_zarr
from tests.test_store_faults import _forget_connections, super_resolve

AWS = Path(__file__).parent.parent / "infra" / "aws"
# Only an upload in parts that is given up sends it.
UNOBSERVED = {"s3:AbortMultipartUpload"}


def read(name: str) -> Any:
    return json.loads((AWS / name).read_text())


def data_statements() -> list[dict[str, Any]]:
    """Of the data policy, with the one bucket of the tests in the place of both."""
    text = (AWS / "iam-policy-data.json").read_text()
    for name in ("SOURCE-BUCKET", "OUTPUT-BUCKET"):
        text = text.replace(name, "archive")
    return list(json.loads(text)["Statement"])


@pytest.fixture(scope="module")
def observed(s3: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> set[Need]:
    """What every step of the product needs, from `scenes` to `superres` in one bucket."""
    folder = tmp_path_factory.mktemp("scenes")
    write_geotiff(folder / "tiff.tif", counts(16, 16), scale=SCALE_FACTOR)
    write_zarr(folder / "store.zarr", counts(16, 16, seed=2), scale_factor=SCALE_FACTOR)
    model = write_model(tmp_path_factory.mktemp("model"))
    with FaultProxy(s3.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        _forget_connections()
        filesystem, _ = open_filesystem("s3://archive")
        filesystem.put(f"{folder}/", "archive/scenes", recursive=True)
        proxy.disturb()  # what put the scenes there is not the product's
        _use_everything("s3://archive/scenes", "s3://archive/superres", model)
        recorded = list(proxy.log)
    _forget_connections()
    return {need for request in recorded for need in needs(*request)}


def _use_everything(source: str, output: str, model_path: Path) -> None:
    model = load_model(RunSettings(source=source, output=output, model=str(model_path)))
    super_resolve(source, output, model)
    with Leases(output, "run", 30) as leases:
        assert leases.take("tiff") is None
        leases.keep("tiff")
        leases.release("tiff")
    store = SceneStore(output, "tiff")
    save_quicklook(output, "tiff")
    found = {entry.scene_id: entry.fingerprint for entry in scenes_of(output)}
    bring_up_to_date(output, found, [])
    assert verify_scene(store, deep=True) == []
    store.quarantine({"code": "unreadable", "message": "of a test"})
    store.clear_quarantine()
    store.unpublish()
    bring_up_to_date(output, {}, ["tiff"])
    filesystem, path = open_filesystem(f"{output}/large")
    filesystem.pipe_file(path, bytes(11 << 20), chunksize=5 << 20)  # as shards over 100 MB are


def test_the_policy_allows_all_that_the_code_asks(observed: set[Need]) -> None:
    assert {need.action for need in observed} | UNOBSERVED == {
        action for each in data_statements() for action in as_list(each["Action"])
    }
    refused = [need for need in observed if not allows(data_statements(), need)]
    assert refused == []


def _without_one_action() -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    for index, statement in enumerate(data_statements()):
        for action in set(as_list(statement["Action"])) - UNOBSERVED:
            less = data_statements()
            less[index]["Action"] = [a for a in as_list(statement["Action"]) if a != action]
            yield statement["Sid"], action, less


def test_the_policy_allows_nothing_that_the_code_does_not_ask(observed: set[Need]) -> None:
    for statement, action, less in _without_one_action():
        assert not all(allows(less, need) for need in observed), f"{statement}: {action}"


@pytest.mark.parametrize(
    ("action", "key"),
    [
        ("s3:PutObject", "archive/scenes/tiff.tif"),
        ("s3:DeleteObject", "archive/scenes/tiff.tif"),
        ("s3:GetObject", "archive/private/x"),
        ("s3:PutObject", "archive/superres-of-others/x"),
        ("s3:GetObject", "others/scenes/x"),
    ],
)
def test_the_policy_refuses_what_is_not_ours(action: str, key: str) -> None:
    assert not allows(data_statements(), Need(action, f"arn:aws:s3:::{key}"))
    assert not allows(data_statements(), Need("s3:ListBucket", "arn:aws:s3:::archive", ""))


def test_the_lifecycle_rules_are_s3s_and_expire_nothing_that_is_current() -> None:
    rules = read("lifecycle.json")
    model = botocore.session.get_session().get_service_model("s3")
    shape = model.operation_model("PutBucketLifecycleConfiguration").input_shape
    request = {"Bucket": "b", "LifecycleConfiguration": rules}
    assert ParamValidator().validate(request, shape).generate_report() == ""
    current = {name for rule in rules["Rules"] for name in rule.get("Expiration", {})}
    assert current == {"ExpiredObjectDeleteMarker"}


def test_the_bucket_policy_refuses_plain_http_and_nothing_else() -> None:
    [statement] = read("bucket-policy-tls.json")["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_autoscaler_changes_only_machines_of_its_cluster() -> None:
    free = []
    for statement in read("iam-policy-autoscaler.json")["Statement"]:
        if "Condition" not in statement:
            free += as_list(statement["Action"])
        assert all("*" not in action for action in as_list(statement["Action"]))
    assert {action for action in free if "Describe" not in action} == {"ec2:RunInstances"}
