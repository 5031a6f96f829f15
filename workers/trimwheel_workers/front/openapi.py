"""The OpenAPI document of a worker's HTTP port, served at /openapi.json.

Written by hand beside the code that it describes, and held to it by tests: every route is in it,
and requests made from it by a fuzzer get answers that it describes. Called by `app`.
"""

from __future__ import annotations

from typing import Any

from trimwheel_api import names, records
from trimwheel_workers.front.limits import (
    BODY_BYTES,
    ID_CHARACTERS,
    JSON_DEPTH,
    KEY_CHARACTERS,
    TEXT_CHARACTERS,
)
from trimwheel_workers.front.protocol import INPUT, OUTPUT_TYPES

PATH = "/openapi.json"
Json = dict[str, Any]

_REFUSALS = {
    "400": "The request breaks a rule that `details` names.",
    "401": "The model asks for a bearer token, and this is none of its.",
    "404": "No such path, model or version.",
    "405": "The path has no such method.",
    "408": "The request did not arrive whole in time.",
    "413": f"The body has more than {BODY_BYTES} bytes.",
    "415": "The body's encoding is neither gzip nor deflate.",
    "429": "The queue is full; Retry-After says when to try again.",
    "431": "The headers have too many bytes.",
    "500": "The model raised an error, or produced NaN or Inf.",
    "503": "The worker is not ready, restarts its engine, or was too slow; see Retry-After.",
}
_EXAMPLE = {
    "id": "1",
    "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [1], "data": ["def f(x): return x"]}],
}
_READ = ("400", "405", "408", "413", "431", "500", "503")
_OF_MODEL = ("401", "404", *_READ)


def document(release: str, max_texts: int) -> Json:
    """The document; `max_texts` is the most texts of one request."""
    model = {"model": _path("model", "AdaptiveModel, by name.")}
    version = model | {"version": _path("version", "The version that the metadata announces.")}
    paths: Json = {
        "/v2": {"get": _get("What the server is.", "Server", _READ)},
        "/v2/health/live": {"get": _get("Whether the process lives.", "State", _READ)},
        "/v2/health/ready": {"get": _get("Whether it answers.", "State", _READ, "State")},
        PATH: {"get": _get("This document.", "Any", _READ)},
    }
    for prefix, parameters in (
        ("/v2/models/{model}", model),
        ("/v2/models/{model}/versions/{version}", version),
    ):
        given = {"parameters": list(parameters.values())}
        ready = _get("Whether the model answers.", "ModelState", _OF_MODEL, "ModelState")
        paths[prefix] = given | {"get": _get("What the model is.", "Model", _OF_MODEL)}
        paths[f"{prefix}/ready"] = given | {"get": ready}
        paths[f"{prefix}/infer"] = given | {"post": _infer()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trimwheel worker",
            "version": release,
            "description": "Open Inference Protocol v2 for text classification, with binary "
            "tensors. Probes of the kubelet and metrics have a port of their own.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(max_texts),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _path(name: str, description: str) -> Json:
    schema = {"type": "string", "minLength": 1}
    place = {"name": name, "in": "path", "required": True}
    return place | {"description": description, "schema": schema}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _responses(answer: Json, codes: tuple[str, ...], unavailable: str = "Error") -> Json:
    refused = {
        code: {"description": _REFUSALS[code], "content": _content(_ref("Error"))} for code in codes
    }
    if unavailable != "Error":
        either = {"anyOf": [_ref("Error"), _ref(unavailable)]}
        refused["503"] = {"description": _REFUSALS["503"], "content": _content(either)}
    return {"200": answer} | refused


def _get(summary: str, schema: str, codes: tuple[str, ...], unavailable: str = "Error") -> Json:
    answer = {"description": summary, "content": _content(_ref(schema))}
    return {"summary": summary, "responses": _responses(answer, codes, unavailable)}


def _infer() -> Json:
    octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    answer = {
        "description": "An answer for each text; as bytes where the request asked for that.",
        "content": _content(_ref("InferenceResponse")) | octets,
    }
    return {
        "summary": "Classify texts.",
        "security": [{}, {"token": []}],
        "parameters": [
            _header(names.SESSION_HEADER, "Session key: decides the arm, by its hash."),
            _header(records.TENANT_HEADER, "Owner of what is recorded of this request."),
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {BODY_BYTES} bytes and {JSON_DEPTH} levels.",
            "content": {
                "application/json": {"schema": _ref("InferenceRequest"), "example": _EXAMPLE}
            },
        },
        "responses": _responses(answer, ("415", "429", *_OF_MODEL)),
    }


def _header(name: str, description: str) -> Json:
    schema = {"type": "string", "maxLength": KEY_CHARACTERS}
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _object(required: Json, optional: Json | None = None, **how: Any) -> Json:
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required)} | how


def _schemas(max_texts: int) -> Json:
    text, flag = {"type": "string"}, {"type": "boolean"}
    text_of_request = {"type": "string", "maxLength": TEXT_CHARACTERS}
    whole = {"type": "integer"}
    tensor = _object({"name": text, "datatype": text, "shape": {"type": "array", "items": whole}})
    input_tensor = _object(
        {
            "name": {"const": INPUT},
            "datatype": {"const": "BYTES"},
            "shape": {"type": "array", "items": whole, "minItems": 1, "maxItems": 2},
        },
        {
            "data": {
                "type": "array",
                "minItems": 1,
                "maxItems": max_texts,
                "items": {
                    "anyOf": [
                        text_of_request,
                        {"type": "array", "items": text_of_request, "minItems": 1, "maxItems": 1},
                    ]
                },
            },
            "parameters": _object({}, {"binary_data_size": whole}),
        },
    )
    output = _object(
        {"name": {"enum": list(OUTPUT_TYPES)}}, {"parameters": _object({}, {"binary_data": flag})}
    )
    details = _object({"field": text, "rule": text, "value": {}})
    return {
        "Any": {"type": "object"},
        "Error": _object({"error": text, "details": details}),
        "State": {"anyOf": [_object({"live": flag}), _object({"ready": flag})]},
        "ModelState": _object({"name": text, "ready": flag}),
        "Server": _object(
            {"name": text, "version": text, "extensions": {"type": "array", "items": text}}
        ),
        "Model": _object(
            {
                "name": text,
                "versions": {"type": "array", "items": text},
                "platform": text,
                "inputs": {"type": "array", "items": tensor},
                "outputs": {"type": "array", "items": tensor},
            }
        ),
        "InferenceRequest": _object(
            {"inputs": {"type": "array", "items": input_tensor, "minItems": 1, "maxItems": 1}},
            {
                "id": {"type": "string", "maxLength": ID_CHARACTERS},
                "outputs": {"type": "array", "items": output, "maxItems": len(OUTPUT_TYPES)},
                "parameters": _object({}, {"binary_data_output": flag}),
            },
        ),
        "InferenceResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "parameters": _object(
                    {
                        names.PARAM_EXIT: whole,
                        names.PARAM_LAYERS: whole,
                        names.PARAM_ARM: {"enum": list(names.ARMS)},
                        names.PARAM_DIGEST: text,
                    }
                ),
                "outputs": {"type": "array", "items": tensor},
            },
            {"id": text},
        ),
    }
