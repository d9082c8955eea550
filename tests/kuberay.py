"""The fields of KubeRay's RayCluster and RayJob, and a check of manifests against them.

KubeRay's definitions of a megabyte each come with no package; their own fields are stated here
after its API reference (ray.io/v1, KubeRay 1.6.2). The pods inside them, which are most of those
definitions, are checked against Kubernetes' own schema.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

Json = dict[str, Any]
KUBERNETES = "1.34"

_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer", "minimum": 0}
_FLAG: Json = {"type": "boolean"}
_TEXTS: Json = {"type": "object", "additionalProperties": _TEXT}
_ANY: Json = {"type": "object"}
_LIST: Json = {"type": "array"}


def _closed(required: list[str], **fields: Json) -> Json:
    return {
        "type": "object",
        "required": required,
        "properties": fields,
        "additionalProperties": False,
    }


_GROUP = {"template": _ANY, "rayStartParams": _TEXTS, "resources": _TEXTS, "labels": _TEXTS}
_HEAD = _closed(
    ["template", "rayStartParams"],
    **_GROUP,
    headService=_ANY,
    enableIngress=_FLAG,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
_WORKERS = _closed(
    ["groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"],
    **_GROUP,
    suspend=_FLAG,
    groupName=_TEXT,
    replicas=_WHOLE,
    minReplicas=_WHOLE,
    maxReplicas=_WHOLE,
    idleTimeoutSeconds=_WHOLE,
    scaleStrategy=_ANY,
    numOfHosts=_WHOLE,
)
_AUTOSCALER = _closed(
    [],
    resources=_ANY,
    image=_TEXT,
    imagePullPolicy=_TEXT,
    securityContext=_ANY,
    idleTimeoutSeconds=_WHOLE,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env=_LIST,
    envFrom=_LIST,
    volumeMounts=_LIST,
)
_CLUSTER = _closed(
    ["headGroupSpec"],
    suspend=_FLAG,
    managedBy=_TEXT,
    authOptions=_closed(
        [],
        mode={"enum": ["disabled", "token"]},
        secretName=_TEXT,
        enableK8sTokenAuth=_FLAG,
    ),
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_TEXTS,
    enableInTreeAutoscaling=_FLAG,
    gcsFaultToleranceOptions=_ANY,
    headGroupSpec=_HEAD,
    rayVersion=_TEXT,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB = _closed(
    [],
    activeDeadlineSeconds=_WHOLE,
    backoffLimit=_WHOLE,
    rayClusterSpec=_CLUSTER,
    submitterPodTemplate=_ANY,
    metadata=_TEXTS,
    clusterSelector=_TEXTS,
    submitterConfig=_closed([], backoffLimit=_WHOLE),
    managedBy=_TEXT,
    deletionStrategy=_ANY,
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    jobId=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=_TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=_WHOLE,
    shutdownAfterJobFinishes=_FLAG,
    suspend=_FLAG,
)
_KINDS = {"RayCluster": _CLUSTER, "RayJob": _JOB}


def validate(document: Json) -> None:
    """Raise an error unless the API server of a cluster with KubeRay would take the document.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError
    """
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(_KINDS[document["kind"]]).validate(document["spec"])
    for template in pod_templates(document):
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(pods, KUBERNETES, strict=True)


def cluster_of(document: Json) -> Json:
    """The spec of a RayCluster, also of that inside a RayJob."""
    spec: Json = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pod_templates(document: Json) -> list[Json]:
    """Every pod template of a document that has some."""
    if document["kind"] == "Deployment":
        return [document["spec"]["template"]]
    if document["apiVersion"] != "ray.io/v1":
        return []
    cluster = cluster_of(document)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    submitter = document["spec"].get("submitterPodTemplate")
    return [group["template"] for group in groups] + ([submitter] if submitter else [])
