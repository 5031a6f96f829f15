"""Decodes segments in processes that hold no credentials and can reach nothing.

Called by `records`, in the loop and in Jobs, whose own processes may delete TuningRuns or certify
policies, and hold the keys of record store, MLflow and ledger. A segment's bytes are chosen by
whoever writes into a namespace's prefix, so Arrow's C++ meets them elsewhere: a *nursery* process
with an empty environment forks a *decoder* for each segment, which gives up the right to open
anything, a file as well as a connection, before it looks at the bytes, and ends with its answer.
One segment can therefore harm nothing but its own rows. What crosses the pipes is bytes, JSON and
Arrow's IPC format, checked again on this side; nothing is unpickled.

A decoder that crashes, hangs or takes too much memory has met a segment that cannot be read. What
is checked in a segment is `segment_decoding`'s.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import logging
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from trimwheel_api.errors import InvalidInput, Unavailable
from trimwheel_pipelines.segment_decoding import (
    LIMITS,
    MIB,
    Claim,
    Decoded,
    SegmentLimits,
    decode,
)
from trimwheel_workers.records.segments import SCHEMA

log = logging.getLogger(__name__)

Decode = Callable[[bytes, Claim, SegmentLimits], Decoded]

DECODE: Final = "trimwheel_pipelines.segment_decoding:decode"
ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # A pool of its own would reserve a gigabyte of addresses, which count as memory below.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""All that a nursery knows."""
SECONDS: Final = 60.0
"""That a decoder may take; milliseconds are usual."""
START_SECONDS: Final = 60.0
"""That a nursery may take to start; one is usual."""
MEMORY: Final = 768 * MIB
"""That a decoder may take beyond what it starts with: several copies of the largest segment."""
MAX_REPLY: Final = 4 * LIMITS.decoded_bytes
_PR_SET_DUMPABLE: Final = 4
_PR_SET_PDEATHSIG: Final = 1
"""A decoder does not outlive its nursery."""
_LENGTH: Final = struct.Struct("<Q")
_TABLE, _ERROR, _CRASH = b"T", b"E", b"C"
_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trimwheel_pipelines.isolated_decoding import tend; tend(sys.argv[2], float(sys.argv[3]))"
)


@dataclass
class Nursery:
    """The process that forks decoders, started when it is first needed. Safe between threads."""

    function: str = DECODE
    """`module:name` of what decodes."""
    seconds: float = SECONDS
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        atexit.register(self.close)

    def decode(
        self,
        data: bytes,
        claim: Claim,
        limits: SegmentLimits = LIMITS,
        columns: Sequence[str] = SCHEMA.names,
    ) -> Decoded:
        """The table in a segment's bytes; of its columns, all of which are checked, these.

        Raises InvalidInput when they break a limit or a rule, or a decoder; Unavailable when no
        decoder can be started, which says nothing about the segment.
        """
        about = {"claim": asdict(claim), "limits": asdict(limits), "columns": list(columns)}
        order = json.dumps(about).encode()
        with self._lock:
            try:
                reply = self._ask(order, data)
            except (OSError, EOFError) as error:
                self.close()
                raise Unavailable(f"no decoder of segments can be started: {error}") from error
        return _answer(reply, claim, limits, selected(columns))

    def close(self) -> None:
        """End the process; the next segment starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    cast(BinaryIO, stream).close()

    def _ask(self, order: bytes, data: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        to, back = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        # A decoder that was taken over may stop its parent, which then says nothing at all.
        watchdog = threading.Timer(2 * self.seconds + START_SECONDS, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            for part in (order, data):
                to.write(_LENGTH.pack(len(part)))
                to.write(part)
            to.flush()
            return _received(back, MAX_REPLY + 1)
        finally:
            watchdog.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-c", _BOOTSTRAP]
        return subprocess.Popen(
            [*command, json.dumps(sys.path), self.function, str(self.seconds)],
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


NURSERY: Final = Nursery()
"""This process's own."""


def isolated_decode(
    data: bytes,
    claim: Claim,
    limits: SegmentLimits = LIMITS,
    columns: Sequence[str] = SCHEMA.names,
) -> Decoded:
    """`segment_decoding.decode` where it can do no harm."""
    return NURSERY.decode(data, claim, limits, columns)


def selected(columns: Sequence[str]) -> pa.Schema:
    """The contract's schema with these columns alone."""
    return pa.schema([SCHEMA.field(name) for name in columns])


