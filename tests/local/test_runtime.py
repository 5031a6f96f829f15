"""Real processes through the shim: output, ends, signals, and finding them again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from trimwheel_local.node import logs, runtime, shim
from trimwheel_local.node.runtime import Attempt, Launch, StartFailure
from trimwheel_local.processes import ProcessId, stop_all


def launch(script: str, folder: Path) -> Launch:
    return Launch([sys.executable, "-u", "-c", script], {"A": "b"}, folder)


async def run(folder: Path, script: str, number: int = 0) -> Attempt:
    return await runtime.start(folder / "c" / "main", number, launch(script, folder))


async def text_of(attempt: Attempt) -> str:
    for _ in range(100):
        if found := b"".join(logs.lines(attempt.log, logs.Selection())):
            return found.decode()
        await asyncio.sleep(0.02)
    return ""


async def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    script = "import os, sys; print(os.environ); print('err', file=sys.stderr); sys.exit(3)"
    attempt = await run(tmp_path, script)
    end = await attempt.wait()
    assert (end.code, end.reason) == (3, "Error")
    text = await text_of(attempt)
    assert "'A': 'b'" in text
    assert "HOME" not in text, "nothing is inherited"
    assert "err" in text


async def test_a_command_that_does_not_exist_is_a_start_failure(tmp_path: Path) -> None:
    with pytest.raises(StartFailure, match="no-such-command: .*No such file"):
        await runtime.start(
            tmp_path / "c" / "main", 0, Launch(["no-such-command"], {"PATH": "/bin"}, tmp_path)
        )


async def test_death_by_signal_is_128_plus_its_number(tmp_path: Path) -> None:
    attempt = await run(tmp_path, "import time; time.sleep(60)")
    attempt.signal(signal.SIGKILL)
    assert (await attempt.wait()).code == 128 + signal.SIGKILL


async def test_a_container_is_over_when_its_first_process_is(tmp_path: Path) -> None:
    script = """
import subprocess
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(child.pid)
"""
    attempt = await run(tmp_path, script)
    await attempt.wait()
    assert ProcessId.of(int(await text_of(attempt))) is None


async def test_an_attempt_is_found_again_from_its_folder_alone(tmp_path: Path) -> None:
    first = await run(tmp_path, "import time; time.sleep(60)")
    [again] = runtime.attempts(tmp_path / "c" / "main")
    assert again.running()
    waiting = asyncio.create_task(again.wait())
    first.signal(signal.SIGTERM)
    assert (await waiting).code == 128 + signal.SIGTERM
    assert not again.running()


async def test_a_killed_shim_takes_its_container_along(tmp_path: Path) -> None:
    attempt = await run(tmp_path, "import time; time.sleep(60)")
    process = attempt.process
    assert attempt.shim and process
    attempt.shim.signal(signal.SIGKILL)
    end = await attempt.wait()
    assert (end.code, end.reason) == (runtime.LOST_CODE, "ContainerStatusUnknown")
    stop_all([process], 1)
    assert not process.alive()


async def test_only_the_last_two_attempts_are_kept(tmp_path: Path) -> None:
    for number in range(4):
        await (await run(tmp_path, "print(1)", number)).wait()
    assert [one.number for one in runtime.attempts(tmp_path / "c" / "main")] == [2, 3]


async def test_a_pods_folder_goes_with_its_processes(tmp_path: Path) -> None:
    folder = tmp_path / "pods" / "uid"
    attempt = await run(folder, "import time; time.sleep(60)")
    process = attempt.process
    runtime.kill_pod(folder)
    assert process and not process.alive()
    assert not folder.exists()


def test_a_reused_pid_is_not_the_same_process() -> None:
    own = ProcessId.of(os.getpid())
    assert own and own.alive()
    other = ProcessId(own.pid, own.start + 1)
    assert not other.alive()
    other.signal(signal.SIGKILL)


@pytest.mark.parametrize("value", [None, {}, {"pid": 1}, "x", 3])
def test_what_is_no_identity_is_read_as_none(value: object) -> None:
    assert ProcessId.load(value) is None


def test_a_full_log_is_put_aside_and_both_parts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "LOG_LIMIT", 2000)
    log = shim.Log(str(tmp_path / "log"))
    for number in range(60):
        log.write("stdout", b"line %d\n" % number)
    log.close()
    found = [int(line.split()[1]) for line in logs.lines(tmp_path / "log", logs.Selection())]
    assert (tmp_path / "log.1").exists()
    assert found == list(range(found[0], 60))
    assert (tmp_path / "log").stat().st_size <= 2000


def test_lines_are_joined_across_reads_and_long_ones_are_cut_without_loss(tmp_path: Path) -> None:
    log = shim.Log(str(tmp_path / "log"))
    log.write("stdout", b"hel")
    log.write("stderr", b"between\n")
    log.write("stdout", b"lo\n" + b"x" * 40_000 + b"\nend without newline")
    log.close()
    text = b"".join(logs.lines(tmp_path / "log", logs.Selection()))
    assert text == b"between\nhello\n" + b"x" * 40_000 + b"\nend without newline\n"
