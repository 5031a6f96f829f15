"""What depends on the processor: matrix products on prepacked weights, and packed attention.

``Linear`` is an ordinary ``nn.Linear`` until ``prepack`` is called; then it calls oneDNN with a
weight that was laid out once, about twice as fast in fp32 on one CPU thread as the default, and
fuses the GELU. The op is private to torch, so this file is its only user, and falls back to
``F.linear`` where it is missing. Attention runs one SDPA call for each group of rows of equal
length: no padding, no mask.

Shapes: T tokens, N rows, D model, H heads, K = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimwheel_workers.model.packing import Group

PREPACK_ROWS = 256
"""Row count oneDNN is told to lay the weight out for; any count may be used later."""


FINE_ROWS, FINE_STEP, STEP = 32, 8, 32
"""Row counts are rounded up: to 8 up to 32 rows, to 32 beyond. oneDNN compiles a kernel for every
row count it meets and keeps it; packed batches have a new one nearly every time, which cost half
of a batch's time and hundreds of megabytes."""


def rounded(rows: int) -> int:
    """The row count that a product of `rows` rows is run with."""
    step = FINE_STEP if rows <= FINE_ROWS else STEP
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
        self._packed: Tensor | None = None

    def prepack(self) -> None:
        """Lay the weight out for oneDNN; later changes of ``weight`` are not seen. No-op without
        it."""
        if has_onednn() and self.weight.device.type == "cpu":
            self._packed = torch.ops.mkldnn._reorder_linear_weight(
                self.weight.detach(), PREPACK_ROWS
            )

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], GELU applied where the layer was made with it."""
        if self._packed is None:
            y = F.linear(x, self.weight, self.bias)
            return F.gelu(y) if self.gelu else y
        fused = "gelu" if self.gelu else "none"
        rows = x.shape[0]
        if x.dim() == 2 and rounded(rows) != rows:
            x = F.pad(x, (0, 0, 0, rounded(rows) - rows))
        y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, fused, [], "none")
        return y[:rows]  # type: ignore[no-any-return]


def prepack(module: nn.Module) -> None:
    """Prepack every ``Linear`` below ``module``."""
    for child in module.modules():
        if isinstance(child, Linear):
            child.prepack()


def packed_attention(qkv: Tensor, groups: Sequence[Group], heads: int) -> Tensor:
    """Full attention within each row. ``qkv`` [T, 3 D] -> [T, D].

    Under autocast the product runs in fp32: the bf16 backward of SDPA is slow on CPU.
    """
    if torch.is_grad_enabled() and qkv.requires_grad:
        with torch.autocast(qkv.device.type, enabled=False):
            return _grouped_attention(qkv.float(), groups, heads)
    return _grouped_attention(qkv, groups, heads)


def _grouped_attention(qkv: Tensor, groups: Sequence[Group], heads: int) -> Tensor:
    width = qkv.shape[1] // 3
    parts = []
    # One split, not a slice a group: the backward of a slice fills a whole gradient with zeros.
    blocks = torch.split(qkv, [group.rows * group.length for group in groups])
    for group, block in zip(groups, blocks, strict=True):
        dense = block.view(group.rows, group.length, 3, heads, -1)
        q, k, v = dense.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, H, L, K]
        mixed = F.scaled_dot_product_attention(q, k, v)
        parts.append(mixed.transpose(1, 2).reshape(-1, width))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def first_token_attention(
    query: Tensor, x: Tensor, groups: Sequence[Group], scale: float
) -> Tensor:
    """Attention of each row's first token over its row, on the layer's *input*.

    ``query`` [N, H, D] is the query already multiplied by the key projection of its head, so
    neither keys nor values of the other tokens are ever computed. ``x`` [T, D] -> [N, H, D], the
    weighted mean of the inputs for each head; the caller applies the value projection.
    """
    heads, width = query.shape[1], query.shape[2]
    parts = []
    blocks = torch.split(x, [group.rows * group.length for group in groups])
    queries = torch.split(query, [group.rows for group in groups])
    for group, block, q in zip(groups, blocks, queries, strict=True):
        dense = block.view(group.rows, group.length, width)
        weights = torch.softmax(torch.bmm(q, dense.transpose(1, 2)) * scale, dim=-1)
        parts.append(torch.bmm(weights, dense))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mixed.view(-1, heads, width)
