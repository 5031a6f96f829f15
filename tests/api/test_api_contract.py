"""The contract's edges: what it imports, how its errors speak, names, metrics, records."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api import errors, metrics, names, records
from trimwheel_api.kinds.common import to_key
from trimwheel_api.worker_config import ENVIRONMENT, WorkerConfig, from_environment

MODULES = ("policy", "kinds", "names", "metrics", "decide", "cohorts", "crd", "errors", "records",
           "values", "worker_config", "environment")  # fmt: skip
LOOK = """
import sys
before = set(sys.modules)
{imports}
outside = {{name.split(".")[0] for name in set(sys.modules) - before}}
stdlib = set(sys.stdlib_module_names)  # which leaves out its generated _sysconfigdata_...
print(" ".join(name for name in outside - stdlib if not name.startswith("_sysconfigdata")))
"""
PYDANTIC_AND_ITS_OWN = {
    "pydantic", "pydantic_core", "typing_extensions", "annotated_types", "typing_inspection",
    "trimwheel_api"
}  # fmt: skip


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_contract_imports_pydantic_and_nothing_else():
    imports = "\n".join(f"import trimwheel_api.{name}" for name in MODULES)
    found = set(_python(LOOK.format(imports=imports)).split())
    assert found <= PYDANTIC_AND_ITS_OWN, found - PYDANTIC_AND_ITS_OWN


def test_the_contract_imports_in_under_a_third_of_a_second():
    modules = "trimwheel_api.kinds, trimwheel_api.policy, trimwheel_api.metrics"
    code = f"import time; s = time.process_time(); import {modules}; print(time.process_time() - s)"
    _python(code)  # writes the bytecode, which an installation has
    # A busy machine only adds time, so the best of a few runs is the measurement.
    assert any(float(_python(code)) < 0.3 for _ in range(8))


def test_errors_name_field_rule_value_and_remedy():
    error = errors.SpecInvalid("spec.replicas", "must be at least 0", -1, "Set 0 to stop serving")
    assert str(error) == "spec.replicas: must be at least 0, but got -1. Set 0 to stop serving"
    assert error.as_body() == {
        "field": "spec.replicas",
        "rule": "must be at least 0",
        "value": "-1",
        "message": str(error),
    }


def test_a_long_value_is_shortened_in_messages():
    error = errors.RequestInvalid("inputs.text", "must be at most 4096 bytes", "x" * 10_000)
    assert len(str(error)) < 250


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn = set(re.findall(r"\+-- (\w+)", errors.__doc__ or "")) | {"TrimwheelError"}
    classes = {
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, Exception)
    }
    assert drawn == classes


def test_reasons_are_camel_case_and_told_apart():
    reasons = {key: value for key, value in vars(names.Reason).items() if not key.startswith("_")}
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", value) for value in reasons.values())
    assert len(set(reasons.values())) == len(reasons)
    assert all(key == re.sub(r"(?<!^)(?=[A-Z])", "_", value).upper()
               for key, value in reasons.items())  # fmt: skip


def test_a_digest_label_fits_a_kubernetes_label():
    label = names.digest_label("sha256:" + "ab" * 32)
    assert label == "ab" * 8


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rollout_uid", "rolloutUID"),
        ("mlflow_url", "mlflowURL"),
        ("run_id", "runID"),
        ("max_disagreement", "maxDisagreement"),
        ("liquid", "liquid"),
    ],
)
def test_fields_are_spelt_as_kubernetes_spells_them(name, key):
    assert to_key(name) == key


def test_metric_names_follow_the_conventions_of_prometheus():
    for metric in metrics.METRICS:
        assert metric.name.startswith("trimwheel_"), metric.name
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric.name
        assert (metric.type == "histogram") == bool(metric.buckets), metric.name
        assert list(metric.buckets) == sorted(metric.buckets), metric.name
        assert metric.help.endswith("."), metric.name


def test_metric_names_are_unique_and_every_label_has_a_meaning():
    known = [metric.name for metric in metrics.METRICS]
    assert len(known) == len(set(known))
    used = {label for metric in metrics.METRICS for label in metric.labels}
    assert used == set(metrics.LABEL_MEANINGS), used ^ set(metrics.LABEL_MEANINGS)


def test_metrics_about_models_of_other_namespaces_say_which():
    for metric in metrics.METRICS:
        if "model" in metric.labels:
            assert ("model_namespace" in metric.labels) == (metric.component != "worker"), metric


def test_the_metrics_of_the_interface_are_there():
    """Others' dashboards rely on these names and labels."""
    fixed = {
        "trimwheel_guard_trials_total": {"model", "arm", "digest", "guard"},
        "trimwheel_guard_events_total": {"model", "arm", "digest", "guard"},
        "trimwheel_requests_total": {"model", "arm", "exit", "code"},
        "trimwheel_request_duration_seconds": {"model", "arm"},
        "trimwheel_layers_run_total": {"model", "arm"},
        "trimwheel_layers_full_total": {"model", "arm"},
        "trimwheel_audits_total": {"model", "arm", "agree"},
        "trimwheel_policy_info": {"model", "arm", "digest"},
        "trimwheel_expert_tokens_total": {"layer", "expert"},
    }
    known = {metric.name: set(metric.labels) for metric in metrics.METRICS}
    assert {name: known.get(name) for name in fixed} == fixed
    assert {"trimwheel_records_dropped_total", "trimwheel_rollback_seconds"} <= set(known)


