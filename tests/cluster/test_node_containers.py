"""What a pod asks for is what its containers get: environment, probes, restarts, logs, an end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.pods import (
    POD_IP,
    SERVER,
    SLEEP,
    gone,
    phase,
    ready,
    run,
    status_of,
    waiting,
)

from trimwheel_local.testing import Clients, container, eventually, log_of, pod

pytestmark = pytest.mark.cluster


def test_a_job_completes(admin: Clients, namespace: str) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [container("print('done')")]}}
    job = {"metadata": {"name": "job"}, "spec": {"template": template}}
    admin.batch.create_namespaced_job(namespace, job)
    eventually(
        lambda: admin.batch.read_namespaced_job_status("job", namespace).status.succeeded == 1,
        "the Job has succeeded",
    )


def test_a_failed_job_says_so(admin: Clients, namespace: str) -> None:
    script = "import sys; print('no luck'); sys.exit(3)"
    main = container(script, terminationMessagePolicy="FallbackToLogsOnError")
    template = {"spec": {"restartPolicy": "Never", "containers": [main]}}
    job = {"metadata": {"name": "job"}, "spec": {"backoffLimit": 0, "template": template}}
    admin.batch.create_namespaced_job(namespace, job)
    eventually(
        lambda: admin.batch.read_namespaced_job_status("job", namespace).status.failed == 1,
        "the Job has failed",
    )
    [found] = admin.core.list_namespaced_pod(namespace).items
    ended = found.status.container_statuses[0].state.terminated
    assert (ended.exit_code, ended.message) == (3, "no luck\n")


def test_init_containers_run_first_and_share_volumes(admin: Clients, namespace: str) -> None:
    mounts = [{"name": "data", "mountPath": "/data"}]
    init = container("open('/data/x', 'w').write('from init')", name="init", volumeMounts=mounts)
    spec = {"initContainers": [init], "volumes": [{"name": "data", "emptyDir": {}}]}
    manifest = pod("both", "print(open('/data/x').read())", spec=spec, volumeMounts=mounts)
    assert run(admin, namespace, manifest) == "from init\n"


def test_a_failing_init_container_is_retried_and_keeps_the_pod_pending(
    admin: Clients, namespace: str
) -> None:
    init = container("import sys; sys.exit(1)", name="init")
    spec = {"initContainers": [init], "restartPolicy": "Always"}
    admin.core.create_namespaced_pod(namespace, pod("stuck", SLEEP, spec=spec))

    def restarts() -> int:
        statuses = status_of(admin, namespace, "stuck").init_container_statuses
        return int(statuses[0].restart_count) if statuses else 0

    eventually(restarts, "the init container was restarted")
    assert status_of(admin, namespace, "stuck").phase == "Pending"


def test_environment_comes_from_literals_fields_config_maps_and_secrets(
    admin: Clients, namespace: str
) -> None:
    metadata = {"name": "settings"}
    admin.core.create_namespaced_config_map(
        namespace, {"metadata": metadata, "data": {"COLOUR": "green", "SIZE": "4"}}
    )
    admin.core.create_namespaced_secret(
        namespace, {"metadata": metadata, "stringData": {"password": "s3cret"}}
    )
    env = [
        POD_IP,
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "settings", "key": "password"}}},
        {"name": "MORE", "value": "$(NAME)/$(PASS)/$$(NAME)/$(UNKNOWN)"},
    ]
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    source = [{"configMapRef": metadata, "prefix": "CFG_"}]
    found = json.loads(run(admin, namespace, pod("env", script, env=env, envFrom=source)))
    assert found["MORE"] == "env/s3cret/$(NAME)/$(UNKNOWN)"
    assert (found["CFG_COLOUR"], found["CFG_SIZE"], found["APP"]) == ("green", "4", "env")
    assert found["POD_IP"].startswith("127.")
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "USER"} & found.keys()


def test_a_missing_config_map_holds_the_pod_until_it_appears(
    admin: Clients, namespace: str
) -> None:
    volume = {"name": "cfg", "configMap": {"name": "late"}}
    mount = [{"name": "cfg", "mountPath": "/etc/app"}]
    script = "print(open('/etc/app/key').read())"
    spec = {
        "volumes": [volume],
        "containers": [container(script, volumeMounts=mount)],
    }
    admin.core.create_namespaced_pod(namespace, pod("late", spec=spec))
    assert 'configMap "late" not found' in waiting(admin, namespace, "late").message
    data = {"metadata": {"name": "late"}, "data": {"key": "here"}}
    admin.core.create_namespaced_config_map(namespace, data)
    phase(admin, namespace, "late", "Succeeded")
    assert log_of(admin, namespace, "late") == "here\n"


def test_crashing_containers_back_off_and_the_previous_log_stays(
    admin: Clients, namespace: str
) -> None:
    script = "import os, sys; print('attempt'); sys.exit(7)"
    spec = {"restartPolicy": "Always"}
    admin.core.create_namespaced_pod(namespace, pod("crash", script, spec=spec))

    def state() -> Any:
        statuses = status_of(admin, namespace, "crash").container_statuses
        found = statuses[0] if statuses else None
        return found if found and found.restart_count >= 2 and found.state.waiting else None

    found = eventually(state, "two restarts and a wait")
    assert found.state.waiting.reason == "CrashLoopBackOff"
    assert found.last_state.terminated.exit_code == 7
    previous = log_of(admin, namespace, "crash", previous=True)
    assert previous == "attempt\n"


def test_a_failing_liveness_probe_restarts_the_container(admin: Clients, namespace: str) -> None:
    probe = {
        "exec": {"command": ["python", "-c", "import sys; sys.exit('sick')"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "timeoutSeconds": 5,
    }
    spec = {"restartPolicy": "Always"}
    manifest = pod("sick", SLEEP, spec=spec, livenessProbe=probe)
    admin.core.create_namespaced_pod(namespace, manifest)

    def restarted() -> bool:
        statuses = status_of(admin, namespace, "sick").container_statuses
        return bool(statuses and statuses[0].restart_count)

    eventually(restarted, "a restart")
    reasons = {one.reason for one in admin.core.list_namespaced_event(namespace).items}
    assert {"Unhealthy", "Killing"} <= reasons


def test_a_startup_probe_holds_readiness_back_which_then_comes_within_half_a_second(
    admin: Clients, namespace: str
) -> None:
    script = f"""
