"""The demo's memory is that of its own processes, shared pages counted once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimwheel_demo import memory
from trimwheel_demo.load import Folder
from trimwheel_demo.memory import MemoryWatch, proportional_size
from trimwheel_local.processes import ProcessId

MIB = 2**20
HOLDS = r"""
import os, sys
held = b"x" * (64 * 2**20)
if len(sys.argv) > 1 and os.fork() == 0:
    pass  # shares every page of it
os.write(1, b"there\n")
sys.stdin.read()
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[str]]:
    """A process with a child; together they hold 64 MiB."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, "fork"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stdin
        assert [process.stdout.readline() for _ in range(2)] == ["there\n"] * 2
        yield process
        process.stdin.close()


def test_pages_that_two_processes_share_count_once(stranger: subprocess.Popen[str]) -> None:
    assert 64 * MIB < proportional_size([stranger.pid]) < 100 * MIB


def test_a_process_that_is_gone_counts_nothing() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert proportional_size([done.pid]) == 0


def test_what_was_found_running_counts_with_what_was_started_and_nothing_twice(
    stranger: subprocess.Popen[str], tmp_path: Path
) -> None:
    record = tmp_path / "supervisor.json"
    watch = MemoryWatch(record, Folder(tmp_path))
    assert watch._roots() == [os.getpid()]
    identity = ProcessId.of(stranger.pid)
    assert identity is not None
    record.write_text(json.dumps({"process": identity.dump()}))
    assert watch._roots() == [os.getpid(), stranger.pid]
    both, ours = proportional_size(watch._roots()), proportional_size([os.getpid()])
    assert abs(both - ours) < 32 * MIB, "the stranger is a child of this test as well"
    record.write_text(json.dumps({"process": {"pid": stranger.pid, "start": 1}}))
    assert watch._roots() == [os.getpid()], "a pid alone is no identity"


def test_the_peak_is_known_while_and_after_it_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SECONDS", 0.05)
    watch = MemoryWatch(tmp_path / "none.json", Folder(tmp_path))
    watch.start()
    deadline = time.monotonic() + 20
    while not watch.peak and time.monotonic() < deadline:
        time.sleep(0.02)
    assert watch.stop() > 10 * MIB
