"""The adaptive encoder: one model, three ways to run it.

* ``adaptive``    serving: each row answers at the first exit that is sure enough;
* ``full`` and ``full_steps``  audits and offline evaluation: every exit's score and prediction;
* ``forward``     training: logits at every exit, with gradients.

All three share weights, layers and heads. The serving engine calls the first two,
``trimwheel_workers.offline`` the second, the training recipe the third. Nothing here knows
policies, arms or requests.

Shapes: N rows, T tokens, D model, C classes, E exits, X experts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimwheel_workers.model import measured
from trimwheel_workers.model.blocks import NORM_EPSILON, Experts, Layer
from trimwheel_workers.model.config import EncoderConfig, Signature
from trimwheel_workers.model.exits import Heads, Rows
from trimwheel_workers.model.kernels import Modules, serving
from trimwheel_workers.model.packing import PackedBatch, exact, pack
from trimwheel_workers.model.scores import Judged, LearnedScore, Regression, judge

__all__ = ["Encoder", "FullOutcome", "Outcome", "PackedBatch", "Signature", "pack"]

PEEK_TOKENS = (16, 32, 48, 64, 96, 128, 192, 256)
"""Token counts that are tried for the one from which a peek pays."""
PEEK_WORTH = 2.0
"""A peek pays where running the layer takes this many times as long: about half of the rows go on
after an exit, and pay for both."""
PEEK_ROW = 16
"""Tokens of each row while that is tried."""
NEVER_PEEK = 1 << 62
NOTHING = np.empty((0, 0), dtype=np.int64)
"""No earlier predictions."""


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
        self.learned = LearnedScore(len(config.exits), len(config.classes))
        self._exit_after = {layer: index for index, layer in enumerate(config.exits)}
        self._host_scores: list[Regression] | None = None
        self.peek_tokens = PEEK_TOKENS[0]
        """Tokens under way from which an exit is decided by a peek; measured when it begins to
        serve."""

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
        """Freeze for inference: layers in ``dtype``, in the ways that are the fastest on this
        processor; heads and routers fp32."""
        self.eval().requires_grad_(False)
        for part in (self.tokens, self.positions, self.embedding_norm, self.layers):
            part.to(dtype)
        self.mixture.routers.float()
        serving(self.layers)
        for layer in self.layers:
            layer.serving()
        sizes = self.config.dim, self.config.heads, self.config.feed_forward, str(dtype)
        self.peek_tokens = measured.once(("peek", *sizes), self._least_tokens_for_a_peek)
        self._host_scores = self.learned.regressions()
        return self

    def ways(self) -> str:
        """The measured choices of the serving form, for the log."""
        packed = "prepacked" if self.layers[0].attention.qkv.is_prepacked else "plain"
        peek = self.peek_tokens if self.peek_tokens < NEVER_PEEK else "no"
        limits = sorted(self.mixture.side_by_side_tokens.items())
        beside = ", ".join(f"{tokens} for top {top_k}" for top_k, tokens in limits)
        return f"{packed} products, peeks from {peek} tokens, experts side by side up to {beside}"

    @torch.inference_mode()
    def _least_tokens_for_a_peek(self) -> int:
        layer = next((one for one in self.layers if one.mixture is None), self.layers[0])
        signature, dtype = self.config.dense_signature, self.tokens.weight.dtype

        def ways(tokens: int) -> tuple[measured.Way, measured.Way]:
            x = measured.numbers(tokens, self.config.dim, dtype)
            layout, first = exact([PEEK_ROW] * (tokens // PEEK_ROW)), x[::PEEK_ROW].contiguous()
            return (
                partial(layer, x, layout, signature),
                partial(layer.peek, x, first, layout, signature),
            )

        return (*PEEK_TOKENS, NEVER_PEEK)[measured.crossover(PEEK_TOKENS, ways, PEEK_WORTH)]

    @property
    def _scores(self) -> list[Regression]:
        """The learned scores, read once when the model is frozen and anew while it may change."""
        return self._host_scores or self.learned.regressions()

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
        rows = self._rows(batch, thresholds, depth_cap)
        used: NDArray[np.bool_] = np.any(rows.thresholds <= 1, axis=0)
        if rows.caps is not None:
            used |= rows.caps.min() <= np.arange(len(used))
        answers = _Answers(self.config, batch.rows)
        self._descend(rows, used.tolist(), signature, score, answers)
        return answers.outcome()

    def _descend(
        self, rows: Rows, used: list[bool], signature: Signature, score: str, answers: _Answers
    ) -> None:
        """Run layer after layer; rows leave at exits, the rest at the end."""
        for number, layer in enumerate(self.below, start=1):
            index = self._exit_after.get(number)
            peek = index is not None and used[index] and rows.tokens >= self.peek_tokens
            if not peek:
                self._run(layer, rows, signature, answers)
            if index is not None and any(used[index:]):
                first, chosen = rows.first, None
                if peek:
                    first, chosen = layer.peek(rows.x, first, rows.layout, signature)
                judged = self._judge(index, first, rows, score)
                rows.passed(judged)
                if used[index]:
                    leave = rows.leaving(index, judged)
                    answers.add(index, rows.callers, judged, leave)
                    if chosen is not None:
                        answers.count(chosen[torch.from_numpy(leave).to(chosen.device)])
                    if leave.all():
                        return
                    if leave.any():
                        rows.keep(~leave)
            if peek:
                self._run(layer, rows, signature, answers)
        first, chosen = self.layers[-1].peek(rows.x, rows.first, rows.layout, signature)
        answers.count(chosen)
        everyone = np.ones(len(rows.callers), dtype=np.bool_)
        answers.add(len(used), rows.callers, self._judge_end(first), everyone)

    def _run(self, layer: Layer, rows: Rows, signature: Signature, answers: _Answers) -> None:
        """One layer for all tokens under way."""
        rows.x, chosen = layer(rows.x, rows.layout, signature)
        answers.count(None if chosen is None else chosen[: rows.tokens])

    def _judge(self, index: int, first: Tensor, rows: Rows, score: str) -> Judged:
        """How sure an exit is of rows whose first tokens are ``first`` [N, D]."""
        logits = self.heads.at_exit(index, first).cpu().numpy()
        return judge(logits, rows.earlier, self._scores[index], score)

    def _judge_end(self, first: Tensor) -> Judged:
        """Full depth's answers."""
        logits = self.heads.at_end(first).cpu().numpy()
        return judge(logits, NOTHING, self._scores[0], "maxProb")

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
        columns: list[NDArray[np.float32]] = []
        for number, layer in enumerate(self.below, start=1):
            with torch.inference_mode():
                rows.x, _ = layer(rows.x, rows.layout, signature)
                index = self._exit_after.get(number)
                if index is not None:
                    judged = self._judge(index, rows.first, rows, score)
                    rows.passed(judged)
                    columns.append(judged.score)
            yield
        with torch.inference_mode():
            first, _ = self.layers[-1].peek(rows.x, rows.first, rows.layout, signature)
            end = self._judge_end(first)
            predictions = np.concatenate((rows.earlier, end.prediction[:, None]), axis=1)
            back = rows.callers.argsort()
            return FullOutcome(
                torch.from_numpy(np.stack(columns, axis=1)[back]),
                torch.from_numpy(predictions[back]),
                torch.from_numpy(end.probability[back]),
                torch.from_numpy(np.isfinite(end.probability)[back]),
            )

    # ------------------------------------------------------------------ training

    def forward(self, batch: PackedBatch, signature: Signature) -> list[Tensor]:
        """E + 1 logits [N, C]: every exit's and full depth's, in stored order, with gradients."""
        x = self._embed(batch)
        layout = exact(batch.lengths)
        starts = batch.offsets[:-1].long()
        logits: list[Tensor] = []
        for number, layer in enumerate(self.below, start=1):
            x, _ = layer(x, layout, signature)
            if (index := self._exit_after.get(number)) is not None:
                logits.append(self.heads.at_exit(index, x.index_select(0, starts)))
        first, _ = self.layers[-1].peek(x, x.index_select(0, starts), layout, signature)
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
        callers = np.array(batch.order)
        given = thresholds.cpu().numpy() if isinstance(thresholds, Tensor) else thresholds
        limits = np.asarray(given, dtype=np.float64)
        limits = limits[callers] if limits.ndim == 2 else np.tile(limits, (batch.rows, 1))
        stored_caps = None if caps is None else caps.cpu().numpy()[callers]
        return Rows(self._embed(batch), batch.lengths, callers, limits, stored_caps)


