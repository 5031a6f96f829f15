"""Runs batches and audits on the model: the only serving module that touches tensors.

The engine's loop calls `answer` for a batch and drives `audit_steps` a layer at a time. Policies
come as numbers (`arms.ResidentPolicy`); requests, queues and sockets are the loop's.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from trimwheel_api.decide import decide
from trimwheel_workers.arms import ComputeKey, ModelShape, ResidentPolicy
from trimwheel_workers.engine.audits import AuditTask, Judged, Verdict
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import Signature
from trimwheel_workers.model.encoder import FullOutcome
from trimwheel_workers.model.packing import pack

NOT_FINITE = -1
"""Class of an audited policy whose run gave no number: it disagrees with every answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A batch's outcome as Python values, in the order of its rows."""

    predictions: list[int]
    probabilities: list[float]
    exits: list[int]
    layers: list[int]
    finite: list[bool]
    expert_tokens: list[int]


class Runner:
    """One loaded model."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        config = model.config
        self.shape = ModelShape(
            digest=model.digest,
            score_digest=model.score_digest,
            layers=config.layers,
            exits=config.exits,
            experts=config.experts,
            moe_layer=config.moe_layer,
            default_top_k=config.default_top_k,
            classes=config.classes,
            dtype=model.dtype,
            characters=model.tokenizer.max_characters,
            kernels=model.encoder.ways(),
        )

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts."""
        return self._model.tokenizer.encode(texts)

    def answer(
        self,
        tokens: Sequence[Sequence[int]],
        policies: Sequence[ResidentPolicy],
        compute: ComputeKey,
    ) -> Answers:
        """Answer N rows, each under its own thresholds; all share `compute`."""
        first = policies[0]
        thresholds: torch.Tensor | Sequence[float] = first.thresholds
        if any(policy is not first for policy in policies):
            thresholds = torch.tensor([p.thresholds for p in policies], dtype=torch.float64)
        caps = None
        if any(policy.depth_cap < len(self.shape.exits) for policy in policies):
            caps = torch.tensor([policy.depth_cap for policy in policies])
        outcome = self._model.encoder.adaptive(
            pack(tokens), thresholds, _signature(compute), caps, score=compute.score
        )
        return Answers(*(part.tolist() for part in outcome))

    def audit_steps(self, tasks: Sequence[AuditTask]) -> Generator[None, None, list[Judged]]:
        """Judge audited rows; yields between layers so that requests need not wait.

        One run for the reference (training's compute key, learned score, full depth) and one for
        each other compute key among the policies judged.
        """
        batch = pack([task.tokens for task in tasks])
        runs: dict[ComputeKey, FullOutcome] = {}
        for key in self._keys(tasks):
            runs[key] = yield from self._model.encoder.full_steps(
                batch, _signature(key), score=key.score
            )
        return [self._judge(task, row, runs) for row, task in enumerate(tasks)]

    def _keys(self, tasks: Sequence[AuditTask]) -> list[ComputeKey]:
        policies = (p for task in tasks for p in (task.served, task.stable, task.candidate) if p)
        # A dict keeps the order and drops doubles; the reference run comes first.
        return list(dict.fromkeys([self.shape.dense_key, *(p.compute for p in policies)]))

    def _judge(self, task: AuditTask, row: int, runs: dict[ComputeKey, FullOutcome]) -> Judged:
        def verdict(policy: ResidentPolicy | None) -> Verdict | None:
            if policy is None:
                return None
            run = runs[policy.compute]
            if not run.finite[row]:
                return Verdict(NOT_FINITE, len(self.shape.exits))
            exit_index = decide(run.scores[row].tolist(), policy.thresholds, policy.depth_cap)
            return Verdict(int(run.predictions[row, exit_index]), exit_index)

        reference = runs[self.shape.dense_key]
        scores = reference.scores[row].tolist()
        stable, replayed = verdict(task.stable), verdict(task.served)
        assert stable is not None and replayed is not None, "both policies are resident"
        return Judged(
            id=task.id,
            finite=bool(reference.finite[row]) and all(map(math.isfinite, scores)),
            scores=scores,
            predictions=reference.predictions[row].tolist(),
            stable=stable,
            candidate=verdict(task.candidate),
            replayed=replayed,
        )


def _signature(compute: ComputeKey) -> Signature:
    return Signature(compute.top_k, compute.router_blend)
