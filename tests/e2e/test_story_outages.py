"""API server, Prometheus, MLflow and record store away for the same minute, under load.

Played on the story's world, with a canary that serves a quarter of the sessions. Serving goes on,
nothing advances on missing evidence, the canary ends by its lease when the operator cannot renew
it, and afterwards everything goes on by itself. The parts of the test are in the order of time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
import pytest
from tests.e2e.played import Story

from trimwheel_api import names
from trimwheel_api.metrics import AUDITS, RECORDS_DROPPED
from trimwheel_api.policy import parse_policy
from trimwheel_api.records import parse_segment_name, segment_folder
from trimwheel_demo import load
from trimwheel_demo.kube import Kube, status
from trimwheel_demo.places import MODEL, NAMESPACE, WAIVER
from trimwheel_demo.stages.following import ended
from trimwheel_local import rest
from trimwheel_local.cluster import Cluster
from trimwheel_local.names import ADDONS_NAMESPACE
from trimwheel_pipelines.records import RecordReader

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(400)]

NAME = "through-outages"
LEASE_SECONDS = 10
HOLD = 10.0
STEPS = [
    {"weight": weight, "minRequests": 50, "hold": f"{HOLD:g}s", "maxDuration": "10m"}
    for weight in ("25%", "50%")
]
"""Without shadow, so that there is a canary to end; the first step waits until its hold is over."""
AWAY_SECONDS = 55.0
"""The API server hangs this long, and takes some seconds to start again: a minute in all."""
EVIDENCE_AWAY_FIRST = 14.0
"""Prometheus, MLflow and records go this much before the API server: longer than the hold."""
EVIDENCE_AWAY_LAST = 6.0
"""And return this much after it: the operator decides again, and has nothing to decide upon."""
RATE = 40.0
NAMESPACES = (NAMESPACE, names.RELEASE_NAMESPACE, ADDONS_NAMESPACE)
Found = TypeVar("Found")
Json = dict[str, Any]


@dataclass(frozen=True)
class World:
    """The story's world as this test needs it."""

    story: Story
    cluster: Cluster
    carol: Kube
    candidate: str

    @property
    def folder(self) -> load.Folder:
        return load.Folder(self.story.places.load)

    def rollout(self) -> Json:
        return self.carol.get("PolicyRollout", NAME) or {}

    def pods(self, namespace: str, labels: str = "") -> list[Any]:
        admin = Kube(self.cluster.kubeconfig, namespace, os.environ["PATH"], Path("/dev/null"))
        return list(admin.core.list_namespaced_pod(namespace, label_selector=labels).items)


# --- taking things away -----------------------------------------------------------------------