class _Answers:
    """Answers as they come, exit by exit, in the caller's order."""

    def __init__(self, config: EncoderConfig, rows: int) -> None:
        self.depths = np.array([*config.exits, config.layers])
        self.prediction = np.empty(rows, dtype=np.int64)
        self.probability = np.empty(rows, dtype=np.float32)
        self.exit = np.full(rows, -1)
        self.visits = np.zeros(config.experts, dtype=np.int64)

    def add(
        self, index: int, callers: NDArray[np.int64], judged: Judged, leave: NDArray[np.bool_]
    ) -> None:
        """Rows that answer at an exit, or at full depth."""
        to = callers[leave]
        self.prediction[to] = judged.prediction[leave]
        self.probability[to] = judged.probability[leave]
        self.exit[to] = index

    def count(self, chosen: Tensor | None) -> None:
        """Add visits to experts."""
        if chosen is not None:
            visits = chosen.flatten().cpu().numpy()
            self.visits += np.bincount(visits, minlength=len(self.visits))

    def outcome(self) -> Outcome:
        """Everything as tensors."""
        assert (self.exit >= 0).all(), "every row answers"
        parts = (
            self.prediction,
            self.probability,
            self.exit,
            self.depths[self.exit],
            np.isfinite(self.probability),
            self.visits,
        )
        return Outcome(*map(torch.from_numpy, parts))
