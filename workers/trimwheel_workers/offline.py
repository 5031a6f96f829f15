"""Evaluate a candidate over stored texts, away from serving.

The tuner calls this for knobs that change hidden states (``Signature``): one call runs the model
once over the texts and records every exit, after which thresholds are replayed for nothing. The
full model that a candidate is compared with is the *dense* signature's last column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import Signature
from trimwheel_workers.model.packing import pack


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``FullOutcome`` of N texts as arrays, in the order of the texts. E exits."""

    scores: NDArray[np.float32]  # [N, E]
    predictions: NDArray[np.int64]  # [N, E + 1], the last is full depth
    probability: NDArray[np.float32]  # [N]
    finite: NDArray[np.bool_]  # [N]


def evaluate(
    model: LoadedModel,
    texts: Sequence[str],
    signature: Signature,
    batch_size: int = 32,
    *,
    score: str = "learned",
) -> Evaluation:
    """Run ``texts`` to full depth under ``signature``; raises ValueError without texts.

    Texts are sorted by length first, which makes groups of equal length long; a row's result does
    not depend on its batch mates.
    """
    if not texts:
        raise ValueError("evaluate: needs one text or more, got none")
    return evaluate_tokens(model, model.tokenizer.encode(texts), signature, batch_size, score=score)


def evaluate_tokens(
    model: LoadedModel,
    tokens: Sequence[Sequence[int]],
    signature: Signature,
    batch_size: int = 32,
    *,
    score: str = "learned",
) -> Evaluation:
    """``evaluate`` for texts that are token ids already (as audit records store them)."""
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    columns: list[list[NDArray[np.generic]]] = [[], [], [], []]
    for start in range(0, len(order), batch_size):
        batch = pack([tokens[row] for row in order[start : start + batch_size]])
        outcome = model.encoder.full(batch, signature, score=score)
        for column, part in zip(columns, outcome, strict=True):
            column.append(part.cpu().numpy())
    back = np.argsort(np.asarray(order))
    return Evaluation(*(np.concatenate(column)[back] for column in columns))