@contextmanager
def silent(process: psutil.Process) -> Iterator[None]:
    """Stopped with its children: connections hang, as they do behind a broken network."""
    family = [process, *process.children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in family:
            if one.is_running():
                one.send_signal(signal.SIGCONT)


@contextmanager
def without_records(records: Path) -> Iterator[None]:
    """A file in the place of the store's folder: nothing below it can be read or written."""
    aside = records.with_name("records.aside")
    records.rename(aside)
    records.write_text("away\n")
    try:
        yield
    finally:
        records.unlink()
        aside.rename(records)


def process_with(argument: str) -> psutil.Process:
    """The one process that was started with this argument; not the shim that started it."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if argument in (process.info["cmdline"] or []) and "shim" not in process.info["cmdline"]
    ]
    parents = {process.pid for process in found}
    tops = [process for process in found if process.ppid() not in parents]
    assert len(tops) == 1, f"{argument}: {[one.info['cmdline'] for one in found]}"
    return tops[0]


def eventually(check: Callable[[], Found], what: str, timeout: float) -> Found:
    deadline = time.monotonic() + timeout
    while not (found := check()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.5)
    return found


# --- the minute -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minute:
    """What was seen, and when (Unix seconds)."""

    began: float
    api_away: float
    api_back: float
    evidence_back: float
    ended: float
    windows: list[Json]
    """The load generator's, from a moment before to the end."""
    before: Json
    """The rollout when it began to serve."""
    without_evidence: Json
    """With its hold over, Prometheus away and the API server there."""
    blind: Json
    """After the API server's return, with Prometheus still away."""
    restarts: dict[str, tuple[int, int]]
    """Container restarts of every pod, before and after."""

    def served(self, digest: str, since: float, until: float) -> int:
        rows = [row for row in self.windows if since <= row["start"] < until]
        return sum(row["digests"].get(digest, 0) for row in rows)


@pytest.fixture(scope="module")
def world(story: Story, cluster: Cluster) -> World:
    found = RecordReader(f"file://{story.places.records}", NAMESPACE, MODEL)
    exits = found.read_last(1, time.time()).matrix("scores").shape[1]
    # Full depth in other words: it disagrees with nothing, so only missing evidence can hold it.
    document = {"exit": {"enabled": True, "thresholds": ["1.01"] * exits}}
    path, cache = story.env["PATH"], story.places.demo / "kubectl-cache"
    carol = Kube(cluster.kubeconfig_for(WAIVER), NAMESPACE, path, cache)
    carol.create("AdaptivePolicy", NAME, {"model": MODEL, "policy": document})
    return World(story, cluster, carol, parse_policy(document).digest)


@pytest.fixture(scope="module")
def minute(world: World) -> Iterator[Minute]:
    """Live through it once; every test below looks at one side of it."""
    load.start(world.folder, replace(world.folder.read_control(), rate=RATE))
    _end_others(world)
    spec = {
        "model": MODEL, "policy": NAME, "policyDigest": world.candidate, "type": "Canary",
        "requestedBy": WAIVER, "allowUncertified": True, "steps": STEPS,
        "reason": "a canary that meets outages",
    }  # fmt: skip
    world.carol.create("PolicyRollout", NAME, spec)
    started = time.time()
    eventually(lambda: _served(world, started), "a canary that serves", 30)
    before = world.rollout()
    restarts = _restarts(world)
    began = time.time()
    with ExitStack() as evidence:
        _take_evidence(evidence, world)
        time.sleep(EVIDENCE_AWAY_FIRST)
        without_evidence = world.rollout()
        api_away = time.time()
        server = _api_server(world.cluster)
        with silent(server):
            time.sleep(AWAY_SECONDS)
            server.kill()  # what hung is cut off as well: everybody has to connect again
        eventually(lambda: rest.readyz(world.cluster.layout), "the API server", 30)
        api_back = time.time()
        time.sleep(EVIDENCE_AWAY_LAST)
        blind = world.rollout()
    evidence_back = time.time()
    eventually(lambda: status(world.rollout()).get("step") == 1, "the next step, by itself", 60)
    # Workers ask a server that was away again within ten seconds.
    eventually(lambda: _served(world, evidence_back), "the canary, served again", 30)
    ended = time.time()
    after = _restarts(world)
    world.carol.patch_spec("PolicyRollout", NAME, {"abort": True})
    time.sleep(1.2)  # the generator writes a window a second
    yield Minute(
        began, api_away, api_back, evidence_back, ended,
        load.windows(world.folder, began - 2), before, without_evidence, blind,
        {name: (restarts.get(name, 0), after[name]) for name in after},
    )  # fmt: skip


def _served(world: World, since: float) -> int:
    rows = load.windows(world.folder, since)
    return sum(row["digests"].get(world.candidate, 0) for row in rows)


def _end_others(world: World) -> None:
    """One canary at a time: whatever the story or its pipelines still have under way is aborted."""

    def others() -> list[Json]:
        return [one for one in world.carol.items("PolicyRollout") if not ended(one)]

    for one in others():
        world.carol.patch_spec("PolicyRollout", one["metadata"]["name"], {"abort": True})
    eventually(lambda: not others(), "the end of other rollouts", 30)


def _take_evidence(stack: ExitStack, world: World) -> None:
    addons = world.cluster.layout.addons
    tsdb = f"--storage.tsdb.path={addons / 'prometheus'}"
    runs = f"--backend-store-uri=sqlite:///{addons / 'mlflow'}/mlflow.db"
    stack.enter_context(without_records(world.story.places.records))
    stack.enter_context(silent(process_with(tsdb)))
    stack.enter_context(silent(process_with(runs)))


def _api_server(cluster: Cluster) -> psutil.Process:
    part = cluster.status()["components"]["kube-apiserver"]
    return psutil.Process(part["process"]["pid"])


def _restarts(world: World) -> dict[str, int]:
    found = {}
    for namespace in NAMESPACES:
        for pod in world.pods(namespace):
            counts = [one.restart_count for one in pod.status.container_statuses or []]
            found[f"{namespace}/{pod.metadata.name}"] = sum(counts)
    return found


# --- what must hold ---------------------------------------------------------------------------


def test_every_request_is_answered(minute: Minute) -> None:
    rows = [row for row in minute.windows if minute.began <= row["start"] < minute.ended]
    codes: Counter[str] = Counter()
    for row in rows:
        codes.update(row["codes"])
    assert sum(row["skipped"] for row in rows) == 0
    assert set(codes) == {"200"}, f"{codes} in {len(rows)} s"
    assert codes["200"] >= 0.9 * RATE * (minute.ended - minute.began)


def test_a_step_whose_time_is_over_waits_for_evidence_and_its_canary_is_renewed(
    world: World, minute: Minute
) -> None:
    seen = status(minute.without_evidence)
    assert seen["verdict"] == names.VERDICT_NOT_ENOUGH
    assert all(guard["verdict"] != names.VERDICT_PASS for guard in seen["guards"])
    assert (seen["step"], seen["weightBasisPoints"]) == (0, 2500)
    # A Prometheus that hangs must not keep the operator from renewing.
    spans = np.arange(minute.began, minute.api_away - 4, 4)
    assert all(minute.served(world.candidate, start, start + 4) for start in spans)


def test_without_an_operators_word_the_canary_ends_by_its_lease(
    world: World, minute: Minute
) -> None:
    over = minute.api_away + LEASE_SECONDS + 2
    assert minute.served(world.candidate, over, minute.api_back) == 0


def test_nothing_was_decided_while_evidence_was_away(minute: Minute) -> None:
    for seen in (status(minute.without_evidence), status(minute.blind)):
        assert seen["decisions"] == status(minute.before)["decisions"]
        assert seen["verdict"] != names.VERDICT_PASS


def test_the_canary_serves_again_and_goes_on_by_itself(world: World, minute: Minute) -> None:
    assert minute.served(world.candidate, minute.evidence_back, minute.ended) > 0


def test_nobody_had_to_be_restarted(minute: Minute) -> None:
    assert {name for name, (before, after) in minute.restarts.items() if after > before} == set()


def test_afterwards_every_pod_is_ready_and_new_connections_are_answered(
    world: World, minute: Minute
) -> None:
    """Connections that were open before would be served even if Services had lost their pods."""

    def unready() -> list[str]:
        pods = [one for namespace in NAMESPACES for one in world.pods(namespace)]
        return [one.metadata.name for one in pods if not _is_ready(one)]

    eventually(lambda: not unready(), "ready pods", 20)
    endpoint = world.folder.read_control().endpoint
    assert httpx.get(f"{endpoint}/v2/health/ready", timeout=5).status_code == 200


def _is_ready(pod: Any) -> bool:
    if pod.status.phase == "Succeeded":  # a TuningRun's
        return True
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions)


