"""`trimwheel ledger`: what people see, and an exit code for programs."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

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