def hide_memory() -> None:
    """Let no other process of this user read or trace this one, which holds credentials.

    Linux alone knows how; elsewhere nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


# --- this side: what comes back is not trusted ----------------------------------------------------


def _answer(reply: bytes, claim: Claim, limits: SegmentLimits, schema: pa.Schema) -> Decoded:
    kind, body = reply[:1], reply[1:]
    try:
        if kind == _ERROR:
            name, rule, value = json.loads(body)
            raise InvalidInput(str(name)[:300], str(rule)[:300], value)
        if kind == _TABLE:
            size = _LENGTH.unpack(body[: _LENGTH.size])[0]
            head, rest = body[_LENGTH.size :][:size], body[_LENGTH.size + size :]
            losses = tuple((float(at), int(count)) for at, count in json.loads(head))
            return Decoded(_table(rest, claim, limits, schema), losses)
    except InvalidInput:
        raise
    except Exception as error:  # whatever a decoder that was taken over made up
        why = f"its decoder answered nonsense: {type(error).__name__}"
    else:
        why = body.decode(errors="replace")[:300] or "its decoder answered nothing"
    raise InvalidInput("segment", "must be a Parquet file that a decoder survives", why)


def _table(data: bytes, claim: Claim, limits: SegmentLimits, schema: pa.Schema) -> pa.Table:
    with pa.ipc.open_stream(pa.BufferReader(data)) as stream:
        if stream.schema != schema:
            raise ValueError("another schema")
        table = stream.read_all()
    table.validate(full=True)
    if len(table) > min(claim.rows, limits.rows) or table.nbytes > 2 * limits.decoded_bytes:
        raise ValueError("more than was claimed")
    return table


def _received(stream: BinaryIO, limit: int) -> bytes:
    """One part of a message. Raises EOFError when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError("the process ended")
    size = _LENGTH.unpack(head)[0]
    if size > limit:
        raise EOFError(f"a message of {size} bytes")
    body = stream.read(size)
    if len(body) < size:
        raise EOFError("the process ended within a message")
    return bytes(body)


# --- the nursery: a process that never looks at a segment -----------------------------------------


def tend(function: str, seconds: float) -> None:
    """Fork a decoder for each message, until there are no more. Runs in the nursery."""
    hide_memory()
    sys.meta_path.insert(0, _NoPandas())
    _warm_up()
    module, _, name = function.partition(":")
    decoder: Decode = getattr(import_module(module), name)
    orders, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    while True:
        try:
            order = json.loads(_received(orders, MIB))
            data = _received(orders, LIMITS.file_bytes + MIB)
        except EOFError:
            return
        reply = _forked(decoder, order, data, seconds)
        replies.write(_LENGTH.pack(len(reply)))
        replies.write(reply)
        replies.flush()


class _NoPandas:
    """Arrow imports it in the middle of its work, and takes its absence for an answer."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(name)


def _warm_up() -> None:
    """Load what decoding loads when it first needs it: a decoder could not open it any more."""
    values: dict[str, Any] = {}
    for column in SCHEMA:
        kind = column.type.value_type if pa.types.is_list(column.type) else column.type
        value: Any = "a" if pa.types.is_string(kind) else pa.scalar(0).cast(kind).as_py()
        several = 2 if column.name == "predictions" else 1
        values[column.name] = [[value] * several if pa.types.is_list(column.type) else value]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(values, SCHEMA), sink)
    decode(bytes(sink.getvalue()), Claim("", "", 1))


def _forked(decode: Decode, order: dict[str, Any], data: bytes, seconds: float) -> bytes:
    """The answer of a decoder of its own, or why there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _decoder(decode, order, data, writing)
    os.close(writing)
    try:
        reply = _collected(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if reply is None:
        return _CRASH + f"its decoder took longer than {seconds:g} s, or said too much".encode()
    if not reply and os.WIFSIGNALED(status):
        return _CRASH + f"its decoder was ended by signal {os.WTERMSIG(status)}".encode()
    return reply or _CRASH + b"its decoder ended without an answer"


def _collected(reading: int, until: float) -> bytes | None:
    """Everything that is written, to its end; None when it takes too long or is too much."""
    parts: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as ready:
        ready.register(reading, selectors.EVENT_READ)
        while ready.select(max(0.0, until - time.monotonic())):
            part = os.read(reading, MIB)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > MAX_REPLY:
                return None
    return None


# --- the decoder: a process for one segment -------------------------------------------------------


def _decoder(decode: Decode, order: dict[str, Any], data: bytes, writing: int) -> None:
    """Decode one segment and end. Never returns."""
    try:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        _give_up_everything(writing)
        claim, limits = Claim(**order["claim"]), SegmentLimits(**order["limits"])
        try:
            reply = _TABLE + _packed(decode(data, claim, limits), order["columns"])
        except InvalidInput as error:
            plain = error.value is None or isinstance(error.value, int | float)
            said = [error.field, error.rule, error.value if plain else str(error.value)[:300]]
            reply = _ERROR + json.dumps(said).encode()
        view = memoryview(reply)
        while view:
            view = view[os.write(writing, view) :]
    finally:
        os._exit(0)


def _give_up_everything(kept: int) -> None:
    """No descriptor but the answer's, and no right to another: no file, no connection, no child."""
    with open("/proc/self/statm", encoding="ascii") as sizes:
        now = int(sizes.read().split()[0]) * resource.getpagesize()
    os.closerange(0, kept)
    os.closerange(kept + 1, max(kept + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    for limit, value in (
        (resource.RLIMIT_AS, now + MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(SECONDS)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _packed(decoded: Decoded, columns: Sequence[str]) -> bytes:
    losses = json.dumps(decoded.losses).encode()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, selected(columns)) as stream:
        stream.write_table(decoded.table.select(columns))
    return _LENGTH.pack(len(losses)) + losses + bytes(sink.getvalue())
