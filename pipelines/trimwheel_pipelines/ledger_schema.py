"""Schema of the ledger as numbered migrations, in plain SQL for SQLite and PostgreSQL.

Called by `Ledger` when it opens. A migration is never edited once released: another one is added.
Columns mirror `ledger.Entry`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from trimwheel_api.errors import SetupFailed

_TABLE = """
CREATE TABLE ledger (
  seq BIGINT PRIMARY KEY,
  at TEXT NOT NULL,
  actor TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  uid TEXT NOT NULL,
  source_seq BIGINT NOT NULL,
  payload_json TEXT NOT NULL,
  prev_sha CHAR(64) NOT NULL UNIQUE,
  sha CHAR(64) NOT NULL UNIQUE,
  UNIQUE (uid, source_seq)
)
"""
_INDEX = "CREATE INDEX ledger_subject ON ledger (subject, seq)"
_SQLITE_TRIGGERS = [
    f"""
CREATE TRIGGER ledger_no_{verb.lower()} BEFORE {verb} ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: {verb} is refused'); END
"""
    for verb in ("UPDATE", "DELETE")
]
_SQLITE_NO_REPLACE = """
CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger
WHEN EXISTS (SELECT 1 FROM ledger WHERE seq = NEW.seq OR sha = NEW.sha OR prev_sha = NEW.prev_sha
             OR (uid = NEW.uid AND source_seq = NEW.source_seq))
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: a row that is there is not replaced'); END
"""
"""INSERT OR REPLACE deletes the old row without asking the trigger against DELETE."""
_POSTGRES_TRIGGERS = [
    """
CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the ledger is append-only: % is refused', TG_OP; END $$
""",
    "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger "
    "FOR EACH ROW EXECUTE FUNCTION ledger_append_only()",
    "CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()",
]
MIGRATIONS: list[dict[str, list[str]]] = [
    {
        "sqlite": [_TABLE, _INDEX, *_SQLITE_TRIGGERS],
        "postgresql": [_TABLE, _INDEX, *_POSTGRES_TRIGGERS],
    },
    {"sqlite": [_SQLITE_NO_REPLACE], "postgresql": []},
]


def migrate(engine: Engine) -> int:
    """Apply what is missing, each migration in its transaction; returns the version reached.

    Raises SetupFailed when the database was written by a newer Trimwheel.
    """
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE IF NOT EXISTS ledger_version (version INTEGER PRIMARY KEY)")
        )
    with engine.begin() as connection:
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise SetupFailed(
                f"the ledger has schema {version}, this version knows {len(MIGRATIONS)}: "
                "upgrade Trimwheel"
            )
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements[engine.dialect.name]:
                connection.execute(text(statement))
            connection.execute(
                text("INSERT INTO ledger_version (version) VALUES (:version)"), {"version": number}
            )
    return len(MIGRATIONS)


def _version(connection: Connection) -> int:
    if connection.dialect.name == "postgresql":
        # Two processes that start together must not both create the table.
        connection.execute(text("LOCK TABLE ledger_version IN EXCLUSIVE MODE"))
    return int(
        connection.execute(
            text("SELECT COALESCE(MAX(version), 0) FROM ledger_version")
        ).scalar_one()
    )
