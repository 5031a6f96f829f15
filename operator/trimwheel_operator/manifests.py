"""The Kubernetes objects that the operator makes: pure functions of a model and the settings.

Called by the models story (TuningRun Jobs are in `jobs`). Admission (trimwheel-operator-objects)
accepts these shapes alone, so that a change here is one there. A Deployment's pod template depends
on the model's spec and the settings alone, never on a policy: changing a policy must not restart a
pod. Each manifest carries the hash of itself, which tells whether it has to be applied again.
"""

from __future__ import annotations

import json
from typing import Any

from trimwheel_api import names, worker_config
from trimwheel_api.kinds import AdaptiveModel, dump
from trimwheel_api.policy import canonical_json, digest_of
from trimwheel_operator.settings import Settings

Json = dict[str, Any]

GRACE_SECONDS = 30
LAST_WORDS = "FallbackToLogsOnError"
"""The end of a failed container's log is in its pod's status, where `causes` reads it."""
_STARTUP_PERIODS = 150


def worker_objects(model: AdaptiveModel, owner: Json, settings: Settings) -> list[Json]:
    """Everything that serves one model, in the order in which it has to exist."""
    made = [
        _service_account(model, settings),
        _role(model),
        _role_binding(model),
        _service(model, settings),
        _deployment(model, settings),
    ]
    return [_finished(manifest, model, owner) for manifest in made]


def selector(model: str) -> dict[str, str]:
    """Labels that find the worker pods of a model."""
    return {
        names.LABEL_NAME: "trimwheel-worker",
        names.LABEL_INSTANCE: model,
        names.LABEL_COMPONENT: names.COMPONENT_WORKER,
    }


def labels(model: str) -> dict[str, str]:
    """Labels of every worker object."""
    return selector(model) | {
        names.LABEL_PART_OF: names.PART_OF,
        names.LABEL_MANAGED_BY: names.OPERATOR_ACCOUNT,
        names.LABEL_MODEL: model,
    }


def hash_of(manifest: Json) -> str:
    """What the spec-hash annotation of a finished manifest says."""
    annotations: dict[str, str] = manifest["metadata"].get("annotations", {})
    return annotations.get(names.ANNOTATION_SPEC_HASH, "")


def _finished(manifest: Json, model: AdaptiveModel, owner: Json) -> Json:
    metadata = manifest["metadata"]
    metadata |= {
        "namespace": model.metadata.namespace,
        "labels": labels(model.name),
        "ownerReferences": [owner],
    }
    digest = digest_of(canonical_json(manifest)).removeprefix("sha256:")
    own = {names.ANNOTATION_SPEC_HASH: digest[: names.LABEL_DIGEST_LENGTH]}
    metadata["annotations"] = metadata.get("annotations", {}) | own
    return manifest


def _service_account(model: AdaptiveModel, settings: Settings) -> Json:
    annotations = dict(settings.worker_account_annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": names.worker_account(model.name), "annotations": annotations},
    }


def _role(model: AdaptiveModel) -> Json:
    """A worker may read its own assignment by name, and write leases (admission: only its own)."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": names.worker_account(model.name)},
        "rules": [
            {
                "apiGroups": [names.GROUP],
                "resources": ["policyassignments"],
                "resourceNames": [model.name],
                "verbs": ["get", "watch"],
            },
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["create", "patch"],
            },
        ],
    }


def _role_binding(model: AdaptiveModel) -> Json:
    account = names.worker_account(model.name)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [
            {"kind": "ServiceAccount", "name": account, "namespace": model.metadata.namespace}
        ],
    }


def _service(model: AdaptiveModel, settings: Settings) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": model.name},
        "spec": {
            "selector": selector(model.name),
            "ports": [
                {
                    "name": "http",
                    "port": settings.service_port,
                    "targetPort": names.WORKER_PORT,
                    "protocol": "TCP",
                }
            ],
        },
    }


def _deployment(model: AdaptiveModel, settings: Settings) -> Json:
    """No pod that serves ends before its successor is Ready: a bad spec takes nobody away.

    On a node without a second GPU the successor waits, and the model's condition says for what.
    """
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(names.WORKER_PROBES_PORT),
        "prometheus.io/path": "/metrics",
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": model.name},
        "spec": {
            "replicas": model.spec.replicas,
            "selector": {"matchLabels": selector(model.name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {"labels": labels(model.name), "annotations": annotations},
                "spec": _pod(model, settings),
            },
        },
    }


def _pod(model: AdaptiveModel, settings: Settings) -> Json:
    mounts = [
        {"name": "model", "mountPath": worker_config.MODEL_PATH},
        {"name": "state", "mountPath": worker_config.STATE_PATH},
    ]
    secrets = _secrets(model)
    return {
        "serviceAccountName": names.worker_account(model.name),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": unprivileged(),
        **pull_secrets(settings),
        "volumes": [
            *({"name": mount["name"], "emptyDir": {}} for mount in mounts),
            *({"name": name, "secret": {"secretName": of}} for name, of, _ in secrets),
        ],
        "initContainers": [_fetch(model, settings, mounts[:1])],
        "containers": [_worker(model, settings, mounts + _mounts_of(secrets))],
    }


def _secrets(model: AdaptiveModel) -> list[tuple[str, str, str]]:
    """Volume, Secret and path of each Secret that the model's workers need."""
    access = model.spec.access
    wanted = (
        ("tokens", access.tokens_secret, worker_config.TOKENS_PATH),
        ("tls", access.tls_secret, worker_config.TLS_PATH),
    )
    return [(name, secret, path) for name, secret, path in wanted if secret]