def test_every_audit_is_in_a_record_or_counted_as_lost(world: World, minute: Minute) -> None:
    """Of each worker since it started: what waited for the store has arrived."""
    load.stop(world.folder)

    def open_ones() -> dict[str, int]:
        segments = _audits_in_segments(world)
        return {pod: _audits_counted(world, pod) - segments.get(pod, 0) for pod in _workers(world)}

    eventually(lambda: not any(open_ones().values()), "every audit accounted for", 60)
    control = world.folder.read_control()
    load.start(world.folder, control)


def _workers(world: World) -> dict[str, str]:
    labels = f"{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}"
    return {one.metadata.name: one.status.pod_ip for one in world.pods(NAMESPACE, labels)}


def _audits_counted(world: World, pod: str) -> int:
    text = httpx.get(f"http://{_workers(world)[pod]}:{names.WORKER_PROBES_PORT}/metrics").text
    wanted = (
        rf'^{AUDITS.name}{{.*arm="stable".*}} (\S+)$',
        rf"^{RECORDS_DROPPED.name}{{.*}} (\S+)$",
    )
    return sum(int(float(n)) for one in wanted for n in re.findall(one, text, re.MULTILINE))


def _audits_in_segments(world: World) -> Counter[str]:
    found: Counter[str] = Counter()
    folder = Path(segment_folder(str(world.story.places.records), NAMESPACE, MODEL))
    for path in folder.rglob("*.parquet"):
        _, pod, _, count, lost = parse_segment_name(path.name)
        found[pod] += count + lost
    return found


def test_the_ledger_has_every_decision(world: World, minute: Minute) -> None:
    trimwheel = str(Path(sys.executable).parent / "trimwheel")
    url = f"sqlite:///{world.story.places.ledger}"

    item = world.rollout()
    uid = item["metadata"]["uid"]
    decided = [one["action"] for one in status(item)["decisions"]]
    assert decided == ["Start", "Advance", "Abort"]

    def copied() -> bool:
        done = subprocess.run(
            [trimwheel, "ledger", "show", "--url", url, "--model", f"{NAMESPACE}/{MODEL}",
             "-o", "json"],
            env=world.story.env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows = [row for row in json.loads(done.stdout) if row["uid"] == uid]
        return [row["kind"] for row in rows] == decided

    eventually(copied, "the rollout's decisions in the ledger", 40)
    verified = subprocess.run([trimwheel, "ledger", "verify", "--url", url], env=world.story.env)
    assert verified.returncode == 0
