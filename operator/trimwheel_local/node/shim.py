"""Stands between the node and one container, and outlives the node. Standard library only.

Started as `python -I -S shim.py FOLDER`. It runs the command of `FOLDER/spec.json` in a session
of its own, writes its output to `FOLDER/log` in the CRI format (time, stream, F or P, text), and
its end to `FOLDER/exit.json`. Being a subreaper, it sees everything that the command ever
started, and takes all of it down once the command has ended: a container is over when its first
process is. It prints one JSON line, `{"pid", "start"}` or `{"error"}`, and then stays silent.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes a third of the start-up time
    from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOG_LIMIT = 10 * 2**20
"""Bytes of a log file; with the one put aside, a container keeps at most twice as much."""
LINE_LIMIT = 16 * 1024
"""Bytes after which a line is cut into parts marked P, as container runtimes do."""
DRAIN = 0.3
"""Seconds to wait for the last output of a command that has ended."""
COMMAND_NOT_FOUND = 127
READ_SIZE = 65536

prctl = ctypes.CDLL(None).prctl


class Log:
    """The container's log file: CRI lines, rotated once it is full."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = open(path, "ab", buffering=0)
        self.size = self.file.tell()
        self.rest: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def write(self, stream: str, data: bytes) -> None:
        """Append what arrived, line by line; an unfinished line waits for its end."""
        *lines, rest = (self.rest[stream] + data).split(b"\n")
        stamp = _now().encode() + b" " + stream.encode()
        out = []
        for line in lines:
            while len(line) > LINE_LIMIT:
                out.append(b"%s P %s\n" % (stamp, line[:LINE_LIMIT]))
                line = line[LINE_LIMIT:]
            out.append(b"%s F %s\n" % (stamp, line))
        while len(rest) > LINE_LIMIT:
            out.append(b"%s P %s\n" % (stamp, rest[:LINE_LIMIT]))
            rest = rest[LINE_LIMIT:]
        self.rest[stream] = rest
        self._append(b"".join(out))

    def close(self) -> None:
        for stream, rest in self.rest.items():
            if rest:
                self.write(stream, b"\n")
        self.file.close()

    def _append(self, data: bytes) -> None:
        if self.size and self.size + len(data) > LOG_LIMIT:
            self.file.close()
            os.replace(self.path, self.path + ".1")
            self.file = open(self.path, "ab", buffering=0)
            self.size = 0
        self.file.write(data)
        self.size += len(data)


def main(folder: str) -> None:
    """Run one attempt of one container to its end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    with open(f"{folder}/spec.json", "rb") as file:
        spec = json.load(file)
    pid, outputs, error = _launch(spec)
    if error:
        os.waitpid(pid, 0)
        _announce({"error": error})
        return
    state = {"pid": pid, "start": _start_time(pid)}
    _write(f"{folder}/state.json", {**state, "startedAt": _now()})
    _announce(state)
    log = Log(f"{folder}/log")
    status = _pump(pid, outputs, log)
    log.close()
    end = {"code": os.waitstatus_to_exitcode(status), "finishedAt": _now()}
    _write(f"{folder}/exit.json", end)


def _launch(spec: dict[str, Any]) -> tuple[int, dict[str, int], str]:
    """Fork and exec; returns (pid, read ends by stream, error text or '')."""
    pipes = {name: os.pipe() for name in ("stdout", "stderr")}
    fail_read, fail_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _exec(spec, pipes, fail_write)
    os.close(fail_write)
    for _, write_end in pipes.values():
        os.close(write_end)
    with os.fdopen(fail_read, "rb") as failure:
        error = failure.read().decode(errors="replace")
    return pid, {name: read_end for name, (read_end, _) in pipes.items()}, error


def _exec(spec: dict[str, Any], pipes: dict[str, tuple[int, int]], failure: int) -> None:
    """In the child: never returns."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(pipes["stdout"][1], 1)
        os.dup2(pipes["stderr"][1], 2)
        os.chdir(spec["folder"])
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except BaseException as error:
        os.write(failure, f"{spec['command'][0]}: {error}".encode())
    finally:
        os._exit(COMMAND_NOT_FOUND)


def _pump(pid: int, outputs: dict[str, int], log: Log) -> int:
    """Copy output until the command has ended and its pipes are dry; returns the wait status."""
    watch = selectors.DefaultSelector()
    for stream, descriptor in outputs.items():
        watch.register(descriptor, selectors.EVENT_READ, stream)
    handle = os.pidfd_open(pid)
    watch.register(handle, selectors.EVENT_READ, None)
    deadline = None
    status = 0
    while len(watch.get_map()) and (deadline is None or time.monotonic() < deadline):
        for key, _ in watch.select(None if deadline is None else 0.05):
            if key.data is None:
                watch.unregister(handle)
                _, status = os.waitpid(pid, 0)
                deadline = time.monotonic() + DRAIN
                _kill_rest(pid)
            elif data := os.read(key.fd, READ_SIZE):
                log.write(key.data, data)
            else:
                watch.unregister(key.fd)
    return status


def _kill_rest(group: int) -> None:
    """Kill all that the command left behind: its group, and whatever was handed to us."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    # A killed process hands its own children to us, so one round may not be enough.
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _children() -> list[int]:
    own = str(os.getpid())
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    text = file.read()
            except OSError:
                continue
            if text[text.rindex(")") + 2 :].split()[1] == own:
                found.append(int(name))
    return found


def _start_time(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    return int(text[text.rindex(")") + 2 :].split()[19])


def _now() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09}Z"


def _write(path: str, value: dict[str, Any]) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(path + ".new", path)


def _announce(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout.close()


if __name__ == "__main__":
    main(sys.argv[1])
