"""The ledger's promises: append-only, chained, idempotent, one writer at a time.

They hold on SQLite and on PostgreSQL alike. The latter is a throwaway server of this machine's own
binaries (Debian: postgresql), on a Unix socket; without them those cases are skipped.
"""

from __future__ import annotations

import os
import shutil
import string
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from trimwheel_api.errors import SetupFailed, SpecInvalid, Unavailable
from trimwheel_pipelines.ledger import Event, Ledger, payload_of


def _event(uid: str = "u", number: int = 0, **changes: object) -> Event:
    fields: dict[str, object] = {
        "at": "2026-11-22T10:00:00Z",
        "actor": "ann",
        "kind": "Promote",
        "subject": "shop/intent",
        "uid": uid,
        "source_seq": number,
        "payload": {"reason": "certified", "weight": 10000},
    }
    return Event(**(fields | changes))  # type: ignore[arg-type]


class PostgreSQL:
    """A server that can be taken away; as root it runs as `nobody`, which it insists on."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._call("initdb", "-U", "ledger", "--auth=trust", "--no-sync", "--no-instructions")
        self.start()

    def address(self, database: str) -> str:
        return f"postgresql+psycopg://ledger@/{database}?host={self._folder}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._call("pg_ctl", "start", "-w", "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        self._call("pg_ctl", "stop", "-w", "-m", "immediate")

    def _call(self, *command: str) -> None:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        subprocess.run(
            [self._binaries / command[0], *command[1:], "-D", self._folder / "data"],
            check=True, user=self._user, group="nogroup" if self._user else None,
            cwd=self._folder, env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    """One server for this file."""
    # Debian keeps the server's binaries off PATH, a folder for each version.
    on_path = shutil.which("initdb")
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    binaries = Path(on_path).resolve().parent if on_path else max(folders, default=None)
    if binaries is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    # Short, because a Unix socket's address has 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="tw-pg-", dir="/tmp"))
    server = PostgreSQL(binaries, folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """The address of an empty database of that server."""
    name = f"l{uuid.uuid4().hex}"
    execute(postgresql.address("postgres"), f"CREATE DATABASE {name}")
    return postgresql.address(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgresql_url"))


def _engine(url: str) -> Engine:
    return create_engine(url, isolation_level="AUTOCOMMIT")


def execute(url: str, *statements: str) -> None:
    """What somebody with the database's password could do."""
    engine = _engine(url)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def disarm(url: str) -> None:
    """Drop what forbids changes, as the database's owner can."""
    if url.startswith("sqlite"):
        execute(url, "DROP TRIGGER ledger_no_update", "DROP TRIGGER ledger_no_delete")
    else:
        execute(url, "DROP TRIGGER ledger_no_change ON ledger")


def test_events_come_back_in_order_with_their_evidence(url: str) -> None:
    ledger = Ledger(url)
    assert ledger.append([_event(number=0), _event(number=1, payload={"é": [1, None, "x"]})]) == 2
    first, second = ledger.entries()
    assert (first.seq, second.seq) == (1, 2)
    assert second.prev_sha == first.sha
    assert payload_of(second) == {"é": [1, None, "x"]}
    assert ledger.verify() is None


def test_copying_the_same_decision_again_changes_nothing(url: str) -> None:
    ledger = Ledger(url)
    ledger.append([_event(number=3)])
    again = Ledger(url)
    assert again.append([_event(number=3, kind="Other"), _event(number=4)]) == 1
    assert [entry.kind for entry in again.entries()] == ["Promote", "Promote"]
    assert [entry.source_seq for entry in again.entries()] == [3, 4]


def test_one_bad_event_leaves_none_of_its_batch(url: str) -> None:
    ledger = Ledger(url)
    with pytest.raises(TypeError):
        ledger.append([_event(number=0), _event(number=1, payload={"x": object()})])
    assert list(ledger.entries()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET actor = 'eve'",
        "DELETE FROM ledger WHERE seq = 1",
    ],
)
def test_the_database_itself_refuses_to_change_history(url: str, statement: str) -> None:
    ledger = Ledger(url)
    ledger.append([_event()])
    with pytest.raises(DBAPIError, match="append-only"):
        execute(url, statement)
    assert [entry.actor for entry in ledger.entries()] == ["ann"]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO ledger SELECT seq, at, 'eve', kind, subject, uid, source_seq, "
        "payload_json, prev_sha, sha FROM ledger",
        "INSERT OR REPLACE INTO ledger SELECT 99, at, 'eve', kind, subject, uid, source_seq, "
        "payload_json, 'x', 'y' FROM ledger",
    ],
)
def test_sqlite_refuses_to_replace_a_row_which_deletes_it(tmp_path: Path, statement: str) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url)
    ledger.append([_event()])
    with pytest.raises(DBAPIError, match="append-only"):
        execute(url, statement)
    assert [entry.actor for entry in ledger.entries()] == ["ann"]


