"""Which way is the faster one on this processor: measured once per process, never read from a list
of its features.

A flag list names what a processor can do, not what is fast on it: bf16 products run everywhere, 65
times slower than fp32 on one and twice as fast on another. ``fastest_dtype`` is asked by the
training and by whoever loads a model for ``auto``; ``once`` and ``crossover`` by the layers for
what depends on their size. All measurements of a process take well under 0.3 s together.

Ways that are compared give the same answers to rounding, so a wrong choice costs time and no more.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Final, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trimwheel_api.errors import InvalidInput

__all__ = [
    "AUTO",
    "AskedDtype",
    "Dtype",
    "Findings",
    "adopt",
    "chosen",
    "crossover",
    "dtype_comparison",
    "fastest_dtype",
    "findings",
    "numbers",
    "once",
    "race",
]

_LOG = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16"]
AskedDtype = Literal["auto", "float32", "bfloat16"]
AUTO: Final = "auto"

Way = Callable[[], object]
Findings = tuple[tuple[Hashable, object], ...]
"""What a process measured, by key; plain values, to hand to another process."""
T = TypeVar("T")

ROUNDS = 4
MANY_ROUNDS = 12
"""For what a whole model hangs on; other processes spoil the caches of a busy machine."""
HOPELESS = 4.0
"""A way that twice took this many times as long as the best is not run again."""
GAIN = 1.25
"""bf16 rounds to three digits: it has to be this much faster than fp32 to be chosen."""
PRODUCT = (128, 192, 512)
"""Rows, inputs and outputs of the product that types are compared on: a layer's, of a batch."""

_known: dict[Hashable, object] = {}


def race(ways: Sequence[Way], rounds: int = ROUNDS) -> list[float]:
    """Least seconds of each way on this thread's processor, run in turn.

    A thread's own time stands still while other work has the processor: a busy machine makes the
    clock on the wall wrong by hundreds of times. Each way is run once before, unmeasured: the first
    call lays out and compiles.
    """
    for way in ways:
        way()
    best = [float("inf")] * len(ways)
    for done in range(rounds):
        for index, way in enumerate(ways):
            if done >= 2 and best[index] > HOPELESS * min(best):
                continue
            started = time.thread_time()
            way()
            best[index] = min(best[index], time.thread_time() - started)
    return best


def once(key: Hashable, measure: Callable[[], T]) -> T:
    """What ``measure`` found under this key, measured at the first call of the process."""
    if key not in _known:
        _known[key] = measure()
    return cast(T, _known[key])


def findings() -> Findings:
    """All that this process measured so far."""
    return tuple(_known.items())


def adopt(others: Findings) -> None:
    """Go by what another process measured, before any model is loaded: both then add in the same
    order, so that their results are equal to the last digit on the same kind of processor."""
    _known.update(others)


def crossover(
    sizes: Sequence[int], ways: Callable[[int], tuple[Way, Way]], worth: float = 1.0
) -> int:
    """Index of the first of the rising ``sizes`` at which the second way is the faster one, or
    ``worth`` times as fast; their number for none. Found by halving: few sizes are tried."""

    def turned(size: int) -> bool:
        first, second = race(ways(size))
        return worth * second < first

    return bisect_left(sizes, True, key=turned)


def chosen(asked: AskedDtype) -> Dtype:
    """The type to compute in: the faster one for ``auto``, else what was asked for.

    bf16 where it is slow is a legal wish, and said in the log. Raises InvalidInput for a type in
    which this processor cannot multiply at all.
    """
    if asked == AUTO:
        return fastest_dtype()
    if not _runs(asked):
        raise InvalidInput(
            "engine.dtype",
            "must be a type in which this processor can multiply",
            asked,
            "Leave it at auto, which measures and takes the faster one.",
        )
    if asked == "bfloat16" and fastest_dtype() != asked:
        _LOG.warning(
            "engine.dtype is bfloat16, but here %s; auto would take float32", dtype_comparison()
        )
    return asked


@cache
def fastest_dtype() -> Dtype:
    """The type in which layers run faster here, for training and for serving."""
    exact, rounded = _times()
    return "bfloat16" if rounded is not None and exact > GAIN * rounded else "float32"


def dtype_comparison() -> str:
    """The measurement behind `fastest_dtype`, as half a sentence."""
    exact, rounded = _times()
    if rounded is None:
        return "bfloat16 products do not run"
    return f"bfloat16 products take {rounded / exact:.2g} times as long as float32"


@cache
def _times() -> tuple[float, float | None]:
    """Seconds of the same product in fp32 and in bf16; None where bf16 does not run."""
    ways = [_product(torch.float32)]
    if _runs("bfloat16"):
        ways.append(_product(torch.bfloat16))
    best = race(ways, MANY_ROUNDS)
    return best[0], best[1] if len(best) > 1 else None


@cache
def _runs(dtype: Dtype) -> bool:
    """Whether a small product runs in a type at all."""
    try:
        _product(getattr(torch, dtype), rows=1)()
    except RuntimeError as error:
        _LOG.info("no products in %s here: %s", dtype, error)
        return False
    return True


def numbers(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A matrix to try something on, always the same one; a seeded training, which draws from the
    process's generator, draws what it drew before."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def _product(dtype: torch.dtype, rows: int = PRODUCT[0]) -> Callable[[], Tensor]:
    x, weight = numbers(rows, PRODUCT[1], dtype), numbers(PRODUCT[2], PRODUCT[1], dtype)

    def run() -> Tensor:
        with torch.inference_mode():
            return F.linear(x, weight)

    return run
