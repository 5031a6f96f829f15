"""The Open Inference Protocol v2, as far as a text classifier needs it. Pure; no HTTP, no engine.

One input `text` (BYTES, [n] or [n, 1]), as JSON or binary; outputs `label` (BYTES) and
`probability` (FP32). With more than one text, or on request, `exit` and `layers` (INT32) say for
each text where it was answered; the response `parameters` are about the first text. No pydantic:
this is the request path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from trimwheel_api import names
from trimwheel_api.errors import RequestInvalid
from trimwheel_workers.front import json_shape, tensors
from trimwheel_workers.front.limits import ID_CHARACTERS, KEY_CHARACTERS, TEXT_CHARACTERS

INPUT = "text"
DEFAULT_OUTPUTS = ("label", "probability")
DEPTH_OUTPUTS = ("exit", "layers")
OUTPUT_TYPES = {"label": "BYTES", "probability": "FP32", "exit": "INT32", "layers": "INT32"}
_DATA = "inputs[0].data"


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a client asks."""

    texts: tuple[str, ...]
    id: str
    outputs: tuple[str, ...]
    binary: frozenset[str] = frozenset()
    """Outputs that are sent as bytes behind the JSON."""


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """What is said of one text."""

    label: str
    probability: float
    exit: int
    layers: int
    arm: str
    digest: str


def parse(body: bytes, max_texts: int, header: str | None = None) -> InferenceRequest:
    """Read a request body. Raises RequestInvalid naming field, rule, value and remedy.

    `header` is the value of `tensors.HEADER`, where a client sent one.
    """
    text, binary = tensors.split(body, header)
    json_shape.check(text)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestInvalid("body", f"must be JSON ({error})", text[:64]) from None
    if not isinstance(value, dict):
        raise RequestInvalid("body", "must be an object", value)
    request_id = value.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > ID_CHARACTERS:
        rule = f"must be a string of at most {ID_CHARACTERS} characters"
        raise RequestInvalid("id", rule, request_id)
    texts = _texts(value.get("inputs"), binary, max_texts)
    parameters = _parameters(value, "parameters")
    outputs, as_bytes = _outputs(value.get("outputs"), len(texts))
    if parameters.get("binary_data_output") is True and not value.get("outputs"):
        as_bytes = frozenset(outputs)
    return InferenceRequest(texts, request_id, outputs, as_bytes)


def _parameters(holder: dict[str, Any], field: str) -> dict[str, Any]:
    given = holder.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise RequestInvalid(field, "must be an object", given)
    return given


def _texts(inputs: Any, binary: bytes, max_texts: int) -> tuple[str, ...]:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestInvalid("inputs", "must be a list of one object", inputs)
    tensor = inputs[0]
    if tensor.get("name") != INPUT:
        raise RequestInvalid("inputs[0].name", f'must be "{INPUT}"', tensor.get("name"))
    if tensor.get("datatype") != "BYTES":
        raise RequestInvalid("inputs[0].datatype", 'must be "BYTES"', tensor.get("datatype"))
    texts = [_checked(text, place) for place, text in enumerate(_data(tensor, binary, max_texts))]
    if len(texts) > max_texts:
        remedy = "Send several requests"
        raise RequestInvalid(_DATA, f"must hold at most {max_texts} texts", len(texts), remedy)
    if tensor.get("shape") not in ([len(texts)], [len(texts), 1]):
        rule = f"must be [{len(texts)}] or [{len(texts)}, 1], like the data"
        raise RequestInvalid("inputs[0].shape", rule, tensor.get("shape"))
    return tuple(texts)


