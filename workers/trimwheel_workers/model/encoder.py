"""The adaptive encoder: one model, three ways to run it.

* ``adaptive``    serving: each row answers at the first exit that is sure enough;
* ``full`` and ``full_steps``  audits and offline evaluation: every exit's score and prediction;
* ``forward``     training: logits at every exit, with gradients.

All three share weights, layers and heads. The serving engine calls the first two,
``trimwheel_workers. offline`` the second, the training recipe the third. Nothing here knows
policies, arms or requests.

Shapes: N rows, T tokens, D model, C classes, E exits, X experts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trimwheel_workers.model import scores
from trimwheel_workers.model.blocks import NORM_EPSILON, Experts, Layer
from trimwheel_workers.model.config import EncoderConfig, Signature
from trimwheel_workers.model.exits import Heads, Rows, starts_of
from trimwheel_workers.model.kernels import Modules, prepack
from trimwheel_workers.model.packing import PackedBatch, pack

__all__ = ["Encoder", "FullOutcome", "Outcome", "PackedBatch", "Signature", "pack"]

PEEK_TOKENS = 96
"""Tokens under way from which deciding by a peek is cheaper than running the layer (measured)."""


class Outcome(NamedTuple):
    """Answers of an adaptive batch, in the caller's order."""

    prediction: Tensor  # int64 [N]
    probability: Tensor  # float32 [N], of the prediction at the exit that answered
    exit: Tensor  # int64 [N], 0..E; E is full depth
    layers: Tensor  # int64 [N], depth of the answer
    finite: Tensor  # bool [N], whether the answer is made of numbers
    expert_tokens: Tensor  # int64 [X], visits of tokens to experts


class FullOutcome(NamedTuple):
    """Every exit's view of a batch, in the caller's order."""

    scores: Tensor  # float32 [N, E]
    predictions: Tensor  # int64 [N, E + 1]; the last is full depth
    probability: Tensor  # float32 [N], of the full-depth prediction
    finite: Tensor  # bool [N]


