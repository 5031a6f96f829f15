"""Texts of different lengths in one batch without padding.

Rows are stored shortest first, so that rows of one length lie side by side and attention can view
them as a dense block. ``order`` leads back to the caller's order; everything that the encoder
returns is in the caller's order. Called by the engine, the offline evaluation and the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """``rows`` consecutive rows of ``length`` tokens each, beginning at token ``start``."""

    start: int
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """N rows of T tokens in all; ``order[i]`` is the caller's index of stored row i."""

    tokens: Tensor  # int32 [T]
    offsets: Tensor  # int32 [N + 1]
    positions: Tensor  # int32 [T], place of each token in its own row
    order: tuple[int, ...]
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        """Number of texts."""
        return len(self.order)


def pack(texts: Sequence[Sequence[int]]) -> PackedBatch:
    """Pack token ids; raises ValueError for an empty batch or an empty text."""
    if not texts or not all(texts):
        raise ValueError(f"a batch needs texts of one token or more, got {len(texts)} texts")
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    lengths = [len(texts[row]) for row in order]
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return PackedBatch(
        torch.tensor(list(chain.from_iterable(texts[row] for row in order)), dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32),
        torch.tensor(list(chain.from_iterable(map(range, lengths))), dtype=torch.int32),
        tuple(order),
        groups_of(lengths),
    )


def groups_of(lengths: Sequence[int]) -> tuple[Group, ...]:
    """Runs of equal lengths; ``lengths`` must be sorted."""
    groups: list[Group] = []
    start = 0
    first = 0
    for row in range(1, len(lengths) + 1):
        if row == len(lengths) or lengths[row] != lengths[first]:
            groups.append(Group(start, row - first, lengths[first]))
            start += (row - first) * lengths[first]
            first = row
    return tuple(groups)
