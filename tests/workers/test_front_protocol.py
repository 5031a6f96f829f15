"""What a request may be, and how a wrong one is told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from trimwheel_api.errors import RequestInvalid
from trimwheel_workers.front import protocol
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
    "outputs that are no list": (body(outputs={"name": "label"}), "outputs"),
}


@pytest.mark.parametrize(("data", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_names_the_field_the_rule_and_the_value(data: bytes, field: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        protocol.parse(data, 4)
    told = caught.value.as_body()
    assert told["field"] == field
    assert told["rule"] and set(told) == {"field", "rule", "value", "message"}
    assert len(str(told["message"])) < 500, "a message does not repeat a huge value"


def answer(label: str, exit_index: int) -> TextAnswer:
    return TextAnswer(label, 0.5, exit_index, exit_index + 1, "stable", "sha256:p")


def test_one_text_gets_label_and_probability_and_parameters() -> None:
    request = InferenceRequest(("x",), "r1", protocol.parse(body(), 4).outputs)
    told = orjson.loads(protocol.response("m", "v", request, [answer("a", 1)]))
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
    told = orjson.loads(protocol.response("m", "v", request, [answer("a", 1), answer("b", 3)]))
    by_name = {output["name"]: output["data"] for output in told["outputs"]}
    assert by_name["exit"] == [1, 3] and by_name["layers"] == [2, 4]
    assert told["parameters"]["trimwheel_exit"] == 1


def test_a_client_gets_the_outputs_that_it_asks_for() -> None:
    request = protocol.parse(body(outputs=[{"name": "exit"}]), 4)
    told = orjson.loads(protocol.response("m", "v", request, [answer("a", 1)]))
    assert [output["name"] for output in told["outputs"]] == ["exit"]


@pytest.mark.parametrize("header", [b"x" * 300, b"\xff\xfe"], ids=["too long", "not UTF-8"])
def test_a_bad_session_key_names_its_header(header: bytes) -> None:
    with pytest.raises(RequestInvalid, match="header x-session-id"):
        protocol.key_of(header, "x-session-id")
