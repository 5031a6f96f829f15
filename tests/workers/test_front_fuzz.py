"""A fuzzer reads the published OpenAPI document, another writes raw bytes: no answer is a surprise.

What once broke the door, and what each limit is for, lies in `seeds/` as raw requests and is played
every time. A new find goes there as well.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.workers.served import BODY, GOOD, INFER, Served, answer_of, made_worker, serving

from trimwheel_workers.front import openapi
from trimwheel_workers.front.app import make_app

SEEDS = sorted((Path(__file__).parent / "seeds").glob("*.http"))
EXPECTED = {200, 400, 401, 404, 405, 408, 413, 415, 429, 431}
EXAMPLES = 25
"""Of each operation; more with `settings.load_profile` of one's own."""

_worker = made_worker()
_app = make_app(_worker)
_document = openapi.document("0", 32)
for _path in _document["paths"].values():
    for _parameter in _path.get("parameters", ()):
        # Mostly the names that are served, or nothing but 404 would be seen.
        known = "m" if _parameter["name"] == "model" else _worker.version
        _parameter["schema"] = {"anyOf": [{"const": known}, _parameter["schema"]]}
        _parameter["example"] = known
_tensor = _document["components"]["schemas"]["InferenceRequest"]["properties"]["inputs"]["items"]
_tensor["properties"]["shape"] = {"enum": [[1], [2], [1, 1]]}  # few of all lists fit the data
_tensor["properties"]["data"]["maxItems"] = 2
schema = schemathesis.openapi.from_dict(_document)
schema.app = _app
met: set[tuple[str, int]] = set()


@pytest.fixture(scope="module", autouse=True)
def client() -> Iterator[TestClient]:
    with TestClient(_app, raise_server_exceptions=False) as made:
        yield made


def _answers_of_the_document(case: Any) -> None:
    """Requests of the document get answers of the document."""
    response = case.call()
    met.add((case.operation.path, response.status_code))
    case.validate_response(
        response,
        checks=[
            not_a_server_error, status_code_conformance, content_type_conformance,
            response_schema_conformance,
        ],
    )  # fmt: skip


# A test for each operation: those of one `parametrize` share an id, of which pytest-xdist runs one.
for _path, _methods in _document["paths"].items():
    for _method in sorted(set(_methods) & {"get", "post"}):

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        def _fuzz(case: Any) -> None:
            _answers_of_the_document(case)

        _name = re.sub(r"\W+", "_", f"{_method}{_path}").strip("_")
        _fuzz.__name__ = _fuzz.__qualname__ = f"test_requests_to_{_name}"
        _operation = schema.include(path=_path, method=_method.upper())
        globals()[_fuzz.__name__] = _operation.parametrize()(_fuzz)


def test_the_fuzzer_got_in() -> None:
    """After the test above: requests were answered as well as refused."""
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        assert {code for where, code in met if where == path} >= {200, 400, 404}


def test_the_document_is_served_and_describes_every_route(client: TestClient) -> None:
    served = client.get(openapi.PATH).json()
    assert served["paths"].keys() == {
        route.path for route in _app.routes if isinstance(route, Route)
    }
    for route in _app.routes:
        assert isinstance(route, Route)
        methods = (route.methods or set()) - {"HEAD"}
        assert {name.lower() for name in methods} == served["paths"][route.path].keys() - {
            "parameters"
        }


# ------------------------------------------------------------------ raw bytes


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(receive_seconds=0.5) as made:
        yield made


def codes_of(data: bytes) -> list[int]:
    """Status codes of the responses in what came back."""
    return [
        int(line.split(b" ")[1]) for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")
    ]


async def play(served: Served, data: bytes, quiet: float = 8.0) -> list[int]:
    """Write bytes; the codes that come back until the connection ends, or is quiet for so long."""
    reader, writer = await served.connect()
    back = b""
    try:
        writer.write(data)
        await writer.drain()
        while more := await asyncio.wait_for(reader.read(65536), quiet):
            back += more
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()
    return codes_of(back)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.stem)
async def test_what_broke_the_door_once_does_so_no_more(served: Served, seed: Path) -> None:
    data = seed.read_bytes()
    wanted, _, request = data.partition(b"\n")
    codes = await play(served, request)
    assert codes == json.loads(wanted), seed.name
    reader, writer = await served.connect()
    writer.write(GOOD)
    assert b" 200 " in (await answer_of(reader))[:20]
    writer.close()


PIECES = st.sampled_from(
    [
        GOOD, BODY, INFER, b"GET /v2 HTTP/1.1\r\n",
        b"GET /v2/health/ready HTTP/1.1\r\nhost: w\r\n\r\n",
        b"host: w\r\n", b"\r\n", b"\r\n\r\n", b"\n", b" ", b":", b"\0",
        b"content-length: 5\r\n", b"content-length: -1\r\n",
        b"content-length: 99999999999999999999\r\n", b"transfer-encoding: chunked\r\n",
        b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"connection: close\r\n",
        b"connection: upgrade\r\nupgrade: h2c\r\n", b"expect: 100-continue\r\n",
        b"content-encoding: gzip\r\n", b"inference-header-content-length: 3\r\n",
        b"x-session-id: \xff\r\n", b"authorization: Bearer x\r\n", b"HTTP/0.9",
        b"PRI * HTTP/2.0\r\n\r\n",
    ]
) | st.binary(max_size=20)  # fmt: skip
STREAMS = st.lists(PIECES, max_size=12).map(b"".join)


def test_no_bytes_make_a_server_error_or_stop_the_next_client() -> None:
    async def open_door() -> Any:
        context = serving(receive_seconds=0.2)
        return context, await context.__aenter__()

    with asyncio.Runner() as runner:
        context, served = runner.run(open_door())

        seen: set[int] = set()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(STREAMS)
        def check(data: bytes) -> None:
            codes = set(runner.run(play(served, data, 0.04)))
            seen.update(codes)
            assert codes <= EXPECTED | {100}, (codes, data)

        check()
        assert {200, 400} <= seen, "both were met"
        assert runner.run(play(served, GOOD, 1.0)) == [200]
        runner.run(context.__aexit__(None, None, None))


@given(st.binary(max_size=200), st.sampled_from([None, "0", "3", "200"]),
       st.sampled_from(["", "gzip", "deflate"]))  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_body_makes_a_server_error(body: bytes, head: str | None, encoding: str) -> None:
    async def ask() -> int:
        transport = httpx.ASGITransport(app=_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://w") as client:
            headers = {"content-encoding": encoding} if encoding else {}
            if head is not None:
                headers["inference-header-content-length"] = head
            answer = await client.post("/v2/models/m/infer", content=body, headers=headers)
            return answer.status_code

    assert asyncio.run(ask()) in (200, 400)