def _mounts_of(secrets: list[tuple[str, str, str]]) -> list[Json]:
    return [{"name": name, "mountPath": path} for name, _, path in secrets]


def _fetch(model: AdaptiveModel, settings: Settings, mounts: list[Json]) -> Json:
    source = model.spec.model
    return {
        "name": "fetch",
        "image": settings.worker_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "trimwheel_workers", "fetch"],
        "args": [
            *("--uri", literal(source.uri), "--digest", literal(source.digest)),
            *("--to", worker_config.MODEL_PATH),
        ],
        "env": [
            {"name": "MLFLOW_TRACKING_URI", "value": settings.mlflow_tracking_uri},
            {"name": "TRIMWHEEL_ALLOWED_PREFIXES", "value": settings.allowed_prefixes},
            *(dict(one) for one in settings.worker_env),
        ],
        "volumeMounts": mounts,
        "terminationMessagePolicy": LAST_WORDS,
        "securityContext": restricted(),
    }


def _worker(model: AdaptiveModel, settings: Settings, mounts: list[Json]) -> Json:
    spec = model.spec
    config = worker_config.WorkerConfig(
        model=model.name,
        namespace=model.metadata.namespace,
        model_digest=spec.model.digest,
        engine=spec.engine,
        objectives=spec.objectives,
        tokens_path=worker_config.TOKENS_PATH if spec.access.tokens_secret else "",
        tls_path=worker_config.TLS_PATH if spec.access.tls_secret else "",
        keep_inputs=spec.audits.inputs == "sampled",
        records_uri=settings.records_uri,
        port=names.WORKER_PORT,
        probes_port=names.WORKER_PROBES_PORT,
    )
    document = literal(json.dumps(dump(config), sort_keys=True))
    return {
        "name": "worker",
        "image": settings.worker_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "trimwheel_workers", "serve"],
        "env": [
            {"name": worker_config.ENVIRONMENT, "value": document},
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_UID", "metadata.uid"),
            from_field("POD_IP", "status.podIP"),
            {"name": "TRIMWHEEL_BIND", "value": settings.bind},
            {"name": "OMP_NUM_THREADS", "value": str(spec.engine.threads)},
            *(dict(one) for one in settings.worker_env),
        ],
        "ports": [
            {"name": "http", "containerPort": names.WORKER_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": names.WORKER_PROBES_PORT, "protocol": "TCP"},
        ],
        "resources": {
            key: value
            for key, value in (
                ("requests", dict(spec.resources.requests)),
                ("limits", dict(spec.resources.limits)),
            )
            if value
        },
        "volumeMounts": mounts,
        "startupProbe": _probe("ready", period=2, failures=_STARTUP_PERIODS),
        "readinessProbe": _probe("ready", period=2, failures=3),
        "livenessProbe": _probe("live", period=10, failures=6),
        "terminationMessagePolicy": LAST_WORDS,
        "securityContext": restricted(),
    }


def _probe(what: str, period: int, failures: int) -> Json:
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": names.WORKER_PROBES_PORT},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 3,
    }


def literal(text: str) -> str:
    """A user's text as an argument or variable that the kubelet leaves as it is.

    Unescaped, `$(NAME)` in a model's address would be replaced by that variable of the container,
    which may be a secret of the registry, and end in a request or a log.
    """
    return text.replace("$", "$$")


def from_field(name: str, path: str) -> Json:
    """A variable that the kubelet fills in from the pod's own fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def pull_secrets(settings: Settings) -> Json:
    """The part of a pod's spec that names registry credentials; nothing when there are none."""
    found = [{"name": name} for name in settings.image_pull_secrets]
    return {"imagePullSecrets": found} if found else {}


def unprivileged() -> Json:
    """Security context of every pod that we make."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted() -> Json:
    """Security context of every container that we make."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": False,
        "capabilities": {"drop": ["ALL"]},
    }
