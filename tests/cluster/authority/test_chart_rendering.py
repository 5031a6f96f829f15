"""What the chart renders from its values; nothing is sent to the API server here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimwheel_api import names
from trimwheel_api.kinds import KINDS
from trimwheel_api.kinds.tuning_run import ALARM_REASONS
from trimwheel_operator.settings import from_environment as operator_settings
from trimwheel_pipelines.settings import from_environment as pipelines_settings

pytestmark = pytest.mark.cluster

Render = Callable[..., dict[tuple[str, str], dict[str, Any]]]
USER_KINDS = [
    kind.plural for kind in KINDS if kind.name not in ("PolicyAssignment", "PolicyJournal")
]


@pytest.fixture(scope="module")
def render(helm: Callable[..., str], chart: Path) -> Render:
    """`render("full", "key=value")`: the objects by (kind, name); rendered once, to be read."""

    @cache
    def run(
        shape: str = "defaults", *settings: str, namespace: str = names.RELEASE_NAMESPACE
    ) -> Any:
        values = ["--values", str(chart / "ci" / f"{shape}-values.yaml")]
        values += [word for setting in settings for word in ("--set", setting)]
        text = helm("template", "trimwheel", str(chart), "--namespace", namespace, *values)
        objects = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]
        return {(one["kind"], one["metadata"]["name"]): one for one in objects}

    return run


def container(objects: Any, component: str) -> dict[str, Any]:
    spec = objects["Deployment", f"trimwheel-{component}"]["spec"]["template"]["spec"]
    return dict(spec["containers"][0])


def environment(objects: Any, component: str) -> dict[str, str]:
    variables = container(objects, component)["env"]
    return {one["name"]: one["value"] for one in variables if "value" in one}


# --- what the processes are told --------------------------------------------------------------
def test_the_operator_reads_every_value_that_is_meant_for_it(render: Render) -> None:
    settings = operator_settings(environment(render("full"), "operator"))
    assert settings.prometheus_url == "http://thanos-query.monitoring.svc:9090"
    assert settings.scrape_interval == 10
    assert settings.records_uri == "s3://trimwheel-records/prod"
    assert settings.allowed_prefixes == "models:/,s3://models/"
    assert settings.worker_image == "registry.example.com/mirror/trimwheel/workers:0.1.0"
    assert settings.image_pull_policy == "Always"
    assert settings.image_pull_secrets == ("registry",)
    assert (settings.resync, settings.leader_seconds, settings.service_port) == (30, 15, 80)
    secret = {"secretKeyRef": {"name": "records", "key": "secret"}}
    assert settings.worker_env[1] == {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": secret}
    assert settings.worker_account_annotations.keys() == {"eks.amazonaws.com/role-arn"}
    assert [one["name"] for one in settings.job_env] == ["MLFLOW_TRACKING_TOKEN"]


def test_jobs_are_scheduled_as_tuning_says_and_else_as_the_release(render: Render) -> None:
    settings = operator_settings(environment(render("full"), "operator"))
    assert settings.job_pod["nodeSelector"] == {"pool": "batch"}
    assert settings.job_pod["tolerations"][0]["key"] == "CriticalAddonsOnly"
    assert settings.job_pod["priorityClassName"] == "batch"
    assert settings.job_resources["limits"] == {"memory": "8Gi"}
    assert settings.model_cache_claim == "models"
    usual = operator_settings(environment(render(), "operator"))
    assert usual.job_pod == {} and usual.model_cache_claim == ""
    assert usual.job_resources["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert usual.job_resources["limits"] == {"memory": "4Gi"}


def test_the_pipelines_read_every_value_that_is_meant_for_them(render: Render) -> None:
    settings = pipelines_settings(environment(render("full"), "pipelines"))
    assert settings.mlflow_tracking_uri == "http://mlflow.mlops.svc:5000"
    assert settings.mlflow_link == "https://mlflow.example.com"
    assert settings.ray_address == "ray://ray-head.ray.svc:10001"
    assert settings.allowed_prefixes == ("models:/", "s3://models/")
    assert settings.interval == 3


def test_every_registry_secret_reaches_the_operator_and_none_is_none(render: Render) -> None:
    two = render("full", "imagePullSecrets[0].name=one", "imagePullSecrets[1].name=two")
    assert operator_settings(environment(two, "operator")).image_pull_secrets == ("one", "two")
    assert operator_settings(environment(render(), "operator")).image_pull_secrets == ()


def test_jobs_read_from_a_config_map_what_the_loop_reads_but_not_the_ledger(
    render: Render,
) -> None:
    """The ledger's address may hold a password, and a ConfigMap is read by more than a Secret."""
    for shape in ("defaults", "full", "embedded"):
        objects = render(shape)
        told = objects["ConfigMap", names.TUNING_CONFIG]["data"]
        loop = environment(objects, "pipelines")
        shared = {key: value for key, value in loop.items() if key in told}
        assert told == shared and "TRIMWHEEL_RECORDS_URI" in told
        assert pipelines_settings(told).mlflow_link == pipelines_settings(loop).mlflow_link
        names_only = [one["name"] for one in container(objects, "operator")["env"]]
        assert "TRIMWHEEL_LEDGER_URL" not in [*told, *names_only]


