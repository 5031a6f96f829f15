"""What depends on the processor: matrix products, on prepacked weights where they pay, and packed
attention.

``Linear`` is an ordinary ``nn.Linear`` until ``serving`` is called; then it multiplies by a weight
that was laid out once, GELU fused, if this processor can and is faster for it (``prepacked``
tries). Attention runs one SDPA call for each block of a ``Layout``.

Shapes: T tokens, N rows, D model, H heads, K = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimwheel_workers.model import prepacked
from trimwheel_workers.model.packing import Block, Layout
from trimwheel_workers.model.prepacked import rounded

FEWEST_ROWS = 4
"""With fewer, the BLAS library rounds by where in memory its arguments lie: the same text would get
scores that differ in the last digits from one process to the next."""


M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    """``nn.ModuleList`` whose members have a type."""

    def __iter__(self) -> Iterator[M]:
        return cast(Iterator[M], super().__iter__())

    def __getitem__(self, index: int) -> M:  # type: ignore[override]
        return cast(M, super().__getitem__(index))


ALIGNMENT = 64
"""Bytes that a fresh tensor on a CPU is aligned to."""


class Linear(nn.Linear):
    """``nn.Linear`` with an optional fused GELU and an optional prepacked weight for inference."""

    def __init__(self, inputs: int, outputs: int, *, gelu: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.gelu = gelu
        self._size = inputs * outputs
        self._steady = False
        self._packed: Tensor | None = None
        self._small = 0

    @classmethod
    def frozen(cls, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Linear:
        """A layer in its serving form, made of tensors that exist already."""
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            layer = cls(weight.shape[1], weight.shape[0], gelu=gelu)
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        layer.serving()
        return layer

    def serving(self) -> None:
        """For inference only: on a laid-out weight where that is the faster way here."""
        self._steady = self.weight.device.type == "cpu"
        if self._steady and prepacked.pay(self.weight.dtype):
            self.prepack()
            self._small = prepacked.small_product(self.weight.dtype)

    @property
    def is_prepacked(self) -> bool:
        """Whether products are on a laid-out weight."""
        return self._packed is not None

    def prepack(self) -> None:
        """Lay the weight out; later changes of ``weight`` are not seen. No-op where it cannot
        be."""
        if self.weight.device.type == "cpu" and prepacked.can(self.weight.dtype):
            self._packed = prepacked.lay_out(self.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], GELU applied where the layer was made with it."""
        rows = x.shape[0]
        if self._packed is not None and rows * self._size > self._small:
            whole = filled(x) if x.dim() == 2 else x
            y = prepacked.product(whole, self._packed, self.bias, gelu=self.gelu)
            return y if len(y) == rows else y[:rows]
        if self._steady and rows < FEWEST_ROWS and x.dtype == torch.float32:
            return self._plain(filled(x))[:rows]
        if self._steady and x.data_ptr() % ALIGNMENT:
            x = x.clone()  # some products round by how their rows lie in memory
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


def serving(module: nn.Module) -> None:
    """Bring every ``Linear`` below ``module`` into its serving form."""
    for child in module.modules():
        if isinstance(child, Linear):
            child.serving()


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
