"""Verbs for people: `trimwheel ledger show|verify` and `trimwheel records delete`.

Heavy imports happen inside the verbs, so that help stays quick.
"""

from __future__ import annotations

import re
import sys
from contextlib import closing
from typing import Any

import click

from trimwheel_api.errors import SpecInvalid
from trimwheel_api.values import NAME_PATTERN
from trimwheel_console import NEGATIVE, emit, output_option, text_table
from trimwheel_console.ranges import Whole

_LEDGER_URL = click.option(
    "--url",
    envvar="TRIMWHEEL_LEDGER_URL",
    required=True,
    help="SQLAlchemy address of the ledger; TRIMWHEEL_LEDGER_URL by default.",
)


@click.group(short_help="Read and verify the ledger of decisions.")
def ledger() -> None:
    """Read and verify the ledger: every decision, append-only, hash-chained.

    \b
    trimwheel ledger show --model shop/classifier --limit 10
    trimwheel ledger verify --url sqlite:///ledger.db
    """


@ledger.command(short_help="List decisions, oldest first.")
@_LEDGER_URL
@click.option("--model", default="", help="Only this model, as NAMESPACE/NAME.")
@click.option(
    "--limit",
    type=Whole(0, 1_000_000),
    default=50,
    show_default=True,
    help="Only the newest so many; 0: all.",
)
@output_option
def show(url: str, model: str, limit: int, output: str) -> None:
    """List decisions, oldest first; -o json shows the evidence of each."""
    from trimwheel_pipelines.ledger import Ledger

    with closing(Ledger(url, existing=True)) as opened:
        entries = list(opened.entries(model))
    entries = entries[-limit:] if limit else entries

    def as_json(entry: Any) -> dict[str, Any]:
        plain: dict[str, Any] = entry.model_dump(exclude={"payload_json"})
        return plain | {"payload": _payload(entry)}

    def table() -> str:
        rows = [
            (entry.seq, entry.at, entry.subject, entry.kind, _gist(_payload(entry)), entry.actor)
            for entry in entries
        ]
        return text_table(("seq", "at", "model", "event", "what", "actor"), rows)

    emit([as_json(entry) for entry in entries], output, table=table)


@ledger.command(short_help="Recompute the hash chain.")
@_LEDGER_URL
@output_option
def verify(url: str, output: str) -> None:
    """Recompute the hash chain. Exit 1 names the first row where it does not hold."""
    from trimwheel_pipelines.ledger import Ledger

    with closing(Ledger(url, existing=True)) as opened:
        broken = opened.verify()
        count = sum(1 for _ in opened.entries())
    answer = {
        "ok": broken is None,
        "entries": count,
        "seq": broken.seq if broken else None,
        "reason": broken.reason if broken else "",
    }
    good = f"{count} entries, the chain holds"
    bad = f"broken at row {broken.seq}: {broken.reason}" if broken else ""
    emit(answer, output, table=bad or good)
    if broken is not None:
        sys.exit(NEGATIVE)


@click.group(short_help="Delete audit records of a tenant or a model.")
def records() -> None:
    """Care for stored audit records.

    \b
    trimwheel records delete --tenant acme --model shop/classifier --uri s3://audits
    """


@records.command(short_help="Delete all records of a tenant, or of a model.")
@click.option("--tenant", default="", help="As sent in header x-tenant-id.")
@click.option("--all", "everything", is_flag=True, help="Every record, of a model that is gone.")
@click.option("--model", required=True, help="NAMESPACE/NAME of the AdaptiveModel.")
@click.option(
    "--uri", envvar="TRIMWHEEL_RECORDS_URI", required=True, help="Root of the audit records."
)
@output_option
def delete(tenant: str, everything: bool, model: str, uri: str, output: str) -> None:
    """Delete all records of a tenant; they count as lost audits from then on.

    With --all, delete every record of a model: for one that was deleted without its records.
    """
    from trimwheel_pipelines.records import RecordReader
    from trimwheel_pipelines.retention import erase, forget

    if bool(tenant) == everything:
        raise SpecInvalid("--tenant", "must be given, or --all in its place", tenant)
    reader = RecordReader(uri, *_model(model))
    if not reader.files.aside() and not any(day.files for day in reader.files.days()):
        raise SpecInvalid("--uri", f"must hold audit records of {model}", uri, "Is it mistyped?")
    gone = erase(reader) if everything else forget(reader, tenant)
    emit({"deleted": gone}, output, table=f"{gone} records deleted")


def _model(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    # A name that is a path would lead out of the model's folder.
    if not re.fullmatch(NAME_PATTERN, namespace) or not re.fullmatch(NAME_PATTERN, name):
        raise SpecInvalid("--model", "must be NAMESPACE/NAME", text)
    return namespace, name


def _payload(entry: Any) -> dict[str, Any]:
    """The evidence of a row, also of one that somebody tampered with: `verify` names it."""
    from trimwheel_pipelines.ledger import payload_of

    try:
        payload = payload_of(entry)
    except (ValueError, TypeError, RecursionError):
        return {"reason": "unreadable"}
    return payload if isinstance(payload, dict) else {"reason": "unreadable"}


def _gist(payload: dict[str, Any]) -> str:
    """What a row is about, in a few words."""
    about = payload.get("rollout") or payload.get("tuningRun") or payload.get("alias") or ""
    said = payload.get("outcome") or payload.get("reason") or payload.get("after") or ""
    return f"{about} {said}".strip()
