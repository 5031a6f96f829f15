"""What a request may be, and how a wrong one is told."""

from __future__ import annotations

import gzip
import time
import zlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.errors import RequestInvalid
from trimwheel_workers.front import compression, json_shape, protocol, tensors
from trimwheel_workers.front.limits import JSON_DEPTH
from trimwheel_workers.front.protocol import InferenceRequest, TextAnswer


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]} | changes


def body(**changes: Any) -> bytes:
    return orjson.dumps({"inputs": [tensor()]} | changes)


GOOD = {
    "one text": (body(), ("x",)),
    "nested data": (body(inputs=[tensor(shape=[2, 1], data=[["x"], ["y"]])]), ("x", "y")),
    "an empty text": (body(inputs=[tensor(data=[""])]), ("",)),
    "parameters are ignored": (body(parameters={"a": 1}), ("x",)),
}


@pytest.mark.parametrize(("data", "texts"), GOOD.values(), ids=GOOD.keys())
def test_a_good_request(data: bytes, texts: tuple[str, ...]) -> None:
    assert protocol.parse(data, 4).texts == texts


BAD = {
    "not JSON": (b"{", "body"),
    "not UTF-8": (b'{"id": "\xff"}', "body"),
    "not an object": (b"[]", "body"),
    "an id that is no string": (body(id=7), "id"),
    "no inputs": (b"{}", "inputs"),
    "two inputs": (body(inputs=[tensor(), tensor()]), "inputs"),
    "an input that is no object": (body(inputs=["x"]), "inputs"),
    "another name": (body(inputs=[tensor(name="image")]), "inputs[0].name"),
    "another type": (body(inputs=[tensor(datatype="FP32")]), "inputs[0].datatype"),
    "no data": (body(inputs=[tensor(data=None)]), "inputs[0].data"),
    "empty data": (body(inputs=[tensor(data=[])]), "inputs[0].data"),
    "a number as text": (body(inputs=[tensor(data=[7])]), "inputs[0].data[0]"),
    "two texts in a row": (body(inputs=[tensor(data=[["x", "y"]])]), "inputs[0].data[0]"),
    "a text without end": (body(inputs=[tensor(data=["x" * 70_000])]), "inputs[0].data[0]"),
    "a shape that is not the data's": (body(inputs=[tensor(shape=[2])]), "inputs[0].shape"),
    "no shape": (body(inputs=[tensor(shape=None)]), "inputs[0].shape"),
    "too many texts": (body(inputs=[tensor(shape=[5], data=["x"] * 5)]), "inputs[0].data"),
    "an unknown output": (body(outputs=[{"name": "logits"}]), "outputs[0].name"),
    "an output's name that is no string": (body(outputs=[{"name": []}]), "outputs[0].name"),
    "an id without end": (body(id="x" * 300), "id"),
    "an output asked for twice": (body(outputs=[{"name": "label"}] * 2), "outputs[1].name"),
    "an output as a class": (
        body(outputs=[{"name": "label", "parameters": {"classification": 2}}]),
        "outputs[0].parameters.classification",
    ),
    "an output's parameters that are no object": (
        body(outputs=[{"name": "label", "parameters": 7}]),
        "outputs[0].parameters",
    ),
    "shared memory": (
        body(inputs=[tensor(parameters={"shared_memory_region": "r"})]),
        "inputs[0].parameters.shared_memory_region",
    ),
    "bytes that are not there": (
        body(inputs=[tensor(parameters={"binary_data_size": 9})]),
        "inputs[0].parameters.binary_data_size",
    ),
    "nested a thousand deep": (b"[" * 1000 + b"]" * 1000, "body"),
    "nested a hundred thousand deep": (b"[" * 100_000, "body"),
    "data nested a thousand deep": (
        b'{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":'
        + b"[" * 1000
        + b"]" * 1000
        + b"}]}",
        "body",
    ),
    "a megabyte of empty lists": (b"[" + b"[]," * 349_000 + b"[]]", "body"),
    "a megabyte of empty strings": (b"[" + b'"",' * 349_000 + b'""]', "body"),
    "a megabyte of escapes without end": (b'[[]],"' + b'\\"' * 520_000 + b"[," * 9000, "body"),
    "outputs that are no list": (body(outputs={"name": "label"}), "outputs"),
}


