"""The Open Inference Protocol v2, as far as a text classifier needs it. Pure; no HTTP, no engine.

One input `text` (BYTES, [n] or [n, 1]); outputs `label` (BYTES) and `probability` (FP32). With more
than one text, or on request, `exit` and `layers` (INT32) say for each text where it was answered;
the response `parameters` speak of the first text. No pydantic: this is the request path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from trimwheel_api import names
from trimwheel_api.errors import RequestInvalid

INPUT = "text"
DEFAULT_OUTPUTS = ("label", "probability")
DEPTH_OUTPUTS = ("exit", "layers")
OUTPUT_TYPES = {"label": "BYTES", "probability": "FP32", "exit": "INT32", "layers": "INT32"}
MAX_BODY_BYTES = 1 << 20
MAX_TEXT_CHARACTERS = 65_536
"""Longer texts are cut by the tokenizer anyway, but not before it has read them."""
MAX_KEY_CHARACTERS = 256
"""Of a session or tenant header."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a client asks."""

    texts: tuple[str, ...]
    id: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """What is said of one text."""

    label: str
    probability: float
    exit: int
    layers: int
    arm: str
    digest: str


def parse(body: bytes, max_texts: int) -> InferenceRequest:
    """Read a request body. Raises RequestInvalid naming field, rule, value and remedy."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        start = body[:64].decode(errors="replace")
        raise RequestInvalid("body", f"must be JSON ({error})", start) from error
    if not isinstance(value, dict):
        raise RequestInvalid("body", "must be an object", value)
    request_id = value.get("id", "")
    if not isinstance(request_id, str):
        raise RequestInvalid("id", "must be a string", request_id)
    texts = _texts(value.get("inputs"), max_texts)
    return InferenceRequest(texts, request_id, _outputs(value.get("outputs"), len(texts)))


def _texts(inputs: Any, max_texts: int) -> tuple[str, ...]:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestInvalid("inputs", "must be a list of one object", inputs)
    tensor = inputs[0]
    if tensor.get("name") != INPUT:
        raise RequestInvalid("inputs[0].name", f'must be "{INPUT}"', tensor.get("name"))
    if tensor.get("datatype") != "BYTES":
        raise RequestInvalid("inputs[0].datatype", 'must be "BYTES"', tensor.get("datatype"))
    data = tensor.get("data")
    if not isinstance(data, list) or not data:
        remedy = "The binary tensor extension is not supported"
        raise RequestInvalid("inputs[0].data", "must be a list of strings", data, remedy)
    texts = [_text(item, place) for place, item in enumerate(data)]
    if len(texts) > max_texts:
        remedy = "Send several requests"
        raise RequestInvalid(
            "inputs[0].data", f"must hold at most {max_texts} texts", len(texts), remedy
        )
    if tensor.get("shape") not in ([len(texts)], [len(texts), 1]):
        rule = f"must be [{len(texts)}] or [{len(texts)}, 1], like the data"
        raise RequestInvalid("inputs[0].shape", rule, tensor.get("shape"))
    return tuple(texts)


def _text(item: Any, place: int) -> str:
    text = item[0] if isinstance(item, list) and len(item) == 1 else item
    if not isinstance(text, str):
        raise RequestInvalid(f"inputs[0].data[{place}]", "must be a string", item)
    if len(text) > MAX_TEXT_CHARACTERS:
        rule = f"must have at most {MAX_TEXT_CHARACTERS} characters"
        raise RequestInvalid(f"inputs[0].data[{place}]", rule, len(text))
    return text


def _outputs(outputs: Any, texts: int) -> tuple[str, ...]:
    if not outputs:
        return DEFAULT_OUTPUTS if texts == 1 else DEFAULT_OUTPUTS + DEPTH_OUTPUTS
    if not isinstance(outputs, list):
        raise RequestInvalid("outputs", "must be a list", outputs)
    asked = []
    for place, item in enumerate(outputs):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in OUTPUT_TYPES:
            rule = f"must be one of {', '.join(OUTPUT_TYPES)}"
            raise RequestInvalid(f"outputs[{place}].name", rule, name)
        asked.append(name)
    return tuple(asked)


def response(
    model: str, version: str, request: InferenceRequest, answers: Sequence[TextAnswer]
) -> bytes:
    """The body of a 200."""
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
    shape = [len(answers)]
    body["outputs"] = [
        {
            "name": name,
            "datatype": OUTPUT_TYPES[name],
            "shape": shape,
            "data": [getattr(answer, name) for answer in answers],
        }
        for name in request.outputs
    ]
    return orjson.dumps(body)


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
    if len(header) > MAX_KEY_CHARACTERS:
        rule = f"must have at most {MAX_KEY_CHARACTERS} characters"
        raise RequestInvalid(f"header {name}", rule, f"{len(header)} characters")
    try:
        return header.decode()
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"header {name}", "must be UTF-8", repr(header[:64])) from error
