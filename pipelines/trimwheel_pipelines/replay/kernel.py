"""The replay kernels: cost and disagreements of many vectors by popcount.

Called by `bitmaps` alone. Bitmaps hold 64 records a word. For a vector of levels a kernel walks the
exits from shallow to deep: `x = alive & level bitmap` leaves here, `popcount(x)` counts how many,
`x & D` says which of them disagree, `alive ^= x` is what goes on. `llvm.ctpop` becomes the vector
popcount of AVX-512 or NEON where there is one, and exact bit tricks elsewhere.

Leaves out: weights and quantisation (`bitmaps`). The slow form is `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

Words = npt.NDArray[np.uint64]
Levels = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float64]
Kernel = Callable[[Levels, Words, Words, Words, Floats, Floats, Floats], None]
"""(vectors [V, E], table [E, levels, W], differs [E + 1, W], everyone [W], price [E + 1], cost [V],
wrong [V]): fills `cost` with the summed price of all records and `wrong` with disagreements."""


@intrinsic  # type: ignore[untyped-decorator]
def popcount(typing_context: Any, word: Any) -> Any:
    """Number of set bits of a uint64, as LLVM's `ctpop` (usable inside numba code only)."""
    if word != types.uint64:
        return None

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_type = ir.IntType(64)
        function = builder.module.declare_intrinsic("llvm.ctpop", [word_type])
        return builder.call(function, arguments)

    return types.uint64(types.uint64), emit


_HEAD = """\
def count_vectors(vectors, table, differs, everyone, price, cost, wrong):
    total = np.uint64(0)
    for w in range(everyone.shape[0]):
        total += popcount(everyone[w])
    deepest = differs[{exits}]
    for v in range(vectors.shape[0]):
        disagreements = np.uint64(0)
"""
_ROWS = """\
        row{e} = table[{e}, vectors[v, {e}]]
        bad{e} = differs[{e}]
        on{e} = np.uint64(0)
"""
_WORDS = """\
        for w in range(everyone.shape[0]):
            alive = everyone[w]
            different = np.uint64(0)
"""
_EXIT = """\
            x = alive & row{e}[w]
            different |= x & bad{e}[w]
            alive ^= x
            on{e} += popcount(alive)
"""
_TAIL = """\
            disagreements += popcount(different | (alive & deepest[w]))
        wrong[v] = disagreements
        cost[v] = price[0] * total{steps}
"""
_STEP = " + (price[{next}] - price[{e}]) * on{e}"


@cache
def vector_kernel(exits: int) -> Kernel:
    """The kernel for independent vectors over this many exits, compiled on first use (about 1 s).

    Its loop over exits is unrolled as text, because numba does not unroll it and only then does
    LLVM keep `alive` in registers and vectorise over words: three times as fast as the plain loop.
    """
    each = range(exits)
    source = (
        _HEAD.format(exits=exits)
        + "".join(_ROWS.format(e=e) for e in each)
        + _WORDS
        + "".join(_EXIT.format(e=e) for e in each)
        + _TAIL.format(steps="".join(_STEP.format(e=e, next=e + 1) for e in each))
    )
    namespace: dict[str, Any] = {"np": np, "popcount": popcount}
    exec(compile(source, f"<replay kernel for {exits} exits>", "exec"), namespace)
    kernel: Kernel = nb.njit(boundscheck=False, nogil=True)(namespace["count_vectors"])
    return kernel


@nb.njit(cache=True, boundscheck=False, nogil=True)  # type: ignore[untyped-decorator]
def count_sorted(
    vectors: Levels,
    table: Words,
    differs: Words,
    everyone: Words,
    price: Floats,
    cost: Floats,
    wrong: Floats,
) -> None:
    """The same numbers, reusing what consecutive vectors share.

    Right for any order; fast for a lexicographically sorted grid, where only the deepest exits
    change from one vector to the next. Keeps the alive bitmap and both sums of every depth.
    """
    exits, words = vectors.shape[1], everyone.shape[0]
    alive = np.empty((exits + 1, words), np.uint64)
    alive[0] = everyone
    wrong_to = np.zeros(exits + 1, np.uint64)
    cost_to = np.zeros(exits + 1, np.float64)
    deepest = differs[exits]
    for v in range(vectors.shape[0]):
        first = 0
        if v > 0:
            while first < exits and vectors[v, first] == vectors[v - 1, first]:
                first += 1
        for e in range(first, exits):
            row = table[e, vectors[v, e]]
            bad = differs[e]
            before, after = alive[e], alive[e + 1]
            left = np.uint64(0)
            disagreements = np.uint64(0)
            for w in range(words):
                x = before[w] & row[w]
                left += popcount(x)
                disagreements += popcount(x & bad[w])
                after[w] = before[w] ^ x
            cost_to[e + 1] = cost_to[e] + price[e] * left
            wrong_to[e + 1] = wrong_to[e] + disagreements
        last = alive[exits]
        left = np.uint64(0)
        disagreements = np.uint64(0)
        for w in range(words):
            left += popcount(last[w])
            disagreements += popcount(last[w] & deepest[w])
        cost[v] = cost_to[exits] + price[exits] * left
        wrong[v] = wrong_to[exits] + disagreements
