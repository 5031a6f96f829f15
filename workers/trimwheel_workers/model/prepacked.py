"""Products on weights that oneDNN laid out once: the only user of two private ops of torch.

Whether the processor has them is tried, for each type, and so is whether they pay: on one CPU they
are twice as fast as the BLAS library in fp32, on another no faster, and on a third the bf16 one
raises. ``kernels.Linear`` asks here and takes the plain product otherwise.
"""

from __future__ import annotations

import logging
from functools import cache
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trimwheel_workers.model import measured

_LOG = logging.getLogger(__name__)

PREPACK_ROWS = 256
"""Row count oneDNN is told to lay the weight out for; any count may be used later."""
ROW_STEPS = ((64, 4), (256, 16), (1024, 32))
"""Row counts are rounded up: to 4 up to 64 rows, and so on; to 64 beyond the last. oneDNN compiles
a kernel for every row count it meets and keeps it; packed batches have a new one nearly every time,
which cost half of a batch's time and hundreds of megabytes."""
LAST_STEP = 64

GAIN = 1.2
"""Laid-out weights are a second copy: they have to be this much faster than the plain product."""
WIDTHS = (192, 512)
"""Inputs and outputs of the product that is tried: a layer's."""
TRIED_ROWS = (16, 256)
"""One text's tokens, and a batch's."""
SMALL_ROWS = (4, 8, 16, 32)
"""Row counts that are tried for where the plain product stops being the faster one."""
AGREES = 0.05
"""Largest difference from the plain product, as a share of the largest value, that is rounding."""


@cache
def rounded(rows: int) -> int:
    """The row count that a product of `rows` rows is run with."""
    step = next((step for limit, step in ROW_STEPS if rows <= limit), LAST_STEP)
    return -(-rows // step) * step


@cache
def can(dtype: torch.dtype) -> bool:
    """Whether products on laid-out weights run here in a type, and are right: tried once."""
    x, weight = measured.numbers(8, 64, dtype), measured.numbers(32, 64, dtype)
    bias = torch.full((32,), 0.5, dtype=dtype)
    try:
        with torch.inference_mode():
            packed = lay_out(weight)
            for gelu in (False, True):
                plain = F.linear(x, weight, bias).float()
                expected = F.gelu(plain) if gelu else plain
                difference = (product(x, packed, bias, gelu=gelu).float() - expected).abs().max()
                if not difference <= AGREES * expected.abs().max():
                    raise RuntimeError(f"the result is off by {difference:.2g}")
    except (RuntimeError, AttributeError) as error:
        # AttributeError: a build of torch without the ops.
        _LOG.info("no products on laid-out weights in %s: %s", dtype, error)
        return False
    return True


def pay(dtype: torch.dtype) -> bool:
    """Whether they are clearly faster than plain products, for one text and for a batch."""
    return can(dtype) and measured.once(f"prepacked {dtype}", lambda: _gain(dtype) > GAIN)


def _gain(dtype: torch.dtype) -> float:
    gains = []
    with torch.inference_mode():
        for rows in TRIED_ROWS:
            plain, packed = measured.race(_ways(dtype, rows), measured.MANY_ROUNDS)
            gains.append(plain / packed)
    return prod(gains)


def small_product(dtype: torch.dtype) -> int:
    """Multiplications of a product up to which the plain one is the faster: a oneDNN call begins
    at ten microseconds or more. None in bf16, where a plain call lays the weight out each time."""
    if dtype != torch.float32:
        return 0

    def measure() -> int:
        with torch.inference_mode():
            turn = measured.crossover(SMALL_ROWS, lambda rows: _ways(dtype, rows))
        return (0, *SMALL_ROWS)[turn] * prod(WIDTHS)

    return measured.once(f"small product {dtype}", measure)


def lay_out(weight: Tensor) -> Tensor:
    """The weight [outputs, inputs] as `product` takes it."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, PREPACK_ROWS))


def product(x: Tensor, packed: Tensor, bias: Tensor, *, gelu: bool) -> Tensor:
    """[rows, inputs] -> [rows, outputs], GELU applied."""
    fused = "gelu" if gelu else "none"
    y = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, fused, [], "none")
    return cast(Tensor, y)


def _ways(dtype: torch.dtype, rows: int) -> tuple[measured.Way, measured.Way]:
    """The same product plain and on a laid-out weight."""
    inputs, outputs = WIDTHS
    x, weight = measured.numbers(rows, inputs, dtype), measured.numbers(outputs, inputs, dtype)
    bias = torch.full((outputs,), 0.5, dtype=dtype)
    packed = lay_out(weight)
    return lambda: F.linear(x, weight, bias), lambda: product(x, packed, bias, gelu=False)
