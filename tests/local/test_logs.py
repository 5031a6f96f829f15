"""Selecting and following log lines."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trimwheel_local.node.kubelet import selection_of
from trimwheel_local.node.logs import Selection, follow, last_lines, lines

STAMP = "2026-01-01T00:00:0{}.000000000Z stdout F line {}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log.1").write_text("".join(STAMP.format(n, n) for n in range(3)))
    (tmp_path / "log").write_text("".join(STAMP.format(n, n) for n in range(3, 6)))
    return tmp_path / "log"


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), [0, 1, 2, 3, 4, 5]),
        (Selection(tail=2), [4, 5]),
        (Selection(tail=0), []),
        (Selection(tail=4), [2, 3, 4, 5]),
        (Selection(since="2026-01-01T00:00:04"), [4, 5]),
        (Selection(since="2026-01-01T00:00:04", tail=1), [5]),
    ],
)
def test_tail_and_since(log: Path, selection: Selection, wanted: list[int]) -> None:
    assert list(lines(log, selection)) == [b"line %d\n" % number for number in wanted]


def test_timestamps_are_put_in_front(log: Path) -> None:
    [line] = lines(log, Selection(tail=1, timestamps=True))
    assert line == b"2026-01-01T00:00:05.000000000Z line 5\n"


def test_empty_lines_and_foreign_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("2026-01-01T00:00:00.0Z stdout F \nnot a log line\n")
    assert list(lines(tmp_path / "log", Selection())) == [b"\n"]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list(lines(tmp_path / "none", Selection())) == []
    assert last_lines(tmp_path / "none") == ""


async def test_following_gives_each_line_once_through_a_rotation_until_the_end(log: Path) -> None:
    alive = True
    found: list[bytes] = []

    async def collect() -> None:
        async for line in follow(log, Selection(tail=1), lambda: alive):
            found.append(line)

    reading = asyncio.create_task(collect())
    await asyncio.sleep(0.05)
    with log.open("a") as file:
        file.write(STAMP.format(6, 6))
    log.replace(log.with_name("log.1"))
    log.write_text(STAMP.format(7, 7))
    await asyncio.sleep(0.3)
    with log.open("a") as file:
        file.write(STAMP.format(8, 8))
    alive = False
    await asyncio.wait_for(reading, 2)
    assert found == [b"line %d\n" % number for number in (5, 6, 7, 8)]


NOW = datetime(2026, 1, 1, 12, 0, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, Selection()),
        ({"tailLines": "5", "timestamps": "true"}, Selection(tail=5, timestamps=True)),
        ({"sinceSeconds": "10"}, Selection(since="2026-01-01T12:00:00.000000")),
        (
            {"sinceTime": "2026-01-01T13:00:00+01:00", "limitBytes": "9"},
            Selection(since="2026-01-01T12:00:00.000000", limit_bytes=9),
        ),
    ],
)
def test_query_parameters(query: dict[str, str], wanted: Selection) -> None:
    assert selection_of(query, NOW) == wanted


def test_a_bad_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match="many"):
        selection_of({"tailLines": "many"}, NOW)
