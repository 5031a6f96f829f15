"""Texts of different lengths in one batch without padding.

Rows are stored shortest first, one after the other. ``order`` leads back to the caller's order;
everything that the encoder returns is in the caller's order. Called by the engine, the offline
evaluation and the training.

Only attention has to know where a row begins and ends: a ``Layout`` tells it. Two layouts give the
same answers: ``exact`` has a block for each length, ``blocked`` one for each multiple of 16, with
the padding masked, so that a batch of many lengths costs few calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import torch
from torch import Tensor

BLOCK_STEP = 16
"""Lengths that share a block; a step of 8 or 32 costs more (measured on two corpora)."""
FEW_LENGTHS = 3
"""Lengths up to which a block for each costs less than finding and masking the padding."""


@dataclass(frozen=True, slots=True)
class Block:
    """``rows`` rows side by side, of ``length`` slots each.

    ``bias`` float32 [rows, 1, 1, length] is 0 for a token and -inf for padding; None: no padding.
    """

    rows: int
    length: int
    bias: Tensor | None = None

    @property
    def slots(self) -> int:
        """Slots of all rows together."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Layout:
    """How attention sees T packed tokens: as P slots in dense blocks.

    ``slots`` int64 [P] names each slot's token (padding repeats the row's last one, so that a row
    only ever meets numbers of its own), ``back`` int64 [T] each token's slot. Both are None where
    the tokens are dense as they lie.
    """

    tokens: int  # T, without filler
    blocks: tuple[Block, ...]
    slots: Tensor | None = None
    back: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """N rows of T tokens in all; ``order[i]`` is the caller's index of stored row i."""

    tokens: Tensor  # int32 [T]
    offsets: Tensor  # int32 [N + 1]
    positions: Tensor  # int32 [T], place of each token in its own row
    order: tuple[int, ...]
    lengths: tuple[int, ...]  # of the stored rows, ascending

    @property
    def rows(self) -> int:
        """Number of texts."""
        return len(self.order)


def pack(texts: Sequence[Sequence[int]]) -> PackedBatch:
    """Pack token ids; raises ValueError for an empty batch or an empty text."""
    if not texts or not all(texts):
        raise ValueError(f"a batch needs texts of one token or more, got {len(texts)} texts")
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    lengths = tuple(len(texts[row]) for row in order)
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return PackedBatch(
        torch.tensor(list(chain.from_iterable(texts[row] for row in order)), dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32),
        torch.tensor(list(chain.from_iterable(map(range, lengths))), dtype=torch.int32),
        tuple(order),
        lengths,
    )


def exact(lengths: Sequence[int]) -> Layout:
    """A block for each run of equal lengths; ``lengths`` must be sorted."""
    blocks = tuple(Block(len(list(run)), length) for length, run in groupby(lengths))
    return Layout(sum(lengths), blocks)


def blocked(lengths: Sequence[int], tokens: int, device: torch.device) -> Layout:
    """A block for each multiple of ``BLOCK_STEP``; ``lengths`` must be sorted.

    ``tokens`` is how many tokens ``back`` covers, filler behind the last row included. Where there
    are few lengths the exact layout is the cheaper one.
    """
    if len(set(lengths)) <= FEW_LENGTHS:
        return exact(lengths)
    real = np.asarray(lengths)
    padded = -(-real // BLOCK_STEP) * BLOCK_STEP
    row = np.repeat(np.arange(len(real)), padded)
    place = np.arange(len(row)) - np.repeat(np.cumsum(padded) - padded, padded)
    starts = np.cumsum(real) - real
    slots = starts[row] + np.minimum(place, real[row] - 1)
    is_token = place < real[row]
    back = np.zeros(tokens, dtype=np.int64)
    back[: starts[-1] + real[-1]] = np.flatnonzero(is_token)
    bias = torch.from_numpy(np.where(is_token, np.float32(0), np.float32(-math.inf))).to(device)
    blocks = exact(padded.tolist()).blocks
    biases = torch.split(bias, [block.slots for block in blocks])
    return Layout(
        sum(lengths),
        tuple(
            Block(block.rows, block.length, part.view(block.rows, 1, 1, block.length))
            for block, part in zip(blocks, biases, strict=True)
        ),
        torch.from_numpy(slots).to(device),
        torch.from_numpy(back).to(device),
    )
