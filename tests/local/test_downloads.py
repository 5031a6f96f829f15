"""Official releases first: downloaded, resumed, checked; what cannot be downloaded is built.

A real HTTP server stands in for the origins, with the faults that origins have.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.local.origin import PROGRAM, Fault, Origin, origin
from tests.local.test_binaries import fake_go

from trimwheel_api.errors import InvalidInput
from trimwheel_local import binaries, download, pins, releases, ways
from trimwheel_local.errors import BinaryError, DownloadError

QUICK = download.Patience(silence=0.3, attempts=2, pause=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Origin]:
    """The origin, an empty cache, and a Go that only the tests for builds bring."""
    with origin() as place:
        monkeypatch.setenv("TRIMWHEEL_RELEASES", place.url)
        monkeypatch.setenv("TRIMWHEEL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        for name in ("KUBEBUILDER_ASSETS", "TRIMWHEEL_PROMETHEUS_BIN", "TRIMWHEEL_BINARIES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(download, "Patience", lambda **given: replace(QUICK, **given))
        yield place


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Origin) -> None:
    fake_go(tmp_path / "bin", "go1.26.8")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def artifact(name: str) -> releases.Artifact:
    return next(each for each in releases.artifacts() if each.members[0][0] == name)


def origin_of(found: binaries.Binaries) -> dict[str, str]:
    """downloaded or built, by binary."""
    return {
        name: "downloaded" if path.read_bytes() == PROGRAM else "built"
        for name, path in found.paths.items()
    }


def test_every_binary_is_downloaded_without_go_and_once(server: Origin) -> None:
    said: list[str] = []
    found = binaries.ensure(lambda name, done, total, message: said.append(message))
    assert found.paths.keys() == pins.all_names()
    assert set(origin_of(found).values()) == {"downloaded"}
    assert subprocess.check_output([found["kubectl"]], text=True) == "released\n"
    fetched = [path for path, _ in server.asked]
    assert len(fetched) == len(set(fetched)) == 2 * len(releases.artifacts())
    assert binaries.ensure().paths == found.paths
    assert len(server.asked) == len(fetched), "nothing is asked for twice"
    assert any(re.match(r"downloading etcd v3.6.8 \(1 of 8\): 0.\d MB of", text) for text in said)
    left = [path for path in (Path(str(found["etcd"])).parents[1]).rglob("*") if path.is_file()]
    assert {path.name for path in left} == pins.all_names() | {"lock"}, "no part is left over"


def test_the_bar_goes_by_bytes_and_reaches_the_end(server: Origin) -> None:
    seen: list[float] = []
    file = Path(pins.cache_folder()) / "state"
    file.parent.mkdir(parents=True)
    report = binaries.progress_file(file)

    def progress(name: str, done: float, total: float, message: str) -> None:
        report(name, done, total, message)
        seen.append(float(re.findall(r'"share": ([\d.]+)', file.read_text())[0]))

    binaries.ensure(progress)
    assert seen[0] == 0 and seen[-1] == pytest.approx(1.0)
    assert len({round(share, 2) for share in seen}) > 8


def test_the_release_has_the_version_that_the_build_would_have() -> None:
    paths = "\n".join(each.path for each in releases.artifacts())
    for group in pins.groups():
        if group.name == "prometheus":
            assert re.fullmatch(r"v0\.\d{3}\.\d+", group.version)
            assert "/v3.15.0/prometheus-3.15.0." in paths
        else:
            assert group.version in paths, group.name


FAULTS = {
    "truncated once": (Fault(cut=100_000, times=1), "downloaded"),
    "truncated always, a little further each time": (Fault(cut=100_000), "downloaded"),
    "truncated without a length": (Fault(cut=100_000, no_length=True), "built"),
    "truncated before the first byte, always": (Fault(cut=-1_000_000), "built"),
    "other bytes than were published": (Fault(lie=b"#!/bin/sh\necho evil\n"), "built"),
    "404": (Fault(status=404), "built"),
    "403": (Fault(status=403), "built"),
    "500 once": (Fault(status=500, times=1), "downloaded"),
    "429 once": (Fault(status=429, times=1), "downloaded"),
    "503 always": (Fault(status=503), "built"),
    "silent in the middle": (Fault(pause=2.0), "built"),
    "redirects for ever": (Fault(status=302, location="/self"), "built"),
    "redirects to another scheme": (Fault(status=302, location="file:///etc/passwd"), "built"),
    "without a length": (Fault(no_length=True), "downloaded"),
}


@pytest.mark.parametrize(("fault", "outcome"), FAULTS.values(), ids=FAULTS)
def test_a_fault_on_the_way_is_resumed_or_ends_in_a_build_that_says_why(
    fault: Fault, outcome: str, server: Origin, go: None
) -> None:
    path = artifact("kube-scheduler").path
    if fault.location == "/self":
        fault = replace(fault, location=f"/{path}")
    server.faults[path] = replace(fault)
    said: list[str] = []
    wanted = frozenset({"kube-scheduler"})
    found = binaries.ensure(lambda name, done, total, message: said.append(message), wanted)
    assert origin_of(found) == {"kube-scheduler": outcome}
    told = [text for text in said if "building it with Go instead" in text]
    assert bool(told) is (outcome == "built"), said
    assert not told or path in told[0]


@pytest.mark.parametrize("fault", ["404", "other bytes than were published", "503 always"])
def test_mode_download_never_builds(
    fault: str, server: Origin, go: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_BINARIES", "download")
    server.faults[artifact("kube-scheduler").path] = replace(FAULTS[fault][0])
    with pytest.raises(DownloadError, match="kube-scheduler"):
        binaries.ensure(wanted=frozenset({"kube-scheduler"}))
    assert "kube-scheduler" not in binaries.find().paths


def test_bytes_that_arrived_are_not_asked_for_again_by_the_next_process(server: Origin) -> None:
    one = artifact("kubectl")
    server.faults[one.path] = Fault(cut=120_000, times=1)
    target = pins.cache_folder() / "kubectl"
    url, digest = f"{server.url}/{one.path}", releases.ask([one])[one].sha256
    never = replace(QUICK, attempts=1)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(url, target, digest, _interrupt_after(50_000), never)
    kept = target.with_name("kubectl.part").stat().st_size
    assert 0 < kept <= 250_000 and not target.exists()
    download.fetch(url, target, digest, lambda *_: None, QUICK)
    assert target.read_bytes() == PROGRAM
    assert server.asked[-1] == (one.path, f"bytes={kept}-")


def _interrupt_after(size: int) -> download.Received:
    def received(done: int, total: int) -> None:
        if done >= size:
            raise KeyboardInterrupt

    return received


@pytest.mark.parametrize("ignores_range", [False, True])
@pytest.mark.parametrize("left", ["the beginning", "other bytes", "the whole", "too much"])
def test_what_lies_there_from_before_is_used_only_if_it_is_right(
    left: str, ignores_range: bool, server: Origin
) -> None:
    one = artifact("kubectl")
    server.faults[one.path] = Fault(ignores_range=ignores_range)
    contents = {
        "the beginning": PROGRAM[:200_000],
        "other bytes": b"?" * 200_000,
        "the whole": PROGRAM,
        "too much": PROGRAM + b"more",
    }
    target = pins.cache_folder() / "kubectl"
    target.parent.mkdir(parents=True)
    target.with_name("kubectl.part").write_bytes(contents[left])
    digest = releases.ask([one])[one].sha256
    download.fetch(f"{server.url}/{one.path}", target, digest, lambda *_: None, QUICK)
    assert target.read_bytes() == PROGRAM


def test_a_rate_below_that_of_a_build_ends_a_download_unless_downloads_are_wanted(
    server: Origin,
) -> None:
    one = artifact("kubectl")
    server.faults[one.path] = Fault(pause=0.02)
    impatient = replace(QUICK, slowest=10_000_000, window=0.2)
    target = pins.cache_folder() / "kubectl"
    url, digest = f"{server.url}/{one.path}", releases.ask([one])[one].sha256
    with pytest.raises(DownloadError, match=r"kB/s is too slow; .* are kept"):
        download.fetch(url, target, digest, lambda *_: None, impatient)
    server.faults.clear()
    download.fetch(url, target, digest, lambda *_: None, replace(impatient, slowest=0))
    assert target.read_bytes() == PROGRAM


def test_an_answer_that_is_longer_than_any_release_is_not_kept(
    server: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = artifact("kubectl")
    monkeypatch.setattr(download, "LARGEST", 100_000)
    for fault in (Fault(), Fault(no_length=True)):
        server.faults[one.path] = fault
        with pytest.raises(DownloadError, match="longer than any release"):
            url, target = f"{server.url}/{one.path}", pins.cache_folder() / "kubectl"
            download.fetch(url, target, "0" * 64, lambda *_: None, QUICK)


def unreachable(kind: str) -> str:
    """An origin's address that answers nothing useful, in each of the usual manners."""
    if kind == "refused":
        return "http://127.0.0.1:9"
    if kind == "a name that nobody knows":
        return "http://releases.invalid"
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    if kind == "closes at once":
        threading.Thread(target=_closing, args=(listener,), daemon=True).start()
    if kind == "speaks no HTTP":
        threading.Thread(target=_closing, args=(listener, b"\x00\xff" * 40), daemon=True).start()
    _kept.append(listener)
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


