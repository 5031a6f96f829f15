"""What depends on the processor: matrix products on prepacked weights, and packed attention.

``Linear`` is an ordinary ``nn.Linear`` until ``prepack`` is called; then it calls oneDNN with a
weight that was laid out once, about twice as fast in fp32 on one CPU thread as the default, and
fuses the GELU. The op is private to torch, so this file is its only user, and falls back to
``F.linear`` where it is missing. Attention runs one SDPA call for each block of a ``Layout``.

Shapes: T tokens, N rows, D model, H heads, K = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimwheel_workers.model.packing import Block, Layout

PREPACK_ROWS = 256
"""Row count oneDNN is told to lay the weight out for; any count may be used later."""


ROW_STEPS = ((64, 4), (256, 16), (1024, 32))
"""Row counts are rounded up: to 4 up to 64 rows, and so on; to 64 beyond the last. oneDNN compiles
a kernel for every row count it meets and keeps it; packed batches have a new one nearly every time,
which cost half of a batch's time and hundreds of megabytes."""
LAST_STEP = 64
SMALL_PRODUCT = 400_000
"""Multiplications up to which `F.linear` in fp32 is faster: a oneDNN call begins at ten
microseconds."""
FEWEST_ROWS = 4
"""With fewer, the BLAS library rounds by where in memory its arguments lie: the same text would get
scores that differ in the last digits from one process to the next."""


@cache
def rounded(rows: int) -> int:
    """The row count that a product of `rows` rows is run with."""
    step = next((step for limit, step in ROW_STEPS if rows <= limit), LAST_STEP)
    return -(-rows // step) * step


def has_onednn() -> bool:
    """Whether this torch build has the prepacked linear op."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    """``nn.ModuleList`` whose members have a type."""

    def __iter__(self) -> Iterator[M]:
        return cast(Iterator[M], super().__iter__())

    def __getitem__(self, index: int) -> M:  # type: ignore[override]
        return cast(M, super().__getitem__(index))


class Linear(nn.Linear):
    """``nn.Linear`` with an optional fused GELU and an optional prepacked weight for inference."""

    def __init__(self, inputs: int, outputs: int, *, gelu: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.gelu = gelu
        self._size = inputs * outputs
        self._packed: Tensor | None = None

    @classmethod
    def frozen(cls, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Linear:
        """A prepacked layer made of tensors that exist already."""
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            layer = cls(weight.shape[1], weight.shape[0], gelu=gelu)
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        layer.prepack()
        return layer

    def prepack(self) -> None:
        """Lay the weight out for oneDNN; later changes of ``weight`` are not seen. No-op without
        it."""
        if has_onednn() and self.weight.device.type == "cpu":
            self._packed = torch.ops.mkldnn._reorder_linear_weight(
                self.weight.detach(), PREPACK_ROWS
            )

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], GELU applied where the layer was made with it."""
        rows = x.shape[0]
        small = rows * self._size <= SMALL_PRODUCT and x.dtype == torch.float32
        if self._packed is None:
            return self._plain(x)
        if small:
            return self._plain(x) if rows >= FEWEST_ROWS else self._plain(filled(x))[:rows]
        if x.dim() == 2 and rounded(rows) != rows:
            return self._prepacked(filled(x))[:rows]
        return self._prepacked(x)

    def _plain(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y

    def _prepacked(self, x: Tensor) -> Tensor:
        fused = "gelu" if self.gelu else "none"
        y = torch.ops.mkldnn._linear_pointwise.default(
            x, self._packed, self.bias, fused, [], "none"
        )
        return cast(Tensor, y)


def prepack(module: nn.Module) -> None:
    """Prepack every ``Linear`` below ``module``."""
    for child in module.modules():
        if isinstance(child, Linear):
            child.prepack()


def filled(x: Tensor) -> Tensor:
    """``x`` [T, D] with rows of zeros behind it, up to a row count that kernels are kept for."""
    missing = rounded(len(x)) - len(x)
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def packed_attention(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Full attention within each row. ``qkv`` [T, 3 D] -> [T, D].

    Filler behind the last row is kept, with values of no meaning. On the CPU the product runs in
    fp32 whatever the dtype: bf16 SDPA is slower for short rows, and its backward by far.
    """
    if torch.is_grad_enabled() and qkv.requires_grad:
        with torch.autocast(qkv.device.type, enabled=False):
            return _attention(qkv.float(), layout, heads)
    exact = qkv.float() if qkv.device.type == "cpu" else qkv
    return _attention(exact, layout, heads).to(qkv.dtype)


def _attention(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    width = qkv.shape[1] // 3
    parts = []
    for block, part in _blocks(qkv, layout):
        dense = part.view(block.rows, block.length, 3, heads, -1)
        q, k, v = dense.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, H, L, K]
        mixed = F.scaled_dot_product_attention(q, k, v, block.bias)
        parts.append(mixed.transpose(1, 2).reshape(-1, width))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    if layout.back is not None:
        return mixed.index_select(0, layout.back)
    missing = len(qkv) - len(mixed)
    return F.pad(mixed, (0, 0, 0, missing)) if missing else mixed


def first_token_attention(query: Tensor, x: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of each row's first token over its row, on the layer's *input*.

    ``query`` [N, H, D] is the query already multiplied by the key projection of its head, so
    neither keys nor values of the other tokens are ever computed. ``x`` [T, D] -> [N, H, D], the
    weighted mean of the inputs for each head; the caller applies the value projection.
    """
    width = x.shape[1]
    parts = []
    queries = torch.split(query, [block.rows for block in layout.blocks])
    for (block, part), q in zip(_blocks(x, layout), queries, strict=True):
        dense = part.view(block.rows, block.length, width)
        weights = torch.bmm(q, dense.transpose(1, 2)) * scale
        if block.bias is not None:
            weights = weights + block.bias.squeeze(1)
        weights = torch.softmax(weights, dim=-1)
        parts.append(torch.bmm(weights, dense))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blocks(x: Tensor, layout: Layout) -> Iterator[tuple[Block, Tensor]]:
    """Each block with its slots [rows * length, D] of packed tokens [T, D]."""
    if layout.slots is not None:
        x = x.index_select(0, layout.slots)
    elif len(x) > layout.tokens:
        x = x[: layout.tokens]  # without the filler
    if len(layout.blocks) == 1:
        return iter(((layout.blocks[0], x),))
    # One split, not a slice a block: the backward of a slice fills a whole gradient with zeros.
    parts = torch.split(x, [block.slots for block in layout.blocks])
    return zip(layout.blocks, parts, strict=True)