def _data(tensor: dict[str, Any], binary: bytes, max_texts: int) -> list[Any]:
    """The input's elements, wherever they are."""
    parameters = _parameters(tensor, "inputs[0].parameters")
    if "shared_memory_region" in parameters:
        field = "inputs[0].parameters.shared_memory_region"
        remedy = "Send the texts as data"
        raise RequestInvalid(field, "is not supported", parameters["shared_memory_region"], remedy)
    size = parameters.get("binary_data_size")
    if size is None:
        if binary:
            field = "inputs[0].parameters.binary_data_size"
            raise RequestInvalid(field, f"must be {len(binary)}, the bytes behind the JSON", size)
        data = tensor.get("data")
        if not isinstance(data, list) or not data:
            raise RequestInvalid(_DATA, "must be a list of strings, not empty", data)
        return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    if type(size) is not int or size != len(binary) or not binary:
        rule = f"must be the bytes behind the JSON (header {tensors.HEADER}), {len(binary)}"
        raise RequestInvalid("inputs[0].parameters.binary_data_size", rule, size)
    if "data" in tensor:
        raise RequestInvalid(_DATA, "must be absent beside binary_data_size", tensor["data"])
    return list(tensors.read_texts(binary, _DATA, max_texts))


def _checked(text: Any, place: int) -> str:
    if not isinstance(text, str):
        raise RequestInvalid(f"{_DATA}[{place}]", "must be a string", text)
    if len(text) > TEXT_CHARACTERS:
        rule = f"must have at most {TEXT_CHARACTERS} characters"
        raise RequestInvalid(f"{_DATA}[{place}]", rule, len(text))
    return text


def _outputs(outputs: Any, texts: int) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of the outputs to send, and which of them as bytes."""
    if not outputs and (outputs is None or isinstance(outputs, list)):
        return DEFAULT_OUTPUTS if texts == 1 else DEFAULT_OUTPUTS + DEPTH_OUTPUTS, frozenset()
    if not isinstance(outputs, list):
        raise RequestInvalid("outputs", "must be a list", outputs)
    asked: dict[str, bool] = {}
    for place, item in enumerate(outputs):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in OUTPUT_TYPES:
            rule = f"must be one of {', '.join(OUTPUT_TYPES)}"
            raise RequestInvalid(f"outputs[{place}].name", rule, name)
        if name in asked:
            raise RequestInvalid(f"outputs[{place}].name", "must be asked for once", name)
        asked[name] = _as_bytes(item, f"outputs[{place}].parameters")
    return tuple(asked), frozenset(name for name, binary in asked.items() if binary)


def _as_bytes(output: dict[str, Any], field: str) -> bool:
    parameters = _parameters(output, field)
    for name in ("classification", "shared_memory_region"):
        if parameters.get(name):
            remedy = "Ask for the output without it"
            raise RequestInvalid(f"{field}.{name}", "is not supported", parameters[name], remedy)
    binary = parameters.get("binary_data", False)
    if not isinstance(binary, bool):
        raise RequestInvalid(f"{field}.binary_data", "must be true or false", binary)
    return binary


def response(
    model: str, version: str, request: InferenceRequest, answers: Sequence[TextAnswer]
) -> tuple[bytes, int | None]:
    """The body of a 200, and the bytes of its JSON where tensors follow it."""
    first = answers[0]
    body: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        body["id"] = request.id
    body["parameters"] = {
        names.PARAM_EXIT: first.exit,
        names.PARAM_LAYERS: first.layers,
        names.PARAM_ARM: first.arm,
        names.PARAM_DIGEST: first.digest,
    }
    body["outputs"] = outputs = []
    behind: list[bytes] = []
    for name in request.outputs:
        values = [getattr(answer, name) for answer in answers]
        output: dict[str, Any] = {
            "name": name,
            "datatype": OUTPUT_TYPES[name],
            "shape": [len(answers)],
        }
        if name in request.binary:
            behind.append(tensors.write(OUTPUT_TYPES[name], values))
            output["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    text = orjson.dumps(body)
    return (text + b"".join(behind), len(text)) if behind else (text, None)


def model_metadata(model: str, version: str) -> dict[str, Any]:
    """Answer to GET /v2/models/{model}."""
    return {
        "name": model,
        "versions": [version],
        "platform": "trimwheel_encoder",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in OUTPUT_TYPES.items()
        ],
    }


def key_of(header: bytes, name: str) -> str:
    """A session or tenant key from its header. Raises RequestInvalid."""
    if len(header) > KEY_CHARACTERS:
        rule = f"must have at most {KEY_CHARACTERS} characters"
        raise RequestInvalid(f"header {name}", rule, f"{len(header)} characters")
    try:
        return header.decode()
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"header {name}", "must be UTF-8", header) from error
