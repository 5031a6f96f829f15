"""The ledger: every decision with its evidence, append-only, each row chained to the one before.

Written by the pipelines Deployment alone, read by `trimwheel ledger`. A row's `sha` covers its own
content and the previous row's `sha`, so nobody can change, drop or reorder history without breaking
the chain; triggers refuse UPDATE, DELETE and replacing INSERTs besides, to whoever does not drop
them first. Copies of an object's decisions carry
(uid, source_seq), which is unique: copying again changes nothing.

SQLite by default, PostgreSQL by address. Leaves out projections: objects and MLflow hold
the present.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlmodel import Field, Session, SQLModel, col, create_engine, select

from trimwheel_api.errors import SpecInvalid, Unavailable
from trimwheel_pipelines.ledger_schema import migrate

GENESIS = "0" * 64
"""`prev_sha` of the first row."""
BUSY_TIMEOUT_MS = 10_000
POSTGRESQL_DRIVER = "postgresql+psycopg"
"""What a plain `postgresql://` means; SQLAlchemy's own default is psycopg2."""
_PAGE = 1_000


class Entry(SQLModel, table=True):
    """One row. Tables are made by `ledger_schema`, which also forbids changes."""

    __tablename__ = "ledger"

    seq: int = Field(primary_key=True)
    at: str
    """When it happened, RFC 3339, as the object says; not when it was copied."""
    actor: str
    """User or service account who decided."""
    kind: str
    """What happened, such as Promote, RollBack, TuningRun, AliasMoved."""
    subject: str
    """namespace/name of the model."""
    uid: str
    """metadata.uid of the object that the event was read from."""
    source_seq: int
    """Its number within that object."""
    payload_json: str
    """Evidence: canonical JSON."""
    prev_sha: str
    sha: str


@dataclass(frozen=True, slots=True)
class Event:
    """What is to be written; the ledger adds number and hashes."""

    at: str
    actor: str
    kind: str
    subject: str
    uid: str
    source_seq: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Break:
    """Where the chain does not hold, and why."""

    seq: int
    reason: str


class Ledger:
    """One database; open it once a process."""

    def __init__(self, url: str, *, existing: bool = False) -> None:
        """Connect and bring the schema up to date; with `existing` only read what is there.

        Raises SpecInvalid for an address that names no database (with `existing`: no ledger),
        Unavailable when it is away.
        """
        self._engine = _engine(url, existing)
        with _translated(url):
            if not existing:
                migrate(self._engine)
            elif not inspect(self._engine).has_table("ledger"):
                raise _no_ledger(url, "the database has no table `ledger`")

    def append(self, events: list[Event]) -> int:
        """Write the events that are not there yet, in order, in one transaction.

        Returns how many were new. Raises Unavailable when the database does not answer; then none
        was written.
        """
        if not events:
            return 0
        with _translated(str(self._engine.url)), Session(self._engine) as session:
            _lock(session.connection())
            last = session.exec(select(Entry).order_by(col(Entry.seq).desc()).limit(1)).first()
            seq, previous, added = (last.seq, last.sha, 0) if last else (0, GENESIS, 0)
            for one in events:
                if _known(session, one):
                    continue
                entry = _chained(one, seq + 1, previous)
                session.add(entry)
                session.flush()
                seq, previous, added = entry.seq, entry.sha, added + 1
            session.commit()
        return added

    def entries(self, subject: str = "", after: int = 0) -> Iterator[Entry]:
        """Rows in order, of one subject or all, from the one behind `after`; read in pages."""
        while True:
            query = select(Entry).where(col(Entry.seq) > after)
            if subject:
                query = query.where(col(Entry.subject) == subject)
            with _translated(str(self._engine.url)), Session(self._engine) as session:
                page = session.exec(query.order_by(col(Entry.seq)).limit(_PAGE)).all()
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].seq

    def last(self, subject: str, kind: str, uid: str = "") -> Entry | None:
        """The newest event of a kind about a model, of one uid or any."""
        with _translated(str(self._engine.url)), Session(self._engine) as session:
            query = select(Entry).where(col(Entry.subject) == subject, col(Entry.kind) == kind)
            if uid:
                query = query.where(col(Entry.uid) == uid)
            return session.exec(query.order_by(col(Entry.seq).desc()).limit(1)).first()

    def verify(self) -> Break | None:
        """Recompute the whole chain; the first place where it does not hold, or None."""
        previous, expected = GENESIS, 1
        for entry in self.entries():
            if entry.seq != expected:
                return Break(expected, f"row {expected} is missing: {entry.seq} follows")
            if entry.prev_sha != previous:
                return Break(entry.seq, "prev_sha is not the sha of the row before")
            if entry.sha != _sha(entry):
                return Break(entry.seq, "sha does not cover the row's content")
            previous, expected = entry.sha, expected + 1
        return None

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()


