"""`trimwheel ledger`: what people see, and an exit code for programs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from trimwheel_cli.main import cli
from trimwheel_pipelines.commands import ledger
from trimwheel_pipelines.ledger import Event, Ledger


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path}/ledger.db"
    payload = {"rollout": "drift-7xk2", "reason": "Approved"}
    made = Ledger(address)
    made.append(
        [
            Event("2026-11-22T10:00:00Z", "ann", "Promote", f"shop/m{n % 2}", "uid", n, payload)
            for n in range(4)
        ]
    )
    made.close()
    return address


def test_show_lists_decisions_of_a_model_for_people_and_programs(url: str) -> None:
    shown = CliRunner().invoke(ledger, ["show", "--url", url, "--model", "shop/m1"])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) == 3 and "drift-7xk2 Approved" in shown.output
    plain = CliRunner().invoke(ledger, ["show", "--url", url, "--limit", "1", "-o", "json"])
    [entry] = json.loads(plain.output)
    assert entry["seq"] == 4 and entry["payload"]["reason"] == "Approved"


def test_verify_says_where_the_chain_breaks(url: str) -> None:
    whole = CliRunner().invoke(ledger, ["verify", "--url", url])
    assert whole.exit_code == 0 and "4 entries, the chain holds" in whole.output
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TRIGGER ledger_no_update")
        connection.execute("UPDATE ledger SET actor = 'eve' WHERE seq = 2")
    broken = CliRunner().invoke(ledger, ["verify", "--url", url, "-o", "json"])
    assert broken.exit_code == 1
    assert json.loads(broken.output)["seq"] == 2


ADDRESSES = (
    "", "nonsense", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///{folder}/typo.db",
    "sqlite:///{folder}/no/such/folder.db", "sqlite:///{folder}", "mysql://h/x", "postgresqlfoo://h",
    "postgresql://h:x/y", "postgresql://h:99999999/y", "postgresql://127.0.0.1:9/x",
    "postgresql://u:secret@127.0.0.1:9/x",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("verb", ["show", "verify"])
def test_an_address_without_a_ledger_is_an_error_and_none_is_made(
    verb: str, address: str, tmp_path: Path
) -> None:
    """`verify` of a mistyped address made an empty database, and said that the chain holds."""
    place = address.format(folder=tmp_path)
    done = CliRunner().invoke(cli, ["ledger", verb, "--url", place])
    assert done.exit_code in (2, 3), done.output
    assert done.output.startswith("error: ") and "secret" not in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_reading_changes_nothing(verb: str, url: str) -> None:
    file = Path(url.removeprefix("sqlite:///"))
    before = file.read_bytes(), sorted(file.parent.iterdir())
    assert CliRunner().invoke(cli, ["ledger", verb, "--url", url]).exit_code == 0
    assert (file.read_bytes(), sorted(file.parent.iterdir())) == before


def test_a_ledger_that_may_only_be_read_is_read(url: str) -> None:
    file = Path(url.removeprefix("sqlite:///"))
    file.chmod(0o444)
    assert CliRunner().invoke(cli, ["ledger", "verify", "--url", url]).exit_code == 0


@pytest.mark.parametrize(
    "value", ["'not json'", "'[1]'", "x'ff00'", "'7'", "NULL", "'" + "[" * 5000 + "'"]
)
def test_rows_that_somebody_spoilt_are_shown_and_named(url: str, value: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TRIGGER ledger_no_update")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        verb = "OR IGNORE" if value == "NULL" else ""
        connection.execute(f"UPDATE {verb} ledger SET payload_json = {value} WHERE seq = 3")
    assert CliRunner().invoke(cli, ["ledger", "show", "--url", url]).exit_code == 0
    done = CliRunner().invoke(cli, ["ledger", "verify", "--url", url])
    assert done.exit_code == (0 if value == "NULL" else 1), done.output


RECORD_STORES = (
    "", "::::", "/plain", "file://", "file://{folder}/typo", "file://{folder}/a-file", "memory://x",
    "nosuch://x", "s3://", "http://127.0.0.1:9/x",
)  # fmt: skip


@pytest.mark.parametrize("store", RECORD_STORES)
def test_deleting_where_no_records_are_is_an_error_not_a_success(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("x")
    words = ["--tenant", "acme", "--model", "shop/classifier"]
    uri = store.format(folder=tmp_path)
    done = CliRunner().invoke(cli, ["records", "delete", *words, "--uri", uri])
    assert done.exit_code in (2, 3), done.output
    assert done.output.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]