@pytest.mark.slow
def test_postgresql_refuses_to_empty_the_table_at_once(postgresql_url: str) -> None:
    Ledger(postgresql_url).append([_event()])
    with pytest.raises(DBAPIError, match="append-only: TRUNCATE is refused"):
        execute(postgresql_url, "TRUNCATE ledger")


@pytest.mark.slow
def test_a_server_that_goes_away_and_returns_is_written_to_again(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    ledger = Ledger(postgresql_url)
    ledger.append([_event(number=0)])
    postgresql.stop()
    try:
        with pytest.raises(Unavailable, match="ledger"):
            ledger.append([_event(number=1)])
    finally:
        postgresql.start()
    assert ledger.append([_event(number=0), _event(number=1)]) == 1
    assert ledger.verify() is None


@pytest.mark.slow
def test_a_plain_address_of_postgresql_means_the_driver_that_comes_with_us(
    postgresql_url: str,
) -> None:
    ledger = Ledger(postgresql_url.replace("postgresql+psycopg:", "postgresql:"))
    assert ledger.append([_event()]) == 1


@pytest.mark.parametrize(
    ("tampering", "seq", "reason"),
    [
        ("UPDATE ledger SET payload_json = '{}' WHERE seq = 2", 2, "does not cover"),
        ("UPDATE ledger SET actor = 'eve' WHERE seq = 3", 3, "does not cover"),
        ("DELETE FROM ledger WHERE seq = 2", 2, "is missing"),
        ("DELETE FROM ledger WHERE seq = 1", 1, "is missing"),
        (
            "UPDATE ledger SET prev_sha = 'f' || substr(prev_sha, 2) WHERE seq = 2",
            2,
            "sha of the row before",
        ),
    ],
)
def test_verify_names_the_row_at_which_history_was_changed(
    url: str, tampering: str, seq: int, reason: str
) -> None:
    ledger = Ledger(url)
    ledger.append([_event(number=n) for n in range(4)])
    disarm(url)
    execute(url, tampering)
    found = ledger.verify()
    assert found is not None and found.seq == seq and reason in found.reason


def test_writers_at_the_same_time_make_one_unbroken_chain(url: str) -> None:
    ledgers = [Ledger(url) for _ in range(4)]

    def write(number: int) -> int:
        ledger = ledgers[number % 4]
        return sum(ledger.append([_event(f"u{number}", n)]) for n in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 40
    assert ledgers[0].verify() is None
    assert len(list(ledgers[0].entries())) == 40


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=6), max_size=6
    )
)
def test_however_events_are_batched_each_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[str, int]]]
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/l.db")
    for batch in batches:
        ledger.append([_event(uid, number) for uid, number in batch])
    wanted = list(dict.fromkeys(pair for batch in batches for pair in batch))
    assert [(entry.uid, entry.source_seq) for entry in ledger.entries()] == wanted
    assert ledger.verify() is None
    ledger.close()


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.text(string.printable + "é\u2028"), min_size=4, max_size=4))
def test_no_field_can_lend_characters_to_its_neighbour(values: list[str]) -> None:
    from trimwheel_pipelines.ledger import _chained

    actor, kind, subject, uid = values
    first = _chained(_event(uid, actor=actor, kind=kind, subject=subject), 1, "p")
    moved = _chained(_event(uid, actor=actor + kind, kind="", subject=subject), 1, "p")
    assert first.sha != moved.sha or kind == ""


def test_subjects_are_read_apart_and_the_newest_of_a_kind_is_found(url: str) -> None:
    ledger = Ledger(url)
    ledger.append([_event(number=n, subject=f"shop/m{n % 2}", at=f"t{n}") for n in range(4)])
    assert [entry.at for entry in ledger.entries("shop/m1")] == ["t1", "t3"]
    newest = ledger.last("shop/m0", "Promote")
    assert newest is not None and newest.at == "t2"
    assert ledger.last("shop/m0", "RollBack") is None


def test_an_address_of_no_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid, match="TRIMWHEEL_LEDGER_URL.*mongodb"):
        Ledger("mongodb://x")
    with pytest.raises(Unavailable, match="ledger"):
        Ledger(f"sqlite:///{tmp_path}/no/such/folder/l.db")


def test_a_ledger_of_a_newer_version_is_left_alone(url: str) -> None:
    Ledger(url)
    execute(url, "INSERT INTO ledger_version VALUES (99)")
    with pytest.raises(SetupFailed, match="schema 99"):
        Ledger(url)


def test_table_and_migration_name_the_same_columns(url: str) -> None:
    Ledger(url)
    made = [column["name"] for column in inspect(_engine(url)).get_columns("ledger")]
    assert made == [column.name for column in SQLModel.metadata.tables["ledger"].columns]
