"""What a processor can and what is fast on it: found out by trying, with a plain way for the rest.

`OLDER` makes this processor behave as one without AVX-512 and bf16 does; the tests of the model run
once more under it, in a process of their own.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trimwheel_api.errors import InvalidInput
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.worker_config import WorkerConfig
from trimwheel_workers.model import artifact, measured, prepacked
from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.encoder import Encoder

HERE = Path(__file__).parent
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
BUDGET = 0.3
"""Seconds that all measurements of a process may take together."""
TYPES = (torch.float32, torch.bfloat16)


def older(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python on a processor that knows AVX2 and no more."""
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | OLDER | {"OMP_NUM_THREADS": "1"} | more,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """As in a process that has measured nothing yet, and again afterwards."""
    asked = (measured.fastest_dtype, measured._times, measured._runs, prepacked.can)

    def forget() -> None:
        measured._known.clear()
        for question in asked:
            question.cache_clear()

    forget()
    yield
    forget()


def test_the_models_tests_pass_on_a_processor_without_avx512_and_bf16() -> None:
    files = [str(HERE / name) for name in ("test_model_encoder.py", "test_model_artifact.py")]
    done = older("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_training_on_an_older_processor_is_in_float32_and_notes_it(tmp_path: Path) -> None:
    done = older("-c", """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from trimwheel_demo import training
from trimwheel_workers.model import measured, prepacked
assert torch.backends.cpu.get_cpu_capability() == "AVX2"
assert measured.chosen("auto") == "float32", measured.dtype_comparison()
assert prepacked.can(torch.float32) and not prepacked.can(torch.bfloat16)
assert not prepacked.pay(torch.bfloat16)
from trimwheel_workers.fitting.recipe import Recipe, TrainingSet
rows = [(f"{word} {n}", label) for n in range(20) for word, label in (("up", "a"), ("down", "b"))]
recipe = replace(Recipe(), vocabulary=280, dim=16, layers=2, max_tokens=12, epochs=1, batch=16,
                 exit_weights=(0.5, 1.0))
data = TrainingSet(("a", "b"), rows, rows)
print(training.ensure_on(data, recipe, 0, rows, Path(sys.argv[1])).metadata["trained_in"])
""", str(tmp_path))  # fmt: skip
    assert done.stdout.strip() == "float32", done.stderr[-2000:]
    assert "training in float32: on this processor bfloat16 products take" in done.stderr


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_a_worker_on_an_older_processor_serves_whatever_type_is_asked_for(
    asked: str, start_worker: Callable[..., Any], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OLDER.items():
        monkeypatch.setenv(name, value)
    worker = start_worker(make.assignment(1, make.policy()), engine={"dtype": asked})
    assert worker.infer("a colour").status_code == 200
    serves = "bfloat16" if asked == "bfloat16" else "float32"
    said, log = worker.client.get("/v2").json(), worker.log()
    assert said["dtype"] == serves and said["kernels"].startswith("plain products, peeks from")
    assert f"in {serves} (asked for: {asked}; bfloat16 products take" in log
    warned = "engine.dtype is bfloat16, but here bfloat16 products take" in log
    assert warned == (asked == "bfloat16")
    assert f"fastest ways here: {said['kernels']}" in log


def test_a_type_in_which_nothing_can_be_multiplied_is_refused_with_a_sentence(
    tiny_model: tuple[Path, str], unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = torch.nn.functional.linear

    def without_bf16(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            raise RuntimeError("this processor has no such instruction")
        return linear(x, *rest)

    monkeypatch.setattr("torch.nn.functional.linear", without_bf16)
    with pytest.raises(InvalidInput) as refused:
        artifact.load(*tiny_model, "bfloat16")
    assert refused.value.field == "engine.dtype" and refused.value.value == "bfloat16"
    assert "can multiply" in refused.value.rule and "auto" in refused.value.remedy
    assert artifact.load(*tiny_model, "auto").dtype == "float32"
    assert measured.dtype_comparison() == "bfloat16 products do not run"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_weights_are_not_laid_out_where_the_operation_is_missing_or_wrong(
    dtype: torch.dtype, unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

    def refusing(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    for broken in (absent, refusing):
        monkeypatch.setattr(prepacked, "lay_out", broken)
        prepacked.can.cache_clear()
        assert not prepacked.can(dtype) and not prepacked.pay(dtype)
    monkeypatch.undo()
    monkeypatch.setattr(prepacked, "product", lambda x, packed, bias, gelu: x.new_zeros(8, 32))
    prepacked.can.cache_clear()
    assert not prepacked.can(dtype), "a wrong result is no product"


def test_what_is_measured_is_cheap_and_measured_once(unmeasured: None) -> None:
    first, second = (Encoder(EncoderConfig(vocabulary=50, classes=("a", "b"))) for _ in range(2))
    torch.manual_seed(7)
    state, started = torch.get_rng_state(), time.process_time()
    dtype = measured.fastest_dtype()
    first.serving(getattr(torch, dtype))
    spent, again = time.process_time() - started, time.process_time()
    assert torch.equal(torch.get_rng_state(), state), "a seeded training draws what it drew before"
    assert spent < BUDGET, f"{spent:.3f} s of measuring"
    assert measured.fastest_dtype() == dtype
    second.serving(getattr(torch, dtype))
    assert time.process_time() - again < spent / 2, "the second time nothing is measured"


def test_a_hopeless_way_is_given_up_and_waiting_for_a_processor_costs_nothing() -> None:
    calls = {"fast": 0, "slow": 0, "waiting": 0}

    def way(name: str, turns: int, waits: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            calls[name] += 1
            time.sleep(waits)  # as while another process has the processor
            sum(range(turns))

        return run

    ways = [way("fast", 20_000), way("slow", 400_000), way("waiting", 20_000, 0.02)]
    fast, slow, waiting = measured.race(ways, rounds=6)
    assert fast < 0.02 > waiting and slow > measured.HOPELESS * fast
    assert calls == {"fast": 7, "slow": 3, "waiting": 7}


@pytest.mark.parametrize(
    ("turns_at", "worth", "expected"), [(0, 1.0, 0), (40, 1.0, 2), (1000, 1.0, 4), (20, 2.0, 2)]
)
def test_a_crossover_is_the_first_size_at_which_the_second_way_is_worth_it(
    turns_at: int, worth: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "race", lambda ways: [way() for way in ways])
    tried: list[int] = []

    def ways(size: int) -> tuple[measured.Way, measured.Way]:
        tried.append(size)
        return lambda: size, lambda: turns_at

    assert measured.crossover((16, 32, 48, 64), ways, worth) == expected
    assert len(tried) <= 3


def test_a_process_goes_by_what_another_one_measured(unmeasured: None) -> None:
    encoder = Encoder(EncoderConfig(vocabulary=50, classes=("a", "b"), dim=32)).serving()
    mine = encoder.peek_tokens, dict(encoder.mixture.side_by_side_tokens), encoder.ways()
    handed = pickle.loads(pickle.dumps(measured.findings()))
    measured._known.clear()
    others = tuple((key, 0 if "side by side" in key else value) for key, value in handed)
    for given, expected in ((others, {1: 0, 2: 0}), (handed, mine[1])):
        measured.adopt(given)
        again = Encoder(encoder.config).serving()
        assert again.mixture.side_by_side_tokens == expected
        assert again.peek_tokens == mine[0]
    assert again.ways() == mine[2]


def test_no_digest_depends_on_the_type(tiny_model: tuple[Path, str]) -> None:
    loaded = [artifact.load(*tiny_model, dtype) for dtype in ("float32", "bfloat16", "auto")]
    assert len({(model.digest, model.score_digest) for model in loaded}) == 1
    assert loaded[2].dtype == measured.fastest_dtype()


def test_the_type_is_chosen_by_measuring_unless_asked_for() -> None:
    spec = AdaptiveModelSpec.model_validate(
        {"model": {"uri": "models:/m/1", "digest": "sha256:" + "0" * 64}}
    )
    assert spec.engine.dtype == "auto"
    stored = {"model": "m", "namespace": "n", "modelDigest": "d", "engine": {"dtype": "float32"}}
    assert WorkerConfig.model_validate(stored).engine.dtype == "float32", "as 0.1.0 filled it in"


def test_bf16_that_is_fast_enough_is_taken_without_a_word(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for exact, rounded, expected in ((1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32")):
        monkeypatch.setattr(measured, "_times", lambda pair=(exact, rounded): pair)
        measured.fastest_dtype.cache_clear()
        assert measured.chosen("auto") == expected
        assert measured.chosen("bfloat16") == "bfloat16"
        assert ("auto would take float32" in caplog.text) == (expected == "float32")