def test_plain_variables_of_pipelines_reach_jobs_by_the_config_map(render: Render) -> None:
    plain = render("full", "pipelines.env[1].name=AWS_REGION", "pipelines.env[1].value=eu-west-1")
    assert plain["ConfigMap", names.TUNING_CONFIG]["data"]["AWS_REGION"] == "eu-west-1"
    settings = operator_settings(environment(plain, "operator"))
    assert [one["name"] for one in settings.job_env] == ["MLFLOW_TRACKING_TOKEN"]


def test_the_ledgers_address_is_in_a_secret_alone(render: Render) -> None:
    objects = render("defaults", "ledger.url=postgresql+psycopg://me:hunter2@db/ledger")
    holders = [key for key, one in objects.items() if "hunter2" in yaml.safe_dump(one)]
    assert holders == [("Secret", "trimwheel-ledger")]
    source = next(
        one["valueFrom"]["secretKeyRef"]
        for one in container(objects, "pipelines")["env"]
        if one["name"] == "TRIMWHEEL_LEDGER_URL"
    )
    assert source == {"name": "trimwheel-ledger", "key": "url"}


def test_a_secret_of_ones_own_takes_the_place_of_ours(render: Render) -> None:
    objects = render("full")
    assert ("Secret", "trimwheel-ledger") not in objects
    assert {"name": "ledger", "key": "dsn"} in [
        one.get("valueFrom", {}).get("secretKeyRef")
        for one in container(objects, "pipelines")["env"]
    ]


def test_the_operator_hands_the_bind_address_on_unexpanded(render: Render) -> None:
    """`$(POD_IP)` must become each worker's address, not the operator's."""
    objects = render("embedded")
    assert environment(objects, "operator")["TRIMWHEEL_BIND"] == "$$(POD_IP)"
    assert environment(objects, "pipelines")["TRIMWHEEL_BIND"] == "$(POD_IP)"


def test_variables_that_refer_to_others_come_after_them(render: Render) -> None:
    order = [one["name"] for one in container(render("embedded"), "pipelines")["env"]]
    assert order.index("POD_IP") < order.index("TRIMWHEEL_BIND")


@pytest.mark.parametrize("component", ["operator", "pipelines"])
def test_extra_variables_are_appended(render: Render, component: str) -> None:
    assert container(render("full"), component)["env"][-1]["name"] in (
        "AWS_REGION",
        "MLFLOW_TRACKING_TOKEN",
    )


# --- pods -------------------------------------------------------------------------------------
@pytest.mark.parametrize("component", ["operator", "pipelines"])
def test_there_is_one_pod_and_never_two(render: Render, component: str) -> None:
    spec = render()["Deployment", f"trimwheel-{component}"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("component", ["operator", "pipelines"])
def test_selectors_survive_an_upgrade(render: Render, component: str) -> None:
    spec = render()["Deployment", f"trimwheel-{component}"]["spec"]
    chosen, labels = spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]
    assert chosen.items() <= labels.items()
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & chosen.keys()
    assert labels[names.LABEL_COMPONENT] == component
    assert labels[names.LABEL_PART_OF] == names.PART_OF


