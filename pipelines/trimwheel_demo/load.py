"""Open-loop load: held-out snippets at a fixed rate, whatever the server does.

`python -m trimwheel_demo.load FOLDER` is the generator process; it obeys `control.json` in that
folder (rate, mix, endpoint), which `start`, `change` and `stop` write, and reports once a second
to `windows.jsonl`. A closed loop would slow down with the server and hide its latency; this one
sends on schedule and measures from the scheduled time. Sessions are one to three requests long.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from trimwheel_api import names
from trimwheel_api.errors import InvalidInput, SetupFailed
from trimwheel_demo import corpus

BASE_MIX = {"heldout": 1.0}
DRIFTED_MIX = {"comments": 1.0}
MIXES = {"base": BASE_MIX, "drifted": DRIFTED_MIX}
SLOWEST, FASTEST = 0.1, 5000.0
"""Requests a second."""
MAX_IN_FLIGHT = 1000
"""Beyond this the schedule is skipped and counted: the server is lost, memory should not be."""
SESSION_LENGTHS = (1, 2, 3)
TIMEOUT_SECONDS = 10.0
CONNECTIONS = 128
UNANSWERED = "none"


@dataclass(frozen=True, slots=True)
class Control:
    """What the generator is told."""

    endpoint: str
    model: str
    rate: float = 100.0
    mix: str = "base"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidInput: NaN for a rate would send without a pause until memory ends."""
        number = isinstance(self.rate, (int, float)) and not isinstance(self.rate, bool)
        if not number or not SLOWEST <= self.rate <= FASTEST:
            raise InvalidInput("rate", f"must be from {SLOWEST} to {FASTEST} a second", self.rate)
        if self.mix not in MIXES:
            raise InvalidInput("mix", f"must be one of {', '.join(sorted(MIXES))}", self.mix)


