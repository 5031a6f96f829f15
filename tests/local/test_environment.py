"""Expansion, references and rewriting of a container's environment and command line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_local.node.environment import (
    ConfigError,
    Objects,
    Rewriter,
    command_line,
    expand,
    field_value,
    quantity,
    resource_value,
    variables,
)

SERVICES = {("addons", "mlflow"): "127.96.0.7", ("default", "web"): "127.96.0.8"}
REWRITE = Rewriter({"/data": "/pods/x/v/data", "/data/deep": "/pods/x/v/deep"}, SERVICES)
PLAIN = Rewriter({}, {})
POD: dict[str, Any] = {
    "metadata": {
        "name": "p",
        "namespace": "n",
        "uid": "u",
        "labels": {"app": "web", "b": "2"},
        "annotations": {"x/y": "z"},
    },
    "spec": {"nodeName": "local", "containers": [], "serviceAccountName": "sa"},
    "status": {"podIP": "127.96.1.2", "hostIP": "127.0.0.1"},
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(A)", "1"),
        ("$(A)$(B)x", "12x"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $( A)", "$A ${A} $( A)"),
        ("cost: 5$", "cost: 5$"),
    ],
)
def test_references_expand_as_kubernetes_says(text: str, wanted: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == wanted


@given(st.text(alphabet=st.characters(exclude_characters="$")))
def test_text_without_a_dollar_is_left_alone(text: str) -> None:
    assert expand(text, {"A": "1"}) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/data", "/pods/x/v/data"),
        ("/data/file", "/pods/x/v/data/file"),
        ("--to=/data/file", "--to=/pods/x/v/data/file"),
        ("/data:/data", "/pods/x/v/data:/pods/x/v/data"),
        ('{"path":"/data/x"}', '{"path":"/pods/x/v/data/x"}'),
        ("file:///data/x", "file:///pods/x/v/data/x"),
        ("sqlite:////data/db", "sqlite:////pods/x/v/data/db"),
        ("/data/deep/x", "/pods/x/v/deep/x"),
        ("/database", "/database"),
        ("/srv/data", "/srv/data"),
        ("s3://bucket/data", "s3://bucket/data"),
        ("/data-old", "/data-old"),
        ("http://mlflow.addons.svc:5000/x", "http://127.96.0.7:5000/x"),
        ("web.default.svc.cluster.local", "127.96.0.8"),
        ("http://web.default.svc.cluster.local./", "http://127.96.0.8/"),
        ("web.default.svc.example.com", "web.default.svc.example.com"),
        ("a.web.default.svc", "a.web.default.svc"),
        ("web.default", "web.default"),
    ],
)
def test_mount_paths_and_service_names_are_replaced_and_nothing_else(
    text: str, wanted: str
) -> None:
    assert REWRITE(text, {}) == wanted


def test_a_service_that_does_not_exist_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match='Service "no" in namespace "where"'):
        REWRITE("http://no.where.svc:1", {})


def test_names_put_together_from_variables_are_rewritten_but_expanded_paths_are_not() -> None:
    assert REWRITE("http://$(N).addons.svc", {"N": "mlflow"}) == "http://127.96.0.7"
    assert REWRITE("$(HOME)/x", {"HOME": "/data"}) == "/data/x"


def test_later_variables_see_earlier_ones_and_win_over_the_base() -> None:
    container = {
        "name": "c",
        "envFrom": [{"configMapRef": {"name": "cfg"}, "prefix": "P_"}],
        "env": [
            {"name": "DIR", "value": "/data"},
            {"name": "FILE", "value": "$(DIR)/$(P_key)"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "HOME", "value": "/root"},
        ],
    }
    objects = Objects({("configMap", "cfg"): {"key": b"name"}})
    found = variables(POD, container, objects, {"HOME": "/base", "PATH": "/bin"}, REWRITE)
    assert found == {
        "HOME": "/root",
        "PATH": "/bin",
        "P_key": "name",
        "DIR": "/pods/x/v/data",
        "FILE": "/pods/x/v/data/name",
        "IP": "127.96.1.2",
    }


@pytest.mark.parametrize("kind", ["configMap", "secret"])
def test_optional_references_may_be_absent_and_others_may_not(kind: str) -> None:
    reference = {"name": "absent", "key": "k"}
    source = {f"{kind}KeyRef": reference}
    container = {"name": "c", "env": [{"name": "A", "valueFrom": source}]}
    with pytest.raises(ConfigError, match=f'{kind} "absent" not found'):
        variables(POD, container, Objects(), {}, PLAIN)
    reference["optional"] = True  # type: ignore[assignment]
    assert variables(POD, container, Objects(), {}, PLAIN) == {}


def test_a_missing_key_is_named() -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    container = {"name": "c", "env": [{"name": "A", "valueFrom": source}]}
    with pytest.raises(ConfigError, match='secret "s" has no key "k"'):
        variables(POD, container, Objects({("secret", "s"): {}}), {}, PLAIN)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['x/y']", "z"),
        ("metadata.labels", 'app="web"\nb="2"'),
        ("spec.serviceAccountName", "sa"),
        ("status.hostIP", "127.0.0.1"),
    ],
)
def test_field_references(path: str, wanted: str) -> None:
    assert field_value(POD, path) == wanted


def test_an_unknown_field_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'spec\.replicas' is not a field"):
        field_value(POD, "spec.replicas")


@pytest.mark.parametrize(
    ("resource", "divisor", "wanted"),
    [
        ("limits.cpu", "1", "2"),
        ("limits.cpu", "1m", "1500"),
        ("limits.memory", "1Mi", "64"),
        ("requests.cpu", "1", "0"),
    ],
)
def test_resource_references_round_up(resource: str, divisor: str, wanted: str) -> None:
    limits = {"cpu": "1500m", "memory": "64Mi"}
    containers = [{"name": "c", "resources": {"limits": limits}}]
    assert resource_value(containers, "c", {"resource": resource, "divisor": divisor}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", 1), ("500m", 0.5), ("1Ki", 1024), ("2G", 2e9), ("1e3", 1000)]
)
def test_quantities_are_read_as_the_api_server_reads_them(text: str, wanted: float) -> None:
    assert quantity(text) == wanted


def test_a_command_line_is_expanded_and_rewritten() -> None:
    container = {"command": ["serve"], "args": ["--dir=/data", "--bind=$(IP)"]}
    found = command_line(container, {"IP": "127.96.1.2"}, REWRITE)
    assert found == ["serve", "--dir=/pods/x/v/data", "--bind=127.96.1.2"]
