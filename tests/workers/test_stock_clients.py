"""Triton's own HTTP client through every call that we announce, with each of its options."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tests.workers.served import Served, serving
from tritonclient.utils import InferenceServerException


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as made:
        yield made


def text_input(*texts: str, binary: bool = True, nested: bool = False) -> triton.InferInput:
    shape = [len(texts), 1] if nested else [len(texts)]
    tensor = triton.InferInput("text", shape, "BYTES")
    values = np.array([text.encode() for text in texts], dtype=np.object_).reshape(shape)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def client_of(served: Served) -> Any:
    return triton.InferenceServerClient(f"127.0.0.1:{served.port}")


async def with_client(served: Served, use: Callable[[Any], Any]) -> Any:
    def run() -> Any:
        with contextlib.closing(client_of(served)) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def test_health_and_metadata(served: Served) -> None:
    def use(client: Any) -> None:
        assert client.is_server_live() and client.is_server_ready()
        server = client.get_server_metadata()
        assert server["name"] == "trimwheel" and server["extensions"] == ["binary_tensor_data"]
        model = client.get_model_metadata("m")
        (version,) = model["versions"]
        assert client.is_model_ready("m") and client.is_model_ready("m", version)
        assert not client.is_model_ready("m", "7") and not client.is_model_ready("x")
        assert client.get_model_metadata("m", version) == model
        assert client.get_model_metadata("m", version, headers={"a": "b"}, query_params={"q": 1})

    await with_client(served, use)


OUTPUTS: dict[str, Any] = {
    "none": None,
    "binary": [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("exit")],
    "JSON": [triton.InferRequestedOutput("label", binary_data=False)],
    "both": [
        triton.InferRequestedOutput("label"),
        triton.InferRequestedOutput("probability", binary_data=False),
        triton.InferRequestedOutput("layers"),
    ],
}
INPUTS: dict[str, Any] = {
    "binary": {},
    "JSON": {"binary": False},
    "binary column": {"nested": True},
    "JSON column": {"nested": True, "binary": False},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "id": {"request_id": "r-1"},
    "sequence": {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
    "priority": {"priority": 1},
    "timeout": {"timeout": 1_000_000},
    "headers": {"headers": {"x-session-id": "s1"}},
    "query": {"query_params": {"a": "b"}},
    "parameters": {"parameters": {"mine": "x"}},
    "gzip": {"request_compression_algorithm": "gzip"},
    "deflate": {"request_compression_algorithm": "deflate"},
    "answers in gzip": {"response_compression_algorithm": "gzip"},
    "answers in deflate": {"response_compression_algorithm": "deflate"},
}


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inputs", INPUTS)
async def test_every_form_of_input_and_output(served: Served, inputs: str, outputs: str) -> None:
    def use(client: Any) -> None:
        tensor = text_input("def f(x): return x", "\U0001f600", **INPUTS[inputs])
        result = client.infer("m", [tensor], outputs=OUTPUTS[outputs])
        assert [_text(value) for value in result.as_numpy("label")] == ["a", "a"]
        for name, dtype, expected in (
            ("probability", np.float32, 0.5), ("exit", np.int32, 1), ("layers", np.int32, 2),
        ):  # fmt: skip
            values = result.as_numpy(name)
            if values is not None:
                assert values.dtype == dtype and values.tolist() == [expected] * 2
        assert result.get_response()["parameters"]["trimwheel_arm"] == "stable"

    await with_client(served, use)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
async def test_every_option_of_infer(served: Served, option: str, versioned: bool) -> None:
    def use(client: Any) -> None:
        version = client.get_model_metadata("m")["versions"][0] if versioned else ""
        result = client.infer("m", [text_input("x")], model_version=version, **OPTIONS[option])
        assert _text(result.as_numpy("label")[0]) == "a"
        assert result.get_response().get("id", "") == OPTIONS[option].get("request_id", "")

    await with_client(served, use)


async def test_infer_in_the_background_and_by_hand(served: Served) -> None:
    def use(client: Any) -> None:
        pending = client.async_infer("m", [text_input("x")])
        assert _text(pending.get_result().as_numpy("label")[0]) == "a"
        body, size = client.generate_request_body([text_input("x")])
        assert size and size < len(body)

    await with_client(served, use)


async def test_the_asynchronous_client(served: Served) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        assert await client.is_server_ready() and await client.is_model_ready("m")
        result = await client.infer("m", [text_input("x")])
        assert _text(result.as_numpy("label")[0]) == "a"
        with pytest.raises(InferenceServerException, match='must be "m"'):
            await client.infer("x", [text_input("x")])


def _shared(tensor: Any) -> Any:
    tensor.set_shared_memory("region", 8)
    return tensor


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another model": (lambda c: c.infer("x", [text_input("x")]), 'must be "m"'),
    "another version": (lambda c: c.infer("m", [text_input("x")], model_version="7"), "version"),
    "another model's metadata": (lambda c: c.get_model_metadata("x"), 'must be "m"'),
    "too many texts": (lambda c: c.infer("m", [text_input(*["x"] * 33)]), "at most 32 texts"),
    "two inputs": (lambda c: c.infer("m", [text_input("x")] * 2), "list of one object"),
    "shared memory in": (
        lambda c: c.infer("m", [_shared(triton.InferInput("text", [1], "BYTES"))]),
        "shared_memory_region: is not supported",
    ),
    "shared memory out": (
        lambda c: c.infer("m", [text_input("x")],
                          outputs=[_shared(triton.InferRequestedOutput("label"))]),
        "shared_memory_region: is not supported",
    ),
    "classification": (
        lambda c: c.infer("m", [text_input("x")],
                          outputs=[triton.InferRequestedOutput("label", class_count=2)]),
        "classification: is not supported",
    ),
    "an unknown output": (
        lambda c: c.infer("m", [text_input("x")], outputs=[triton.InferRequestedOutput("logits")]),
        "must be one of label",
    ),
    # Extensions that the server's metadata does not announce.
    "model configuration": (lambda c: c.get_model_config("m"), "Not Found"),
    "the repository": (lambda c: c.get_model_repository_index(), "Not Found"),
    "loading": (lambda c: c.load_model("m"), "Not Found"),
    "unloading": (lambda c: c.unload_model("m"), "Not Found"),
    "statistics": (lambda c: c.get_inference_statistics("m"), "Not Found"),
    "trace settings": (lambda c: c.get_trace_settings(), "Not Found"),
    "log settings": (lambda c: c.get_log_settings(), "Not Found"),
    "shared memory": (lambda c: c.get_system_shared_memory_status(), "Not Found"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_is_a_sentence_in_the_client(served: Served, case: str) -> None:
    call, words = REFUSED[case]

    def use(client: Any) -> None:
        with pytest.raises(InferenceServerException, match=words) as caught:
            call(client)
        assert caught.value.status() in ("400", "404")

    await with_client(served, use)


async def test_an_engine_that_is_away_is_a_sentence_too(served: Served) -> None:
    served.worker.engine.ready = False

    def use(client: Any) -> None:
        assert not client.is_server_ready() and not client.is_model_ready("m")
        with pytest.raises(InferenceServerException, match="engine is not ready"):
            client.infer("m", [text_input("x")])

    await with_client(served, use)