@dataclass(slots=True)
class Window:
    """One second of results."""

    start: float
    mix: str = ""
    sent: int = 0
    skipped: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    digests: Counter[str] = field(default_factory=Counter)
    layers: int = 0
    milliseconds: list[float] = field(default_factory=list)

    def line(self) -> str:
        """The window as a line of JSON (`asdict` would take a Counter apart wrongly)."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}) + "\n"


_FIELDS = {"start", "sent", "skipped", "codes", "digests", "milliseconds"}
"""What a window must have to be summed."""


class Folder:
    """The generator's files, seen from either side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.control = path / "control.json"
        self.windows = path / "windows.jsonl"
        self.pid = path / "pid"
        self.log = path / "load.log"

    def read_control(self) -> Control:
        """The newest instructions. Raises SetupFailed when the file is damaged."""
        try:
            return Control(**json.loads(self.control.read_text()))
        except (OSError, ValueError, TypeError, RecursionError, InvalidInput) as error:
            raise SetupFailed(
                f"{self.control} cannot be read ({error}): remove it, and start the load again"
            ) from error

    def write_control(self, control: Control) -> None:
        """Replace the instructions; the generator follows within a fifth of a second."""
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.control.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(control)))
        scratch.replace(self.control)

    def running(self) -> int | None:
        """The generator's process id, if it lives."""
        try:
            pid = int(self.pid.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if b"trimwheel_demo.load" in command else None


def start(folder: Folder, control: Control) -> int:
    """Start the generator, or change what a running one does; returns its process id."""
    folder.write_control(control)
    if pid := folder.running():
        return pid
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trimwheel_demo.load", str(folder.path)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    folder.pid.write_text(str(process.pid))
    return process.pid


def stop(folder: Folder) -> bool:
    """Stop the generator; False when none runs."""
    pid = folder.running()
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while folder.running() and time.monotonic() < deadline:
        time.sleep(0.05)
    if folder.running():
        os.kill(pid, signal.SIGKILL)
    folder.pid.unlink(missing_ok=True)
    return True


def windows(
    folder: Folder, since: float = 0.0, until: float = float("inf")
) -> list[dict[str, Any]]:
    """The one-second windows that began in [since, until), oldest first."""
    if not folder.windows.exists():
        return []
    with folder.windows.open(errors="replace") as lines:
        rows = [row for line in lines if (row := _window(line)) is not None]
    return [row for row in rows if since <= row["start"] < until]


def _window(line: str) -> dict[str, Any] | None:
    """A line as it was written; None for one that is half written or damaged."""
    try:
        row = json.loads(line) if line.endswith("\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _FIELDS <= row.keys():
        return None
    return row if isinstance(row["start"], (int, float)) else None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals and latency quantiles over windows; quantiles are None without an answer."""
    times = sorted(value for row in rows for value in row["milliseconds"])
    codes: Counter[str] = Counter()
    digests: Counter[str] = Counter()
    for row in rows:
        codes.update(row["codes"])
        digests.update(row["digests"])
    return {
        "seconds": len(rows),
        "sent": sum(row["sent"] for row in rows),
        "skipped": sum(row["skipped"] for row in rows),
        "answered": codes.get("200", 0),
        "codes": dict(codes),
        "digests": dict(digests),
        "p50_ms": _quantile(times, 0.5),
        "p99_ms": _quantile(times, 0.99),
    }


def _quantile(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def sessions(rng: random.Random) -> Iterator[str]:
    """Session keys, each for one to three consecutive requests."""
    while True:
        key = f"{rng.getrandbits(64):016x}"
        for _ in range(rng.choice(SESSION_LENGTHS)):
            yield key


class Generator:
    """The process: a schedule, a client, and a window that is written every second."""

    def __init__(self, folder: Folder, pools: corpus.Corpus | None = None) -> None:
        self.folder = folder
        self.control = folder.read_control()
        self.pools = pools or corpus.build(self.control.seed)
        self.rng = random.Random(f"load/{self.control.seed}")
        self.keys = sessions(self.rng)
        self.texts = self._texts()
        self.window = Window(time.time(), self.control.mix)
        self.in_flight = 0
        self.stopping = asyncio.Event()

    def _texts(self) -> Iterator[str]:
        mix = MIXES[self.control.mix]
        return (s.text for s in self.pools.draw(mix, self.rng.getrandbits(32)))

    async def run(self) -> None:
        """Send until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
            housekeeping = asyncio.create_task(self._housekeeping())
            housekeeping.add_done_callback(lambda _: self.stopping.set())
            await self._send_on_schedule(client)
            if housekeeping.done():
                housekeeping.result()  # it never ends by itself: this raises what ended it
            housekeeping.cancel()

    async def _send_on_schedule(self, client: aiohttp.ClientSession) -> None:
        pending: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while not self.stopping.is_set():
            due += 1.0 / self.control.rate
            delay = due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            elif delay < -1.0:  # after a stall, do not answer it with a burst
                due = time.perf_counter()
            if self.in_flight >= MAX_IN_FLIGHT:
                self.window.skipped += 1
                continue
            self.window.sent += 1
            task = asyncio.create_task(self._one(client, next(self.texts), next(self.keys), due))
            pending.add(task)
            task.add_done_callback(pending.discard)

    async def _one(self, client: aiohttp.ClientSession, text: str, key: str, due: float) -> None:
        self.in_flight += 1
        body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}
        url = f"{self.control.endpoint}/v2/models/{self.control.model}/infer"
        try:
            async with client.post(url, json=body, headers={names.SESSION_HEADER: key}) as answer:
                payload = await answer.json(content_type=None)
                self._count(str(answer.status), payload, due)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self.window.codes[UNANSWERED] += 1
        finally:
            self.in_flight -= 1

    def _count(self, code: str, payload: dict[str, Any], due: float) -> None:
        window = self.window
        window.codes[code] += 1
        if code != "200":
            return
        window.milliseconds.append(round((time.perf_counter() - due) * 1000, 2))
        given = payload.get("parameters", {})
        window.arms[str(given.get(names.PARAM_ARM))] += 1
        window.digests[str(given.get(names.PARAM_DIGEST))] += 1
        window.layers += int(given.get(names.PARAM_LAYERS, 0))

    async def _housekeeping(self) -> None:
        """Follow the control file; write a window a second."""
        seen = self.folder.control.stat().st_mtime_ns
        while True:
            await asyncio.sleep(0.2)
            stamp = self.folder.control.stat().st_mtime_ns
            if stamp != seen:
                seen = stamp
                self.control = self.folder.read_control()
                self.texts = self._texts()
            if time.time() - self.window.start >= 1.0:
                finished, self.window = self.window, Window(time.time(), self.control.mix)
                with self.folder.windows.open("a") as out:
                    out.write(finished.line())


def main() -> None:
    """Run the generator in the folder named on the command line."""
    asyncio.run(Generator(Folder(Path(sys.argv[1]))).run())


if __name__ == "__main__":
    main()