@pytest.mark.parametrize("component", ["operator", "pipelines"])
def test_probes_ask_ports_that_the_container_names(render: Render, component: str) -> None:
    found = container(render(), component)
    ports = {one["name"]: one["containerPort"] for one in found["ports"]}
    known = {"operator": names.OPERATOR_METRICS_PORT, "pipelines": names.PIPELINES_METRICS_PORT}
    assert ports["metrics"] == known[component]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert found[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("component", ["operator", "pipelines"])
def test_the_root_file_system_is_read_only_and_scratch_is_not(
    render: Render, component: str
) -> None:
    found = container(render(), component)
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    told = environment(render(), component)
    mounts = [one["mountPath"] for one in found["volumeMounts"]]
    assert told["TMPDIR"] in mounts and told["HOME"] in mounts


def test_the_ledgers_volume_is_kept_on_uninstall(render: Render) -> None:
    claim = render()["PersistentVolumeClaim", "trimwheel-pipelines"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert container(render(), "pipelines")["volumeMounts"][-1]["mountPath"] == "/var/lib/trimwheel"


def test_a_claim_of_ones_own_takes_the_place_of_ours(render: Render) -> None:
    objects = render("full")
    assert ("PersistentVolumeClaim", "trimwheel-pipelines") not in objects
    volumes = objects["Deployment", "trimwheel-pipelines"]["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "trimwheel-data"} in [one.get("persistentVolumeClaim") for one in volumes]


# --- rights -----------------------------------------------------------------------------------
def rules(objects: Any, role: str) -> list[tuple[str, str, str]]:
    """(group, resource, verb), one each."""
    return [
        (group, resource, verb)
        for rule in objects["ClusterRole", role]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def test_no_role_of_the_chart_has_a_wildcard(render: Render) -> None:
    for (kind, _), one in render("full").items():
        if kind in ("Role", "ClusterRole"):
            for rule in one["rules"]:
                assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


@pytest.mark.parametrize("plural", USER_KINDS)
def test_the_operator_could_not_write_what_users_write(render: Render, plural: str) -> None:
    """Only forgeries under reserved names, of which admission takes none but as a dry run."""
    ours = [
        rule
        for rule in render()["ClusterRole", "trimwheel-operator"]["rules"]
        if names.GROUP in rule["apiGroups"] and plural in rule["resources"]
    ]
    anywhere = {verb for rule in ours if not rule.get("resourceNames") for verb in rule["verbs"]}
    reserved = [name for rule in ours for name in rule.get("resourceNames", [])]
    assert anywhere <= {"get", "list", "watch"}
    assert all(name.startswith("trimwheel-self-test-") for name in reserved)


def test_each_verb_of_ours_is_held_by_one_role(render: Render) -> None:
    holders = {
        verb: sorted(
            name
            for kind, name in render()
            if kind == "ClusterRole" and verb in [held for *_, held in rules(render(), name)]
        )
        for verb in (
            names.VERB_APPROVE,
            names.VERB_WAIVE,
            names.VERB_ROLLBACK,
            names.VERB_CERTIFY,
        )
    }
    assert holders == {
        "approve": ["trimwheel-approver"],
        "waive": ["trimwheel-waiver"],
        "rollback": ["trimwheel-rollback"],
        "certify": ["trimwheel-tuning"],
    }


def test_jobs_have_a_cloud_identity_of_their_own_and_else_the_loops(render: Render) -> None:
    def identity(objects: Any, account: str) -> Any:
        return objects["ServiceAccount", account]["metadata"].get("annotations")

    role = "eks.amazonaws.com/role-arn"
    full = render("full")
    assert identity(full, names.TUNING_ACCOUNT)[role].endswith("role/trimwheel-tuning")
    assert identity(full, names.PIPELINES_ACCOUNT)[role].endswith("role/trimwheel-pipelines")
    shared = render("defaults", "pipelines.serviceAccountAnnotations.a=b")
    assert identity(shared, names.TUNING_ACCOUNT) == {"a": "b"}


def test_deciding_roles_are_not_aggregated_into_the_built_in_ones(render: Render) -> None:
    aggregated = {
        name
        for (kind, name), one in render().items()
        if kind == "ClusterRole"
        and any(label.startswith("rbac.authorization") for label in one["metadata"]["labels"])
    }
    assert aggregated == {"trimwheel-view", "trimwheel-edit"}


# --- admission --------------------------------------------------------------------------------
def test_every_policy_fails_closed_and_is_bound_to_deny(render: Render) -> None:
    objects = render()
    policies = {name for kind, name in objects if kind == "ValidatingAdmissionPolicy"}
    assert policies == set(names.ADMISSION_POLICIES)
    for name in policies:
        assert objects["ValidatingAdmissionPolicy", name]["spec"]["failurePolicy"] == "Fail"
        binding = objects["ValidatingAdmissionPolicyBinding", name]["spec"]
        assert binding["policyName"] == name
        assert binding["validationActions"] == ["Deny", "Audit"]


def test_the_accounts_that_policies_name_are_those_of_the_release(render: Render) -> None:
    objects = render(namespace="elsewhere")
    text = yaml.safe_dump(
        objects["ValidatingAdmissionPolicy", "trimwheel-operator-only"], width=999
    )
    for account in (names.OPERATOR_ACCOUNT, names.PIPELINES_ACCOUNT, names.TUNING_ACCOUNT):
        assert names.service_account_user("elsewhere", account) in text
        assert ("ServiceAccount", account) in objects
        assert objects["ServiceAccount", account]["metadata"]["namespace"] == "elsewhere"


def test_the_alarm_policy_knows_the_alarms_of_the_contract(render: Render) -> None:
    policy = render()["ValidatingAdmissionPolicy", "trimwheel-alarms"]
    alarms = f"[{', '.join(repr(reason) for reason in ALARM_REASONS)}]"
    assert any(alarms in rule["expression"] for rule in policy["spec"]["validations"])


# --- monitoring -------------------------------------------------------------------------------
def test_monitors_are_created_on_request_with_the_labels_that_select_them(render: Render) -> None:
    kinds = ("PodMonitor", "PrometheusRule")
    assert not [key for key in render() if key[0] in kinds]
    found = {key: one for key, one in render("full").items() if key[0] in kinds}
    assert {name for kind, name in found if kind == "PodMonitor"} == {
        "trimwheel-operator",
        "trimwheel-pipelines",
        "trimwheel-worker",
    }
    for one in found.values():
        assert one["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_monitor_of_workers_looks_into_every_namespace(render: Render) -> None:
    spec = render("full")["PodMonitor", "trimwheel-worker"]["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    assert spec["selector"]["matchLabels"][names.LABEL_COMPONENT] == names.COMPONENT_WORKER
    assert spec["podMetricsEndpoints"][0]["interval"] == "10s"


def test_rules_are_the_generated_ones_in_both_forms(render: Render, chart: Path) -> None:
    generated = yaml.safe_load((chart / "files" / "rules.yaml").read_text())
    objects = render("full")
    assert objects["PrometheusRule", "trimwheel"]["spec"] == generated
    assert (
        yaml.safe_load(objects["ConfigMap", "trimwheel-rules"]["data"]["rules.yaml"]) == generated
    )


def test_each_generated_dashboard_becomes_a_config_map(render: Render, chart: Path) -> None:
    files = sorted((chart / "files" / "dashboards").glob("*.json"))
    assert files
    objects = render("full")
    for file in files:
        found = objects["ConfigMap", f"trimwheel-dashboard-{file.stem}"]
        assert found["data"][file.name] == file.read_text().rstrip("\n")
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert found["metadata"]["annotations"] == {"grafana_folder": "Trimwheel"}
    assert not [key for key in render("embedded") if key[1].startswith("trimwheel-dashboard-")]


# --- values -----------------------------------------------------------------------------------
REFUSED = {
    "a misspelt key": ("promtheus.url=http://x", "additional properties 'promtheus' not allowed"),
    "two operators": ("operator.replicas=2", "at '/operator/replicas'"),
    "an address without scheme": ("prometheus.url=prometheus:9090", "at '/prometheus/url'"),
    "an interval without unit": ("prometheus.scrapeInterval=15", "at '/prometheus/scrapeInterval'"),
    "no prefix at all": ("models.allowedPrefixes={}", "allowedPrefixes"),
    "a pull policy of one's own": ("imagePullPolicy=Sometimes", "at '/imagePullPolicy'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_helm_refuses_values_and_names_the_field(render: Render, name: str) -> None:
    setting, words = REFUSED[name]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render("defaults", setting)
    assert words in refused.value.stderr


def test_notes_warn_of_what_is_missing(helm: Callable[..., str], chart: Path) -> None:
    def notes(*settings: str) -> str:
        words = [word for setting in settings for word in ("--set", setting)]
        place = ("--namespace", names.RELEASE_NAMESPACE, "--dry-run=client", "--hide-notes=false")
        return helm("install", "trimwheel", str(chart), *place, *words).split("NOTES:")[-1]

    usual = notes()
    assert "WARNING records.uri is empty" in usual and "mlflow.url" not in usual
    assert "ledger is a file" not in usual
    assert "WARNING mlflow.url is empty" in notes("mlflow.url=", "records.uri=s3://b/p")
    assert "ledger is a file" in notes("pipelines.persistence.enabled=false")


def test_network_policies_keep_clients_off_probes_and_metrics(render: Render) -> None:
    objects = render("full")
    workers = objects["NetworkPolicy", "trimwheel-workers"]
    assert workers["metadata"]["namespace"] == "support"
    clients, monitoring = workers["spec"]["ingress"]
    assert [port["port"] for port in clients["ports"]] == [names.WORKER_PORT]
    assert [port["port"] for port in monitoring["ports"]] == [names.WORKER_PROBES_PORT]
    assert clients["from"] == [{"namespaceSelector": {"matchLabels": {"clients": "true"}}}]
    for component, port in (
        ("operator", names.OPERATOR_METRICS_PORT), ("pipelines", names.PIPELINES_METRICS_PORT),
    ):  # fmt: skip
        (rule,) = objects["NetworkPolicy", f"trimwheel-{component}"]["spec"]["ingress"]
        assert [one["port"] for one in rule["ports"]] == [port]
    assert not any(kind == "NetworkPolicy" for kind, _ in render()), "a choice"