POD = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)


@given(st.integers(0, 4 * 10**12), POD, *[st.integers(0, 10**6)] * 3)
def test_segment_names_read_back(milliseconds, pod, sequence, count, lost):
    name = records.segment_name(pod, milliseconds / 1000, sequence, count, lost)
    started, *rest = records.parse_segment_name(f"bucket/ns/model/{name}")
    assert rest == [pod, sequence, count, lost]
    assert round(started * 1000) == milliseconds


@given(st.lists(st.integers(0, 4 * 10**12), min_size=2, max_size=5))
def test_segments_sort_by_time(times):
    made = [records.segment_name("pod", time_ms / 1000, 0, 1, 0) for time_ms in sorted(times)]
    assert made == sorted(made)


@pytest.mark.parametrize("name", ["x", "a.parquet", "1-p-2-n3.parquet", ".tmp-1-p-1-n1-lost0"])
def test_what_is_no_segment_is_refused(name):
    with pytest.raises(ValueError, match=r".+"):
        records.parse_segment_name(name)


def test_a_worker_reads_back_what_the_operator_wrote():
    config = WorkerConfig(model="m", namespace="n", model_digest="sha256:" + "0" * 64)
    text = json.dumps(config.model_dump(mode="json", by_alias=True))
    assert from_environment({ENVIRONMENT: text}) == config


def test_a_worker_without_its_configuration_says_who_sets_it():
    with pytest.raises(errors.SetupFailed, match=ENVIRONMENT):
        from_environment({})


class _Slow:
    def __repr__(self) -> str:
        return "x" * 10_000


def _deep() -> object:
    value: object = []
    for _ in range(100_000):
        value = [value]
    return value


LARGE = {
    "a text": lambda: "x" * 10**7,
    "bytes": lambda: b"x" * 10**7,
    "a list": lambda: list(range(10**6)),
    "a list of texts": lambda: ["x" * 10**6] * 20,
    "an object": lambda: {f"k{n}": "v" for n in range(10**5)},
    "an object with long keys": lambda: {"k" * 10**6: 1},
    "nesting": _deep,
    "an integer": lambda: 10**5000,
    "an object of ours": _Slow,
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
def test_quoting_costs_little_whatever_the_value(make):
    value = make()
    started = time.process_time()
    text = errors.quote(value)
    assert len(text) <= 120 and time.process_time() - started < 0.01


SMALL = (None, 7, "x", [], {}, (), (1,), [1, 2], {"a": [True]}, b"x", 1.5)


@pytest.mark.parametrize("value", SMALL)
def test_a_small_value_is_quoted_as_python_writes_it(value):
    assert errors.quote(value) == repr(value)