class Encoder(nn.Module):
    """Post-norm transformer encoder with exit heads and one mixture-of-experts layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.dim)
        self.positions = nn.Embedding(config.max_tokens, config.dim)
        self.embedding_norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)
        self.layers: Modules[Layer] = Modules(
            Layer(config, mixture=number == config.moe_layer)
            for number in range(1, config.layers + 1)
        )
        self.heads = Heads(config)
        self.learned = scores.LearnedScore(len(config.exits), len(config.classes))
        self._exit_after = {layer: index for index, layer in enumerate(config.exits)}
        self._score_tables: list[tuple[list[float], list[float]]] | None = None

    @property
    def mixture(self) -> Experts:
        """The one mixture-of-experts block."""
        mixture = self.layers[self.config.moe_layer - 1].mixture
        assert mixture is not None, "the config names the mixture's layer"
        return mixture

    @property
    def below(self) -> list[Layer]:
        """All layers but the last, which only ever runs for first tokens."""
        return list(self.layers)[:-1]

    def serving(self, dtype: torch.dtype = torch.float32) -> Encoder:
        """Freeze for inference: layers in ``dtype`` on prepacked weights; heads and routers
        fp32."""
        self.eval().requires_grad_(False)
        for part in (self.tokens, self.positions, self.embedding_norm, self.layers):
            part.to(dtype)
        self.mixture.routers.float()
        prepack(self.layers)
        self._score_tables = self.learned.tables()
        return self

    # ------------------------------------------------------------------ serving

    @torch.inference_mode()
    def adaptive(
        self,
        batch: PackedBatch,
        thresholds: Tensor | Sequence[float],
        signature: Signature,
        depth_cap: Tensor | None = None,
        *,
        score: str = "learned",
    ) -> Outcome:
        """Answer each row at its first exit whose score reaches the row's threshold.

        ``thresholds`` [N, E] in the caller's order, or a list of E floats for all rows.
        ``depth_cap`` int64 [N] is the index of the latest exit to answer at (E: no cap). Scores lie
        in [0, 1]; a threshold above 1 means never.
        """
        if batch.rows == 1 and not isinstance(thresholds, Tensor):
            cap = len(self.config.exits) if depth_cap is None else int(depth_cap[0])
            return self._adaptive_one(batch, thresholds, signature, cap, score)
        rows = self._rows(batch, thresholds, depth_cap)
        used = (rows.thresholds <= 1).any(0)
        if rows.caps is not None:
            used |= rows.caps.min() <= torch.arange(len(used), device=used.device)
        answers = _Answers(self.config, rows.x.device)
        self._descend(rows, used.tolist(), signature, score, answers)
        return answers.outcome(batch.rows)

    def _descend(
        self, rows: Rows, used: list[bool], signature: Signature, score: str, answers: _Answers
    ) -> None:
        """Run layer after layer; rows leave at exits, the rest at the end."""
        for number, layer in enumerate(self.below, start=1):
            index = self._exit_after.get(number)
            peek = index is not None and used[index] and len(rows.x) >= PEEK_TOKENS
            if not peek:
                rows.x, chosen = layer(rows.x, rows.groups, signature)
                answers.count(chosen)
            if index is not None and any(used[index:]):
                first, chosen = rows.first, None
                if peek:
                    first, chosen = layer.peek(rows.x, first, rows.groups, signature)
                judged = scores.judge(
                    self.heads.at_exit(index, first), index, rows.earlier, self.learned, score
                )
                rows.passed(judged)
                if used[index]:
                    leave = rows.leaving(index, judged)
                    left = int(leave.sum())
                    if left:
                        answers.add(index, rows.callers[leave], judged, leave)
                        answers.count(None if chosen is None else chosen[leave])
                        if left == len(leave):
                            return
                        rows.keep(~leave)
            if peek:
                rows.x, chosen = layer(rows.x, rows.groups, signature)
                answers.count(chosen)
        first, chosen = self.layers[-1].peek(rows.x, rows.first, rows.groups, signature)
        answers.count(chosen)
        answers.add_end(rows.callers, self.heads.at_end(first))

    def _adaptive_one(
        self,
        batch: PackedBatch,
        thresholds: Sequence[float],
        signature: Signature,
        cap: int,
        score: str,
    ) -> Outcome:
        """``adaptive`` for one row: decisions in Python floats."""
        x = self._embed(batch)
        tables = self._score_tables or self.learned.tables()
        exits = len(self.config.exits)
        earlier: list[int] = []
        visits = torch.zeros(self.config.experts, dtype=torch.int64)
        for number, layer in enumerate(self.below, start=1):
            x, chosen = layer(x, batch.groups, signature)
            if chosen is not None:
                visits += torch.bincount(chosen.flatten().cpu(), minlength=self.config.experts)
            index = self._exit_after.get(number)
            if index is None:
                continue
            logits = self.heads.at_exit(index, x[:1])[0].tolist()
            value, prediction, probability = scores.judge_one(logits, earlier, tables[index], score)
            if value >= thresholds[index] or index >= cap:
                return _single(prediction, probability, index, number, visits)
            earlier.append(prediction)
        x, chosen = self.layers[-1].peek(x, x[:1], batch.groups, signature)
        if chosen is not None:
            visits += torch.bincount(chosen.flatten().cpu(), minlength=self.config.experts)
        logits = self.heads.at_end(x)[0].tolist()
        _, prediction, probability = scores.judge_one(logits, (), tables[0], "maxProb")
        return _single(prediction, probability, exits, self.config.layers, visits)

    # ------------------------------------------------------------------ full depth

    def full(
        self, batch: PackedBatch, signature: Signature, *, score: str = "learned"
    ) -> FullOutcome:
        """Run every row to the end and record every exit."""
        steps = self.full_steps(batch, signature, score=score)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def full_steps(
        self, batch: PackedBatch, signature: Signature, *, score: str = "learned"
    ) -> Generator[None, None, FullOutcome]:
        """``full`` that yields between layers, so that an audit can give way to requests."""
        with torch.inference_mode():
            rows = self._rows(batch, (0.0,) * len(self.config.exits), None)
        columns: list[Tensor] = []
        for number, layer in enumerate(self.below, start=1):
            with torch.inference_mode():
                rows.x, _ = layer(rows.x, rows.groups, signature)
                index = self._exit_after.get(number)
                if index is not None:
                    logits = self.heads.at_exit(index, rows.first)
                    judged = scores.judge(logits, index, rows.earlier, self.learned, score)
                    rows.passed(judged)
                    columns.append(judged.score)
            yield
        with torch.inference_mode():
            first, _ = self.layers[-1].peek(rows.x, rows.first, rows.groups, signature)
            p, prediction = torch.softmax(self.heads.at_end(first), dim=-1).max(dim=-1)
            predictions = torch.cat((rows.earlier, prediction.unsqueeze(1)), dim=1)
            stored = FullOutcome(torch.stack(columns, 1), predictions, p, torch.isfinite(p))
            back = rows.callers.argsort()
            return FullOutcome(*(part[back] for part in stored))

    # ------------------------------------------------------------------ training

    def forward(self, batch: PackedBatch, signature: Signature) -> list[Tensor]:
        """E + 1 logits [N, C]: every exit's and full depth's, in stored order, with gradients."""
        x = self._embed(batch)
        starts = batch.offsets[:-1].long()
        logits: list[Tensor] = []
        for number, layer in enumerate(self.below, start=1):
            x, _ = layer(x, batch.groups, signature)
            if (index := self._exit_after.get(number)) is not None:
                logits.append(self.heads.at_exit(index, x.index_select(0, starts)))
        first, _ = self.layers[-1].peek(x, x.index_select(0, starts), batch.groups, signature)
        logits.append(self.heads.at_end(first))
        return logits

    # ------------------------------------------------------------------ shared

    def _embed(self, batch: PackedBatch) -> Tensor:
        """Token and position embeddings, normed: [T, D]."""
        x = self.tokens(batch.tokens) + self.positions(batch.positions)
        return self.embedding_norm(x)  # type: ignore[no-any-return]

    def _rows(
        self, batch: PackedBatch, thresholds: Tensor | Sequence[float], caps: Tensor | None
    ) -> Rows:
        x = self._embed(batch)
        callers = torch.tensor(batch.order, device=x.device)
        limits = torch.as_tensor(thresholds, dtype=torch.float64, device=x.device)
        limits = limits[callers] if limits.dim() == 2 else limits.expand(batch.rows, -1)
        lengths = [group.length for group in batch.groups for _ in range(group.rows)]
        return Rows(
            x=x,
            lengths=lengths,
            callers=callers,
            thresholds=limits,
            caps=None if caps is None else caps.to(x.device)[callers],
            earlier=torch.empty(batch.rows, 0, dtype=torch.int64, device=x.device),
            groups=batch.groups,
            starts=starts_of(lengths, x.device),
        )


class _Answers:
    """Answers as they come, exit by exit, put into the caller's order once at the end."""

    def __init__(self, config: EncoderConfig, device: torch.device) -> None:
        self.config = config
        self.parts: list[tuple[Tensor, Tensor, Tensor, int]] = []
        self.visits = torch.zeros(config.experts, dtype=torch.int64, device=device)

    def add(self, index: int, callers: Tensor, judged: scores.Judged, leave: Tensor) -> None:
        """Rows that answer at an exit."""
        self.parts.append((callers, judged.prediction[leave], judged.probability[leave], index))

    def add_end(self, callers: Tensor, logits: Tensor) -> None:
        """Rows that answer at full depth."""
        probability, prediction = torch.softmax(logits, dim=-1).max(dim=-1)
        self.parts.append((callers, prediction, probability, len(self.config.exits)))

    def count(self, chosen: Tensor | None) -> None:
        """Add visits to experts."""
        if chosen is not None:
            self.visits += torch.bincount(chosen.flatten(), minlength=self.config.experts)

    def outcome(self, rows: int) -> Outcome:
        """Everything in the caller's order."""
        callers = torch.cat([part[0] for part in self.parts])
        assert len(callers) == rows, "every row answers exactly once"
        back = callers.argsort()
        depths = [*self.config.exits, self.config.layers]
        sizes = torch.tensor([len(part[0]) for part in self.parts])
        exits = torch.tensor([part[3] for part in self.parts]).repeat_interleave(sizes)
        layers = torch.tensor([depths[part[3]] for part in self.parts]).repeat_interleave(sizes)
        probability = torch.cat([part[2] for part in self.parts])[back]
        return Outcome(
            torch.cat([part[1] for part in self.parts])[back],
            probability,
            exits.to(back.device)[back],
            layers.to(back.device)[back],
            torch.isfinite(probability),
            self.visits,
        )


def _single(
    prediction: int, probability: float, index: int, layers: int, visits: Tensor
) -> Outcome:
    p = torch.tensor([probability], dtype=torch.float32)
    return Outcome(
        torch.tensor([prediction]),
        p,
        torch.tensor([index]),
        torch.tensor([layers]),
        torch.isfinite(p),
        visits,
    )