def payload_of(entry: Entry) -> dict[str, Any]:
    """The evidence of a row."""
    loaded: dict[str, Any] = json.loads(entry.payload_json)
    return loaded


def _chained(one: Event, seq: int, previous: str) -> Entry:
    entry = Entry(
        seq=seq,
        at=one.at,
        actor=one.actor,
        kind=one.kind,
        subject=one.subject,
        uid=one.uid,
        source_seq=one.source_seq,
        payload_json=json.dumps(
            one.payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ),
        prev_sha=previous,
        sha="",
    )
    entry.sha = _sha(entry)
    return entry


def _sha(entry: Entry) -> str:
    """Hash of a row: its fields as a JSON list, so that none can lend characters to the next."""
    fields = [
        entry.seq, entry.at, entry.actor, entry.kind, entry.subject, entry.uid, entry.source_seq,
        entry.payload_json, entry.prev_sha,
    ]  # fmt: skip
    # Whoever tampered may have left bytes or halves of characters: those cover nothing either.
    text_of = json.dumps(fields, ensure_ascii=False, default=repr)
    return sha256(text_of.encode(errors="surrogatepass")).hexdigest()


def _known(session: Session, one: Event) -> bool:
    query = select(Entry.seq).where(
        col(Entry.uid) == one.uid, col(Entry.source_seq) == one.source_seq
    )
    return session.exec(query).first() is not None


def _lock(connection: Connection) -> None:
    """One writer at a time, so that two cannot chain to the same row."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE ledger IN EXCLUSIVE MODE"))


def _engine(url: str, existing: bool) -> Engine:
    address = _address(url)
    if existing and address.get_backend_name() == "sqlite":
        address = _sqlite_that_is_there(address, url)
    try:
        engine = create_engine(address, pool_pre_ping=True)
    except ImportError as error:
        raise SpecInvalid(
            "TRIMWHEEL_LEDGER_URL",
            f"needs a driver that is not installed ({error})",
            address.drivername,
            "pip install 'trimwheel[postgresql]' brings psycopg",
        ) from error
    except (ArgumentError, ValueError) as error:
        raise _no_address(url) from error
    if engine.dialect.name == "sqlite" and existing:
        event.listen(engine, "connect", _prepare_reading)
    elif engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


def _address(url: str) -> URL:
    if not url.startswith(("sqlite:///", "postgresql")):
        raise _no_address(url)
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise _no_address(url) from error
    if address.drivername == "postgresql":
        address = address.set(drivername=POSTGRESQL_DRIVER)
    return address


def _sqlite_that_is_there(address: URL, url: str) -> URL:
    """SQLite makes a file of every address; with `mode=rw` it opens those that are there."""
    name = address.database or ":memory:"
    if name == ":memory:" or not Path(name).is_file():
        raise _no_ledger(url, "there is no such file")
    place = f"file:{quote(str(Path(name).resolve()))}"
    return address.set(database=place, query={"mode": "rw", "uri": "true"})


def _no_address(url: str) -> SpecInvalid:
    return SpecInvalid(
        "TRIMWHEEL_LEDGER_URL",
        "must be a SQLAlchemy address of SQLite or PostgreSQL",
        _without_password(url),
        "For example sqlite:////var/lib/trimwheel/ledger.db",
    )


def _no_ledger(url: str, reason: str) -> SpecInvalid:
    return SpecInvalid(
        "TRIMWHEEL_LEDGER_URL",
        f"must name a ledger that is there ({reason})",
        _without_password(url),
        "Reading makes none: the pipelines Deployment does, at its ledger.url",
    )


def _without_password(url: str) -> str:
    return re.sub(r"(://[^/@]*):[^/]*@", r"\1:***@", url)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver must not open transactions of its own: `_begin_immediate` does, and takes the write
    # lock before the newest row is read.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", f"busy_timeout={BUSY_TIMEOUT_MS}", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _prepare_reading(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "query_only=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        # A file that is no database, or a damaged one, is a plain DatabaseError.
        away = type(error).__name__ in ("OperationalError", "InterfaceError", "DatabaseError")
        if error.connection_invalidated or away:
            place = url.rsplit("@", 1)[-1]
            raise Unavailable(f"ledger {place}: {error.orig}") from error
        raise
