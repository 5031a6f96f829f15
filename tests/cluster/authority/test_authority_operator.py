"""What the operator's account may make: workers and Jobs as the chart describes them, nothing else.

RBAC lets it create Deployments, accounts and roles in every namespace; admission says which. Each
case here starts from what the operator really makes and changes one thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from kubernetes import client

from trimwheel_api import names
from trimwheel_api.errors import Refused
from trimwheel_api.kinds import AdaptiveModel, TuningRun
from trimwheel_api.names import RELEASE_NAMESPACE
from trimwheel_local.layout import checkout
from trimwheel_local.testing import eventually
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.jobs import tuning_job
from trimwheel_operator.manifests import worker_objects
from trimwheel_operator.settings import Settings

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
Change = Callable[[Json], None]

SHAPE = "charts/trimwheel/ci/embedded-values.yaml"


def settings() -> Settings:
    """The operator's settings as the embedded chart gives them."""
    root = checkout()
    assert root is not None
    images = yaml.safe_load((root / SHAPE).read_text())["images"]
    image = {part: f"{images[part]['repository']}:{images[part]['tag']}" for part in images}
    return Settings(worker_image=image["workers"], pipelines_image=image["pipelines"])


def workers_of(namespace: str, uid: str = "uid-of-the-model", **spec: Any) -> dict[str, Json]:
    """What the operator makes for model `m`, by kind."""
    body = {
        "metadata": {"name": "m", "namespace": namespace, "uid": uid},
        "spec": {"model": {"uri": "models:/m/1", "digest": "sha256:" + "a" * 64}, **spec},
    }
    model = AdaptiveModel.model_validate(body)
    owner = {
        "apiVersion": names.API_VERSION, "kind": "AdaptiveModel", "name": "m",
        "uid": uid, "controller": True,
    }  # fmt: skip
    return {made["kind"]: made for made in worker_objects(model, owner, settings())}


def job_of(namespace: str) -> Json:
    body = {
        "metadata": {"name": "t", "namespace": namespace, "uid": f"{namespace[-8:]}-uid"},
        "spec": {"model": "m"},
    }
    return tuning_job(TuningRun.model_validate(body), "1h", settings())


def attempt(stage: Any, manifest: Json) -> Any:
    """The operator creates the object, as a dry run."""
    namespace = manifest["metadata"]["namespace"]
    return stage.operator.call("POST", path_of(manifest["kind"], namespace), manifest, dryRun="All")


def at(path: str, value: Any) -> Change:
    """Put `value` at a dotted path; numbers index lists, and `+` appends."""

    def change(manifest: Json) -> None:
        *way, last = path.split(".")
        place: Any = manifest
        for part in way:
            place = place[int(part)] if part.isdecimal() else place.setdefault(part, {})
        if last == "+":
            place.append(value)
        elif isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value

    return change


def label(key: str, value: str) -> Change:
    def change(manifest: Json) -> None:
        manifest["metadata"]["labels"][key] = value

    return change


def as_another_model(manifest: Json) -> None:
    manifest["metadata"]["ownerReferences"][0]["name"] = "other"


