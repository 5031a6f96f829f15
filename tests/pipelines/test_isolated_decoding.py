"""Segments are decoded where a decoder that was taken over can harm nothing but its own rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.test_segment_decoding import OURS, TINY

from trimwheel_api.errors import InvalidInput, Unavailable
from trimwheel_pipelines import isolated_decoding, records
from trimwheel_pipelines.isolated_decoding import Nursery, isolated_decode
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.segment_decoding import Claim, decode

HOSTILE = "tests.pipelines.hostile_decoders"


@pytest.fixture
def nursery() -> Iterator[Callable[..., Nursery]]:
    """`nursery("crash")`: decoders that do what a function of `hostile_decoders` does."""
    made: list[Nursery] = []

    def make(function: str, seconds: float = 20.0) -> Nursery:
        made.append(Nursery(f"{HOSTILE}:{function}", seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_comes_back_is_what_decoding_here_would_give() -> None:
    here, there = decode(TINY, OURS), isolated_decode(TINY, OURS)
    assert there.table.equals(here.table) and there.losses == here.losses


def test_a_refusal_names_field_rule_and_value() -> None:
    with pytest.raises(InvalidInput) as here:
        decode(TINY, Claim("shop", "intent", 0))
    with pytest.raises(InvalidInput) as there:
        isolated_decode(TINY, Claim("shop", "intent", 0))
    assert str(there.value) == str(here.value)


def test_a_decoder_reaches_nothing_and_knows_nothing(
    nursery: Callable[..., Nursery], monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "TRIMWHEEL_LEDGER_URL",
                   "KUBECONFIG", "PROMETHEUS_URL"):  # fmt: skip
        monkeypatch.setenv(secret, "secret")
    with pytest.raises(InvalidInput) as answer:
        nursery("tries").decode(TINY, OURS)
    found = json.loads(answer.value.rule)
    assert found["worked"] == []
    allowed = {*isolated_decoding.ENVIRONMENT, "LC_CTYPE"}
    assert set(found["environment"]) <= allowed


CRASHES = {
    "crash": "ended by signal 11",
    "leave": "ended without an answer",
    "devour": "ended without an answer",
    "babble": "answered nonsense",
    "more_rows": "answered nonsense: ValueError",
}


@pytest.mark.parametrize("function", CRASHES)
def test_a_segment_that_breaks_its_decoder_cannot_be_read(
    nursery: Callable[..., Nursery], function: str
) -> None:
    with pytest.raises(InvalidInput, match="must be a Parquet file that a decoder survives") as why:
        nursery(function).decode(TINY, OURS)
    assert CRASHES[function] in str(why.value)


@pytest.mark.parametrize("function", ["hang", "flood"])
def test_a_decoder_that_does_not_end_is_ended(
    nursery: Callable[..., Nursery], function: str
) -> None:
    with pytest.raises(InvalidInput, match="took longer than 1 s, or said too much"):
        nursery(function, 1.0).decode(TINY, OURS)


def test_a_nursery_that_is_stopped_is_replaced(
    nursery: Callable[..., Nursery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_decoding, "START_SECONDS", 4.0)
    with pytest.raises(Unavailable, match="no decoder of segments can be started"):
        nursery("stop_the_nursery", 0.5).decode(TINY, OURS)


def test_one_segment_leaves_nothing_for_the_next(nursery: Callable[..., Nursery]) -> None:
    tended = nursery("spoil_the_next")
    for _ in range(3):
        assert len(tended.decode(TINY, OURS).table)


def test_a_nursery_that_is_gone_is_started_again() -> None:
    own = Nursery()
    own.decode(TINY, OURS)
    assert own._process is not None
    own._process.kill()
    own._process.wait()
    assert len(own.decode(TINY, OURS).table)
    own.close()


def test_no_decoder_outlives_its_segment() -> None:
    own = Nursery()
    own.decode(TINY, OURS)
    assert own._process is not None
    children = Path(f"/proc/{own._process.pid}/task/{own._process.pid}/children")
    assert not children.exists() or children.read_text() == ""
    own.close()
    with pytest.raises(ProcessLookupError):
        os.kill(children and int(children.parts[2]), 0)


def test_the_reader_sets_aside_what_breaks_a_decoder_and_goes_on(
    traffic: Any, nursery: Callable[..., Nursery], monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic.write(20, 1_000_000.0)
    traffic.write(20, 1_000_100.0)
    broken, usual = nursery("crash"), Nursery()
    turns = iter([broken.decode, usual.decode])
    monkeypatch.setattr(records, "isolated_decode", lambda *given: next(turns)(*given))
    reader = RecordReader(traffic.root, "shop", "intent")
    found = reader.read_new()
    usual.close()
    assert (len(found), found.lost, reader.corrupt) == (20, 20, 1)
    assert len(list(traffic.folder.rglob("quarantine/*"))) == 1


def test_no_other_module_decodes_segments_in_its_own_process() -> None:
    root = Path(records.__file__).parent
    users = {
        path.name
        for path in root.rglob("*.py")
        if re.search(r"segment_decoding import[^\n(]*\bdecode\b|\bpq\.(ParquetFile|read_)",
                     path.read_text())
    }  # fmt: skip
    # The nursery decodes one of its own making, to load what decoding needs.
    assert users <= {"segment_decoding.py", "isolated_decoding.py"}