_kept: list[socket.socket] = []
"""Sockets that accept and stay silent, until the process ends."""


def _closing(listener: socket.socket, says: bytes = b"") -> None:
    while True:
        connection, _ = listener.accept()
        connection.sendall(says)
        connection.close()


UNREACHABLE = ("refused", "a name that nobody knows", "closes at once", "speaks no HTTP", "silent")


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_an_origin_that_cannot_be_reached_costs_seconds_then_go_builds(
    kind: str, server: Origin, go: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_RELEASES", unreachable(kind))
    monkeypatch.setattr(releases.ask, "__defaults__", (1.0,))
    started = time.monotonic()
    found = binaries.ensure()
    assert set(origin_of(found).values()) == {"built"}
    assert time.monotonic() - started < 1.0 + 8 * 0.5  # a second to ask, and eight scripts as Go
    assert releases.PATIENCE <= 5


@pytest.mark.parametrize(
    "lie", [b"<html>Please log in</html>", b"", b"\xff" * 2000, b"0" * 63, b"0" * 3_000_000]
)
def test_a_checksum_file_that_is_none_counts_as_unreachable(
    lie: bytes, server: Origin, go: None
) -> None:
    for one in releases.artifacts():
        server.faults[one.checksums] = Fault(lie=lie or b"\n")
    planned = ways.plan(["etcd", "kubectl"])
    assert [way.artifact for way in planned] == [None, None]
    assert all("checksum" in way.reason or "longer than" in way.reason for way in planned)


def test_one_origin_that_is_away_leaves_the_others_to_download(server: Origin, go: None) -> None:
    for one in releases.artifacts():
        if one.path.startswith("github.com/"):
            server.faults[one.checksums] = Fault(status=404)
    assert origin_of(binaries.ensure()) == {
        name: "built" if name in {"etcd", "prometheus", "promtool"} else "downloaded"
        for name in pins.all_names()
    }


def test_mode_build_asks_no_origin_and_takes_no_download_for_a_build(
    server: Origin, go: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = frozenset({"kubectl"})
    assert origin_of(binaries.ensure(wanted=wanted)) == {"kubectl": "downloaded"}
    server.asked.clear()
    monkeypatch.setenv("TRIMWHEEL_BINARIES", "build")
    assert origin_of(binaries.ensure(wanted=wanted)) == {"kubectl": "built"}
    assert server.asked == []
    monkeypatch.setenv("TRIMWHEEL_BINARIES", "download")
    assert origin_of(binaries.find()) == {"kubectl": "downloaded"}


def test_mode_download_without_an_origin_says_what_to_do(
    server: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMWHEEL_BINARIES", "download")
    monkeypatch.setenv("TRIMWHEEL_RELEASES", "http://127.0.0.1:9")
    with pytest.raises(BinaryError) as raised:
        binaries.ensure(wanted=frozenset({"etcd"}))
    for part in ("etcd", "Connection refused", "auto or build", "TRIMWHEEL_RELEASES"):
        assert part in str(raised.value)


def test_without_go_and_without_an_origin_the_error_says_both(
    server: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("TRIMWHEEL_RELEASES", "http://127.0.0.1:9")
    with pytest.raises(BinaryError, match="go is not on PATH.*Connection refused"):
        binaries.ensure()


def test_a_machine_that_nobody_releases_for_builds(
    server: Origin, go: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases.platform, "machine", lambda: "riscv64")
    assert set(origin_of(binaries.ensure()).values()) == {"built"}
    assert server.asked == []


def test_assets_of_ones_own_keep_their_first_place(
    server: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("etcd", "kubectl"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    found = binaries.ensure()
    assert found["etcd"] == tmp_path / "etcd" and found["kubectl"] == tmp_path / "kubectl"
    assert not [path for path, _ in server.asked if "etcd" in path or "kubectl" in path]
    assert origin_of(found)["kube-apiserver"] == "downloaded", "what it lacks comes as ever"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRIMWHEEL_BINARIES", "never"),
        ("TRIMWHEEL_BINARIES", "Auto"),
        ("TRIMWHEEL_RELEASES", "mirror.example.com"),
        ("TRIMWHEEL_RELEASES", "ftp://mirror.example.com"),
        ("TRIMWHEEL_RELEASES", "http://"),
        ("TRIMWHEEL_RELEASES", "http://host:99999999"),
        ("TRIMWHEEL_RELEASES", "http://[::1"),
        ("TRIMWHEEL_RELEASES", "http://a b"),
        ("KUBEBUILDER_ASSETS", "/nowhere/at/all"),
        ("TRIMWHEEL_PROMETHEUS_BIN", "/etc/passwd"),
    ],
)
def test_a_variable_that_cannot_work_is_named(
    variable: str, value: str, server: Origin, go: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInput, match=f"^{variable}: must .*{re.escape(value)}"):
        binaries.ensure()


def test_who_comes_second_says_that_it_waits_and_finds_what_the_first_has_made(
    server: Origin,
) -> None:
    server.faults[artifact("etcd").path] = Fault(pause=0.003)
    said: list[str] = []
    wanted = frozenset({"etcd"})
    first = threading.Thread(target=binaries.ensure, kwargs={"wanted": wanted})
    first.start()
    while not server.sent.get(artifact("etcd").path):
        time.sleep(0.01)
    binaries.ensure(lambda name, done, total, message: said.append(message), wanted)
    first.join()
    assert said == ["waiting for another process that gets the same binaries"]


def test_the_bar_names_what_is_being_built_now_and_in_the_order_of_the_story(
    server: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    talks = (
        'echo "go: downloading a.example/b v1.2.3" >&2; sleep 0.1; echo internal/goarch >&2; '
        "echo runtime >&2; sleep 0.1; "
    )
    fake_go(tmp_path / "bin", "go1.26.8")
    script = tmp_path / "bin" / "go"
    script.write_text(script.read_text().replace("else while", f"else {talks}while"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("TRIMWHEEL_BINARIES", "build")
    said: list[tuple[str, str]] = []

    def progress(name: str, done: float, total: float, message: str) -> None:
        present = binaries.find().paths
        assert message.startswith("built ") or name not in present, (name, message)
        said.append((name, message))

    binaries.ensure(progress, frozenset({"etcd", "kube-apiserver", "helm"}))
    order = list(dict.fromkeys(name for name, text in said if text.startswith("building")))
    assert order == ["etcd", "kube-apiserver", "helm"]
    assert ("helm", "building helm with Go (3 of 3): downloading its sources") in said
    assert ("helm", "building helm with Go (3 of 3): 2 packages compiled") in said


def test_an_interrupted_command_says_what_is_left_and_that_it_goes_on(
    server: Origin, tmp_path: Path
) -> None:
    server.faults[artifact("kubectl").path] = Fault(pause=0.05)
    command = [sys.executable, "-m", "trimwheel_local.binaries", "--wanted", "helm,kubectl"]
    state = tmp_path / "state"
    process = subprocess.Popen(
        [*command, "--progress-file", str(state)], stderr=subprocess.PIPE, text=True
    )
    while not server.sent.get(artifact("kubectl").path):
        time.sleep(0.02)
    process.send_signal(2)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted; still to get: kubectl, helm; what was downloaded" in said
    assert "Traceback" not in said and "Aborted" not in said
    server.faults.clear()
    assert subprocess.run(command, capture_output=True).returncode == 0
    again = [asked for path, asked in server.asked if path == artifact("kubectl").path]
    assert re.fullmatch(r"bytes=[1-9]\d*-", again[-1])