import os, time
time.sleep(1)
print(time.time(), flush=True)
{SERVER}"""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 10}
    manifest = pod("slow", script, env=[POD_IP], startupProbe=probe, readinessProbe=probe)
    admin.core.create_namespaced_pod(namespace, manifest)
    eventually(lambda: ready(admin, namespace, "slow"), "readiness")
    reported = time.time()
    serving = float(log_of(admin, namespace, "slow"))
    # Twice the aim, since the test's own polling and a loaded machine are in it.
    assert reported - serving < 1.0


def test_logs_can_be_tailed_stamped_and_followed(admin: Clients, namespace: str) -> None:
    script = """
import time
for number in range(20):
    print("line", number, flush=True)
    time.sleep(0.05)
"""
    admin.core.create_namespaced_pod(namespace, pod("talk", script))
    eventually(
        lambda: status_of(admin, namespace, "talk").phase in ("Running", "Succeeded"), "a start"
    )
    stream = admin.core.read_namespaced_pod_log(
        "talk", namespace, follow=True, _preload_content=False
    )
    assert stream.read().decode().splitlines() == [f"line {number}" for number in range(20)]
    assert log_of(admin, namespace, "talk", tail_lines=1) == "line 19\n"
    stamped = log_of(admin, namespace, "talk", tail_lines=1, timestamps=True)
    assert stamped.split(" ", 1)[1] == "line 19\n"
    assert stamped[:4].isdigit()


def test_a_deleted_pod_gets_sigterm_and_time_to_finish(
    admin: Clients, namespace: str, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    script = f"""
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path({str(witness)!r}).write_text("finished")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(600)
"""
    spec = {"terminationGracePeriodSeconds": 20}
    admin.core.create_namespaced_pod(namespace, pod("polite", script, spec=spec))
    eventually(lambda: log_of(admin, namespace, "polite") == "up\n", "the handler is set")
    started = time.monotonic()
    admin.core.delete_namespaced_pod("polite", namespace)
    eventually(lambda: gone(admin, namespace, "polite"), "the pod is gone")
    assert witness.read_text() == "finished"
    assert time.monotonic() - started < 5


def test_a_pod_that_ignores_sigterm_is_killed_with_all_it_started(
    admin: Clients, namespace: str
) -> None:
    script = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
    spec = {"terminationGracePeriodSeconds": 1}
    admin.core.create_namespaced_pod(namespace, pod("stubborn", script, spec=spec))
    text = eventually(lambda: log_of(admin, namespace, "stubborn"), "its process ids")
    pids = [int(word) for word in text.split()]
    admin.core.delete_namespaced_pod("stubborn", namespace)
    eventually(lambda: gone(admin, namespace, "stubborn"), "the pod is gone")
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