@pytest.mark.parametrize(("data", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_names_the_field_the_rule_and_the_value(data: bytes, field: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        protocol.parse(data, 4)
    told = caught.value.details()
    assert told["field"] == field
    assert told["rule"] and set(told) == {"field", "rule", "value"}
    assert len(caught.value.sentence()) < 500, "a message does not repeat a huge value"


def answer(label: str, exit_index: int) -> TextAnswer:
    return TextAnswer(label, 0.5, exit_index, exit_index + 1, "stable", "sha256:p")


def test_one_text_gets_label_and_probability_and_parameters() -> None:
    request = InferenceRequest(("x",), "r1", protocol.parse(body(), 4).outputs)
    told = orjson.loads(protocol.response("m", "v", request, [answer("a", 1)])[0])
    assert told["id"] == "r1" and told["model_name"] == "m"
    assert told["parameters"] == {
        "trimwheel_exit": 1,
        "trimwheel_layers": 2,
        "trimwheel_arm": "stable",
        "trimwheel_policy_digest": "sha256:p",
    }
    assert [(o["name"], o["datatype"], o["shape"], o["data"]) for o in told["outputs"]] == [
        ("label", "BYTES", [1], ["a"]),
        ("probability", "FP32", [1], [0.5]),
    ]


def test_several_texts_say_for_each_where_it_was_answered() -> None:
    data = body(inputs=[tensor(shape=[2], data=["x", "y"])])
    request = protocol.parse(data, 4)
    told = orjson.loads(protocol.response("m", "v", request, [answer("a", 1), answer("b", 3)])[0])
    by_name = {output["name"]: output["data"] for output in told["outputs"]}
    assert by_name["exit"] == [1, 3] and by_name["layers"] == [2, 4]
    assert told["parameters"]["trimwheel_exit"] == 1


def test_a_client_gets_the_outputs_that_it_asks_for() -> None:
    request = protocol.parse(body(outputs=[{"name": "exit"}]), 4)
    told = orjson.loads(protocol.response("m", "v", request, [answer("a", 1)])[0])
    assert [output["name"] for output in told["outputs"]] == ["exit"]


@pytest.mark.parametrize("header", [b"x" * 300, b"\xff\xfe"], ids=["too long", "not UTF-8"])
def test_a_bad_session_key_names_its_header(header: bytes) -> None:
    with pytest.raises(RequestInvalid, match="header x-session-id"):
        protocol.key_of(header, "x-session-id")


HOSTILE = [name for name in BAD if name.startswith(("a megabyte", "nested", "data nested"))]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused_in_little_time(name: str) -> None:
    """The event loop reads bodies itself: none may hold it (139 ms before, 169 ms to quote one)."""
    data, _ = BAD[name]

    def spent() -> float:
        started = time.process_time()
        with pytest.raises(RequestInvalid):
            protocol.parse(data, 32)
        return time.process_time() - started

    assert min(spent() for _ in range(3)) < 0.05


def test_brackets_and_quotes_inside_texts_do_not_count() -> None:
    text = '[{"\\' * 20_000 + "\\"
    assert protocol.parse(body(inputs=[tensor(data=[text[:65_536]])]), 4).texts == (text[:65_536],)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='[]{}",\\x', max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = isinstance(value, (dict, list))
    return own + max(map(depth_of, inner), default=0)


@given(JSON, st.integers(0, 40))
def test_depth_is_counted_as_a_parser_would(value: Any, extra: int) -> None:
    for _ in range(extra):
        value = [value]
    data = orjson.dumps(value)
    deep = depth_of(value) > JSON_DEPTH
    try:
        json_shape.check(data)
    except RequestInvalid:
        assert deep
    else:
        assert not deep


@given(st.lists(st.text(), min_size=1, max_size=4), st.binary(max_size=20))
def test_a_binary_tensor_is_read_as_it_was_written(texts: list[str], noise: bytes) -> None:
    data = tensors.write("BYTES", texts)
    size = len(data)
    head = body(inputs=[
        {"name": "text", "datatype": "BYTES", "shape": [len(texts)],
         "parameters": {"binary_data_size": size}}
    ])  # fmt: skip
    assert protocol.parse(head + data, 4, str(len(head))).texts == tuple(texts)
    for broken in (data + noise, data[:-1], noise):
        if broken != data:
            with pytest.raises(RequestInvalid):
                protocol.parse(head + broken, 4, str(len(head)))


@pytest.mark.parametrize("header", ["", "-1", "x", "9" * 30, "999999", "\u0663"])
def test_a_wrong_length_of_the_json_names_its_header(header: str) -> None:
    with pytest.raises(RequestInvalid, match=tensors.HEADER):
        protocol.parse(body(), 4, header)


def test_outputs_come_as_bytes_where_they_are_asked_for() -> None:
    outputs = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probability"}]
    request = protocol.parse(body(outputs=outputs), 4)
    data, head = protocol.response("m", "v", request, [answer("a", 1)])
    label, probability = orjson.loads(data[:head])["outputs"]
    assert label["parameters"] == {"binary_data_size": 5} and "data" not in label
    assert data[head:] == b"\x01\0\0\0a" and probability["data"] == [0.5]


def test_unfolded_bodies_have_the_limit_of_plain_ones() -> None:
    bomb = gzip.compress(b"x" * (200 << 20))
    started = time.process_time()
    with pytest.raises(RequestInvalid, match="unfolded"):
        compression.body_of(bomb, "gzip")
    assert time.process_time() - started < 0.5
    assert compression.body_of(gzip.compress(b"x"), "gzip") == b"x"
    assert compression.body_of(zlib.compress(b"x"), "deflate") == b"x"
    for broken in (b"", b"x", gzip.compress(b"x" * 999)[:-9]):
        with pytest.raises(RequestInvalid):
            compression.body_of(broken, "gzip")