POD = "spec.template.spec"
MAIN = f"{POD}.containers.0"
HOST_PATH = {"name": "host", "hostPath": {"path": "/"}}
SECRET = {"name": "secret", "secret": {"secretName": "s"}}
TOKEN = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
EXEC = {"exec": {"command": ["sh"]}}
FROM_SECRET = {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
OTHER = {"name": "worker-2", "image": "evil", "command": ["sh"]}

PODS: dict[str, Change] = {
    "in the host's network": at(f"{POD}.hostNetwork", True),
    "among the host's processes": at(f"{POD}.hostPID", True),
    "in the host's IPC": at(f"{POD}.hostIPC", True),
    "with one process namespace": at(f"{POD}.shareProcessNamespace", True),
    "on a node of its choice": at(f"{POD}.nodeName", "control-plane"),
    "with hosts of its own": at(f"{POD}.hostAliases", [{"ip": "1.2.3.4", "hostnames": ["s3"]}]),
    "with a resolver of its own": at(f"{POD}.dnsConfig", {"nameservers": ["1.2.3.4"]}),
    "as root": at(f"{POD}.securityContext", {"runAsUser": 0}),
    "with the host's files": at(f"{POD}.volumes.+", HOST_PATH),
    "with a Secret as files": at(f"{POD}.volumes.+", SECRET),
    "with any Secret as clients' tokens": at(
        f"{POD}.volumes.+", {"name": "tokens", "secret": {"secretName": "s"}}
    ),
    "with a Secret of workers as something else": at(
        f"{POD}.volumes.+", {"name": "other", "secret": {"secretName": "trimwheel-s"}}
    ),
    "with another token": at(f"{POD}.volumes.+", TOKEN),
    "with somebody's registry secret": at(f"{POD}.imagePullSecrets", [{"name": "s"}]),
    "with one more container": at(f"{POD}.containers.+", OTHER),
    "with another image": at(f"{MAIN}.image", "evil"),
    "with another command": at(f"{MAIN}.command", ["sh", "-c", "id"]),
    "privileged": at(f"{MAIN}.securityContext", {"privileged": True}),
    "with a capability": at(
        f"{MAIN}.securityContext.capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    ),
    "that may escalate": at(f"{MAIN}.securityContext.allowPrivilegeEscalation", True),
    "with a container that is root": at(f"{MAIN}.securityContext.runAsUser", 0),
    "with a hook": at(f"{MAIN}.lifecycle", {"postStart": EXEC}),
    "with a command as a probe": at(f"{MAIN}.startupProbe", EXEC),
    "with a Secret as variables": at(f"{MAIN}.envFrom", [{"secretRef": {"name": "s"}}]),
    "with a variable from a Secret": at(f"{MAIN}.env.+", FROM_SECRET),
    "with a variable of its own": at(f"{MAIN}.env.+", {"name": "LD_PRELOAD", "value": "x"}),
    "with annotations for an injector": at(
        "spec.template.metadata.annotations", {"vault.hashicorp.com/agent-inject": "true"}
    ),
}
"""What neither a worker's pod nor a Job's may have."""

DEPLOYMENTS: dict[str, Change] = {
    **PODS,
    "as the default account": at(f"{POD}.serviceAccountName", "default"),
    "as another model's account": at(f"{POD}.serviceAccountName", "other-trimwheel-worker"),
    "as the account that certifies": at(f"{POD}.serviceAccountName", names.TUNING_ACCOUNT),
    "whose init step is another": at(f"{POD}.initContainers.0.command", ["sh"]),
    "with arguments for the server": at(f"{MAIN}.args", ["--debug"]),
}
JOBS: dict[str, Change] = {
    **PODS,
    "as the default account": at(f"{POD}.serviceAccountName", "default"),
    "as the loop": at(f"{POD}.serviceAccountName", names.PIPELINES_ACCOUNT),
    "as the operator": at(f"{POD}.serviceAccountName", names.OPERATOR_ACCOUNT),
    "with an init step": at(f"{POD}.initContainers", [OTHER]),
    "of another name": at("metadata.name", "backup"),
    "without the label of a TuningRun": label(names.LABEL_COMPONENT, "other"),
    "of another's TuningRun": at(f"{MAIN}.args.1", "kube-system"),
    "with more arguments": at(f"{MAIN}.args.+", "--help"),
    "that runs the loop": at(f"{MAIN}.command.3", "run"),
    "that reads another record store": at(
        f"{MAIN}.env.+", {"name": "TRIMWHEEL_RECORDS_URI", "value": "s3://evil"}
    ),
    "that trusts another Ray": at(
        f"{MAIN}.env.+", {"name": "TRIMWHEEL_RAY_ADDRESS", "value": "ray://evil"}
    ),
    "that reads another ConfigMap": at(f"{MAIN}.envFrom.0.configMapRef.name", "evil"),
    "with a volume of its choice": at(
        f"{POD}.volumes.+", {"name": "v", "persistentVolumeClaim": {"claimName": "ledger"}}
    ),
}
ROLE = {"apiGroups": [names.GROUP], "resources": ["policyassignments"], "verbs": ["get"]}
LEASE_READER = {
    "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["watch"],
}  # fmt: skip
OBJECTS: dict[str, tuple[str, Change]] = {
    "an account with a Secret": ("ServiceAccount", at("secrets", [{"name": "s"}])),
    "an account with a registry secret": (
        "ServiceAccount", at("imagePullSecrets", [{"name": "s"}]),
    ),
    "an account with a cloud identity": (
        "ServiceAccount", at("metadata.annotations", {"eks.amazonaws.com/role-arn": "admin"}),
    ),
    "an account of another name": ("ServiceAccount", at("metadata.name", "default")),
    "a role over every assignment": ("Role", at("rules.0", ROLE)),
    "a role over another model's assignment": ("Role", at("rules.0.resourceNames", ["other"])),
    "a role that lists leases": ("Role", at("rules.1.verbs", ["create", "list"])),
    "a role that reads leases": ("Role", at("rules.0", LEASE_READER)),
    "a role of another name": ("Role", at("metadata.name", "editors")),
    "a binding of another name": ("RoleBinding", at("metadata.name", "editors")),
    "a binding for everybody": (
        "RoleBinding", at("subjects", [{"kind": "Group", "name": "system:authenticated",
                                        "apiGroup": "rbac.authorization.k8s.io"}]),
    ),
    "a binding of a ClusterRole": (
        "RoleBinding", at("roleRef", {"kind": "ClusterRole", "name": "trimwheel-operator",
                                      "apiGroup": "rbac.authorization.k8s.io"}),
    ),
    "a binding for a person": (
        "RoleBinding", at("subjects", [{"kind": "User", "name": "eve",
                                        "apiGroup": "rbac.authorization.k8s.io"}]),
    ),
    "a binding for an account elsewhere": ("RoleBinding", at("subjects.0.namespace", "default")),
    "a Service to the outside": ("Service", at("spec.type", "LoadBalancer")),
    "a Service with a host's address": ("Service", at("spec.externalIPs", ["1.2.3.4"])),
    "a Service to other pods": ("Service", at("spec.selector", {"app": "database"})),
    "a Service of another name": ("Service", at("metadata.name", "database")),
    "a Deployment of another name": ("Deployment", at("metadata.name", "database")),
    "a Deployment owned by another model": ("Deployment", as_another_model),
    "a Deployment without an owner": ("Deployment", at("metadata.ownerReferences", [])),
    "a Deployment labelled as the operator": (
        "Deployment", label(names.LABEL_COMPONENT, names.COMPONENT_OPERATOR),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_force(stage: Any) -> None:
    """A policy bites about a second after it was installed; and a binding needs its Role."""
    made = workers_of(stage.namespace)
    for manifest in (
        changed(made["Deployment"], PODS["as root"]),
        changed(job_of(stage.namespace), PODS["as root"]),
    ):
        eventually(lambda body=manifest: attempt(stage, body).policy, "the operator is bound")  # type: ignore[misc]
    path = path_of("Role", stage.namespace)
    assert stage.root.call("POST", path, made["Role"] | {"metadata": role_metadata()}).allowed


def role_metadata() -> Json:
    """Of a Role that nothing owns, so that the collector leaves it alone."""
    return {"name": names.worker_account("m")}


def changed(manifest: Json, change: Change) -> Json:
    made = copy.deepcopy(manifest)
    change(made)
    return made


def test_what_the_operator_makes_is_accepted(stage: Any) -> None:
    made = {**workers_of(stage.namespace), "Job": job_of(stage.namespace)}
    assert len(made) == 6
    made["Role"] = copy.deepcopy(made["Role"])
    made["Role"]["metadata"]["name"] = names.worker_account("n")
    made["Role"]["metadata"]["labels"][names.LABEL_MODEL] = "n"
    made["Role"]["metadata"]["ownerReferences"][0]["name"] = "n"
    made["Role"]["rules"][0]["resourceNames"] = ["n"]
    for kind, manifest in made.items():
        answer = attempt(stage, manifest)
        assert answer.allowed, (kind, answer.message)


def test_workers_get_the_secrets_that_are_meant_for_them(stage: Any) -> None:
    access = {"tokensSecret": "trimwheel-clients", "tlsSecret": "trimwheel-tls"}
    answer = attempt(stage, workers_of(stage.namespace, access=access)["Deployment"])
    assert answer.allowed, answer.message


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_no_deployment(stage: Any, name: str) -> None:
    answer = attempt(stage, changed(workers_of(stage.namespace)["Deployment"], DEPLOYMENTS[name]))
    assert answer.policy == "trimwheel-operator-objects", answer


@pytest.mark.parametrize("name", JOBS)
def test_no_job(stage: Any, name: str) -> None:
    answer = attempt(stage, changed(job_of(stage.namespace), JOBS[name]))
    assert answer.policy == "trimwheel-operator-jobs", answer


@pytest.mark.parametrize("name", OBJECTS)
def test_the_operator_does_not_make(stage: Any, name: str) -> None:
    kind, change = OBJECTS[name]
    answer = attempt(stage, changed(workers_of(stage.namespace)[kind], change))
    assert answer.policy == "trimwheel-operator-objects", answer


RESERVED = ("kube-system", "kube-public", RELEASE_NAMESPACE)


@pytest.mark.parametrize("reserved", RESERVED)
def test_no_model_is_declared_in(stage: Any, reserved: str) -> None:
    model = stage.model()
    path = path_of("AdaptiveModel", reserved)
    answer = stage.root.call("POST", path, model, dryRun="All")
    assert answer.policy == "trimwheel-placement", answer
    assert "create the AdaptiveModel in another namespace" in answer.message


@pytest.mark.parametrize("reserved", RESERVED)
def test_nothing_of_a_worker_in(stage: Any, reserved: str) -> None:
    made = workers_of(reserved)
    # RBAC looks for the Role of a binding first, and there is none: its namespace refuses it.
    del made["RoleBinding"]
    for kind, manifest in made.items():
        answer = attempt(stage, manifest)
        assert answer.policy == "trimwheel-operator-objects", (kind, answer)
        assert f"no model is served from namespace {reserved}" in answer.message


WRITTEN = {
    "services": "Service", "serviceaccounts": "ServiceAccount", "roles": "Role",
    "rolebindings": "RoleBinding", "deployments": "Deployment", "jobs": "Job",
    "leases": "Lease", "events": "Event",
}  # fmt: skip
"""What the operator may write beside Trimwheel's kinds; each has forbidden targets above."""


def test_everything_that_its_roles_let_it_write_is_tried(stage: Any) -> None:
    """A right that is added without a bound fails here."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    name = names.OPERATOR_ACCOUNT
    rules = [
        *stage.root.call("GET", f"{rbac}/clusterroles/{name}").body["rules"],
        *stage.root.call("GET", f"{rbac}/namespaces/{RELEASE_NAMESPACE}/roles/{name}").body[
            "rules"
        ],
    ]
    written = {
        resource
        for rule in rules
        if names.GROUP not in rule["apiGroups"] and set(rule["verbs"]) - {"get", "list", "watch"}
        for resource in rule["resources"]
    }
    assert written == WRITTEN.keys()
    assert {kind for kind, _ in OBJECTS.values()} | {"Job", "Lease", "Event"} == set(
        WRITTEN.values()
    )


@pytest.mark.parametrize("reserved", RESERVED)
def test_applying_reaches_no_further_than_creating(stage: Any, reserved: str) -> None:
    api, made = operators_api(stage), workers_of(reserved)
    del made["RoleBinding"]
    for kind, manifest in made.items():
        path = path_of(kind, reserved, manifest["metadata"]["name"])
        with pytest.raises(Refused, match="trimwheel-operator-objects"):
            api.apply(path, manifest, dry_run=True)


def test_the_deployments_that_were_possible(stage: Any) -> None:
    """As the account that certifies, and as an aggregation controller."""
    for namespace, account in (
        (RELEASE_NAMESPACE, names.TUNING_ACCOUNT),
        (RELEASE_NAMESPACE, names.PIPELINES_ACCOUNT),
        ("kube-system", "clusterrole-aggregation-controller"),
    ):
        container = {"name": "c", "image": "evil", "command": ["sh"]}
        pod = {"serviceAccountName": account, "containers": [container]}
        labels = {"a": "b"}
        body = {
            "kind": "Deployment",
            "metadata": {"name": "x", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
        assert attempt(stage, body).policy == "trimwheel-operator-objects"


def test_jobs_that_are_not_tuning_runs_are_not_deleted(stage: Any) -> None:
    body = job_of(stage.namespace)
    at("metadata.name", f"backup-{stage.namespace}")(body)
    at("spec.suspend", True)(body)
    place = path_of("Job", RELEASE_NAMESPACE)
    assert stage.root.call("POST", place, body).allowed
    try:
        answer = stage.operator.call("DELETE", f"{place}/backup-{stage.namespace}")
        assert answer.policy == "trimwheel-operator-jobs", answer
    finally:
        stage.root.call("DELETE", f"{place}/backup-{stage.namespace}")


LEASES = {
    "an acknowledgement": ("m-abc", {names.LABEL_MODEL: "m"}, ""),
    "a node's heartbeat": ("node-1", {}, "kube-node-lease"),
    "the scheduler's lock": ("kube-scheduler", {}, "kube-system"),
    "its own name elsewhere": (names.OPERATOR_LEASE, {}, ""),
    "another in the release": ("other", {}, RELEASE_NAMESPACE),
}


@pytest.mark.parametrize("name", LEASES)
def test_no_lease(stage: Any, name: str) -> None:
    lease, labels, namespace = LEASES[name]
    namespace = namespace or stage.namespace
    body = {"kind": "Lease", "metadata": {"name": lease, "namespace": namespace, "labels": labels}}
    answer = attempt(stage, body)
    assert answer.policy in ("trimwheel-operator-objects", "trimwheel-worker-leases"), answer


def test_its_own_lease_and_its_own_events(stage: Any) -> None:
    lock = {"name": names.OPERATOR_LEASE, "namespace": RELEASE_NAMESPACE}
    held = attempt(stage, {"kind": "Lease", "metadata": lock})
    assert held.allowed or held.code == 409, held.message
    event = {
        "kind": "Event",
        "metadata": {"name": "e", "namespace": stage.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION, "kind": "AdaptiveModel",
            "namespace": stage.namespace, "name": "m",
        },
        "reportingComponent": names.OPERATOR_ACCOUNT,
        "reason": "Promoted",
    }  # fmt: skip
    assert attempt(stage, event).allowed
    for change in (
        at("involvedObject", {"apiVersion": "v1", "kind": "Pod", "name": "p",
                              "namespace": stage.namespace}),
        at("reportingComponent", "kubelet"),
    ):  # fmt: skip
        assert attempt(stage, changed(event, change)).policy == "trimwheel-operator-objects"


def operators_api(stage: Any) -> KubeApi:
    """The operator's own client, with the operator's own token."""
    configuration = copy.copy(stage.admin.api.configuration)
    configuration.cert_file = configuration.key_file = None
    configuration.api_key = {"authorization": stage.operator.http.headers["Authorization"]}
    return KubeApi(client.ApiClient(configuration))


def test_somebody_elses_deployment_is_not_taken_over(stage: Any) -> None:
    mine = workers_of(stage.namespace)["Deployment"]
    foreign = copy.deepcopy(mine)
    foreign["metadata"] = {"name": "m"}
    foreign["spec"]["replicas"] = 0
    place = path_of("Deployment", stage.namespace)
    assert stage.root.call("POST", place, foreign).allowed
    with pytest.raises(Refused, match="takes over nobody else's"):
        operators_api(stage).apply(f"{place}/m", mine)


def test_what_others_put_into_a_worker_stays_theirs_and_stops_no_update(stage: Any) -> None:
    """A sidecar, a volume, a registry secret, another type of Service: the operator applies again,
    and adds nothing by it."""
    uid = stage.root.create(stage.model()).body["metadata"]["uid"]
    api, made = operators_api(stage), workers_of(stage.namespace, uid, replicas=0)
    for kind, manifest in made.items():
        name = manifest["metadata"]["name"]
        api.apply(path_of(kind, stage.namespace, name), manifest)
    pod = {
        "containers": [{"name": "sidecar", "image": "proxy"}],
        "volumes": [{"name": "host", "hostPath": {"path": "/tmp"}}],
        "imagePullSecrets": [{"name": "mine"}],
    }
    template = {"spec": pod, "metadata": {"annotations": {"kubectl.kubernetes.io/restart": "1"}}}
    account = names.worker_account("m")
    stage.admin.apps.patch_namespaced_deployment(
        "m", stage.namespace, {"spec": {"template": template}}
    )
    stage.admin.core.patch_namespaced_service_account(
        account, stage.namespace,
        {"imagePullSecrets": [{"name": "mine"}], "metadata": {"annotations": {"a": "b"}}},
    )  # fmt: skip
    stage.admin.core.patch_namespaced_service(
        "m", stage.namespace, {"spec": {"type": "LoadBalancer"}}
    )
    again = workers_of(stage.namespace, uid, replicas=1)
    for kind, manifest in again.items():
        name = manifest["metadata"]["name"]
        api.apply(path_of(kind, stage.namespace, name), manifest)
    found = stage.admin.apps.read_namespaced_deployment("m", stage.namespace)
    containers = [one.name for one in found.spec.template.spec.containers]
    assert sorted(containers) == ["sidecar", "worker"] and found.spec.replicas == 1
    # What it did not find there it may not bring.
    again["Deployment"]["spec"]["template"]["spec"]["volumes"].append(SECRET)
    with pytest.raises(Refused, match="volumes of kind emptyDir alone"):
        api.apply(path_of("Deployment", stage.namespace, "m"), again["Deployment"])


def test_a_models_fields_do_not_reach_into_its_pods(stage: Any) -> None:
    """Whatever an editor writes into a model is data in the worker's pod."""
    hostile = {
        "model": {
            "uri": "models:/$(MLFLOW_TRACKING_URI)/--to=/etc",
            "digest": "sha256:" + "a" * 64,
        },
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
    }
    made = workers_of(stage.namespace, **hostile)["Deployment"]
    answer = attempt(stage, made)
    assert answer.allowed, answer.message
    fetch = answer.body["spec"]["template"]["spec"]["initContainers"][0]
    assert fetch["args"][1] == "models:/$$(MLFLOW_TRACKING_URI)/--to=/etc"
