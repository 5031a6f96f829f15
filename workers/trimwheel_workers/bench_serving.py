"""Time the encoder in process: `transformers` BERT, own dense, own adaptive, on the same weights.

`measure` runs the contenders in interleaved rounds over the same batches, so that a busy machine
slows all alike, and ratios are taken round by round. Times are CPU time of the one thread that
computes: on an idle machine the same as wall time, on a shared one without the waiting. Token ids
go in, classes come out; tokenising costs all contenders the same and is left out. The command
`trimwheel bench serving` (package `trimwheel_demo`, which has the corpus) trains, certifies a
policy and calls this; requests through HTTP are measured elsewhere and added to the same report.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trimwheel_api.decide import NEVER
from trimwheel_workers.model.artifact import Dtype
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.packing import pack

Texts = Sequence[Sequence[int]]
Contender = Callable[[Texts], object]

BERT, DENSE, ADAPTIVE = "transformers", "dense", "adaptive"
RATIOS = {
    "dense_against_transformers": (BERT, DENSE),
    "adaptive_against_dense": (DENSE, ADAPTIVE),
    "adaptive_against_transformers": (BERT, ADAPTIVE),
}
AIMS = {
    "dense_against_transformers": {1: 2.0, 8: 1.6, 32: 1.8},
    "adaptive_against_dense": {1: 2.5, 8: 2.3, 32: 2.5},
    "adaptive_against_transformers": {1: 5.0, 8: 4.0, 32: 4.5},
}
REQUESTS_A_ROUND = 128


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over rounds: median, and the tenth and ninetieth percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Needs two values or more."""
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(*(round(x, 4) for x in (statistics.median(values), tenths[0], tenths[-1])))


def contenders(
    trained: Encoder, served: Encoder, thresholds: Sequence[float], dtype: Dtype
) -> dict[str, Contender]:
    """The three ways to answer, on one thread; ``trained`` and ``served`` hold the same weights."""
    from trimwheel_workers.bench_bert import BertTwin  # loads transformers: seconds

    torch.set_num_threads(1)
    twin = BertTwin(trained, getattr(torch, dtype))
    signature = served.config.dense_signature

    def own(limits: Sequence[float]) -> Contender:
        rows = torch.tensor(limits, dtype=torch.float64)

        def answer(texts: Texts) -> object:
            # A per-row matrix as the engine passes it, and the engine's list at batch 1.
            given = limits if len(texts) == 1 else rows.repeat(len(texts), 1)
            return served.adaptive(pack(texts), given, signature)

        return answer

    never = [NEVER] * len(served.config.exits)
    return {BERT: twin.probabilities, DENSE: own(never), ADAPTIVE: own(list(thresholds))}


def largest_difference(trained: Encoder, served: Encoder, texts: Texts, dtype: Dtype) -> float:
    """Largest difference of a winner's probability between the twin and the own full depth."""
    from trimwheel_workers.bench_bert import BertTwin  # loads transformers: seconds

    theirs = BertTwin(trained, getattr(torch, dtype)).probabilities(texts)
    ours = served.full(pack(texts), served.config.dense_signature)
    picked = theirs.gather(1, ours.predictions[:, -1:])[:, 0]
    return float((picked - ours.probability).abs().max())


def measure(
    runs: Mapping[str, Contender], texts: Texts, batch: int, rounds: int
) -> dict[str, list[float]]:
    """CPU milliseconds a request of each contender, one figure a round, rounds interleaved."""
    batches = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]
    batches = batches[: max(1, REQUESTS_A_ROUND // batch)]
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()
    for turn in range(-1, rounds):  # the round before the first warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.thread_time()
            for part in batches:
                runs[name](part)
            spent = time.thread_time() - started
            if turn >= 0:
                times[name].append(1000 * spent / (batch * len(batches)))
    gc.unfreeze()
    return times


def summary(times: Mapping[str, Sequence[float]], batch: int) -> dict[str, Any]:
    """Milliseconds and ratios of one batch size, with the aims."""
    ratios = {}
    for name, (slow, fast) in RATIOS.items():
        by_round = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
        ratios[name] = asdict(Spread.of(by_round)) | {"aim": AIMS[name].get(batch)}
    return {
        "batch": batch,
        "ms_per_request": {name: asdict(Spread.of(values)) for name, values in times.items()},
        "ratios": ratios,
    }
