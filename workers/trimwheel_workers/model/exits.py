"""Exit heads, and the rows still under way in an adaptive batch.

``Heads`` turns a row's first token into class logits at every exit and at full depth. ``Rows`` is
the shrinking batch: when rows answer early, the rest are compacted so that deeper layers compute
nothing for those that left. The decision equals ``trimwheel_api.decide.decide`` (tested); the
encoder calls both. Hidden states are tensors; what decides about them lives on the host in numpy.

Shapes: N rows, T tokens, D model, C classes, E exits, e exits passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.kernels import Modules, filled
from trimwheel_workers.model.packing import blocked
from trimwheel_workers.model.prepacked import rounded
from trimwheel_workers.model.scores import Judged


class Heads(nn.Module):
    """A linear head at each exit; BERT's pooler and classifier at full depth. Always fp32."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        classes = len(config.classes)
        self.exits: Modules[nn.Linear] = Modules(
            nn.Linear(config.dim, classes) for _ in config.exits
        )
        self.pooler = nn.Linear(config.dim, config.dim)
        self.classifier = nn.Linear(config.dim, classes)

    def at_exit(self, index: int, first: Tensor) -> Tensor:
        """[N, D] -> logits [N, C] of one exit."""
        return self.exits[index](first.float())  # type: ignore[no-any-return]

    def at_end(self, first: Tensor) -> Tensor:
        """[N, D] -> logits [N, C] at full depth."""
        return self.classifier(torch.tanh(self.pooler(first.float())))  # type: ignore[no-any-return]


class Rows:
    """Rows still under way, stored shortest first; filler tokens may lie behind the last row."""

    def __init__(
        self,
        x: Tensor,
        lengths: Sequence[int],
        callers: NDArray[np.int64],
        thresholds: NDArray[np.float64],
        caps: NDArray[np.int64] | None,
    ) -> None:
        """``x`` [T, D]; ``thresholds`` [N, E] and ``caps`` [N] are in stored order."""
        self.callers = callers  # [N], the caller's row
        self.thresholds = thresholds  # float64, as `trimwheel_api.decide.as_compared` gives them
        self.caps = caps  # [N], index of the latest exit to answer at; E is none
        self.earlier = np.empty((len(callers), 0), dtype=np.int64)  # [N, e], predictions
        self._lay_out(filled(x), lengths)

    @property
    def first(self) -> Tensor:
        """First tokens [N, D]."""
        return self.x[:1] if len(self.lengths) == 1 else self.x.index_select(0, self.starts)

    @property
    def tokens(self) -> int:
        """Tokens under way, without filler."""
        return sum(self.lengths)

    def leaving(self, exit_index: int, judged: Judged) -> NDArray[np.bool_]:
        """Which rows answer here: [N]. A score that is not a number never reaches a threshold."""
        leave = judged.score >= self.thresholds[:, exit_index]
        return leave if self.caps is None else leave | (self.caps <= exit_index)

    def passed(self, judged: Judged) -> None:
        """Note the predictions of an exit for the agreement feature of later ones."""
        self.earlier = np.concatenate((self.earlier, judged.prediction[:, None]), axis=1)

    def keep(self, stay: NDArray[np.bool_]) -> None:
        """Compact to the rows of ``stay`` [N]; at least one must stay."""
        tokens = np.flatnonzero(np.repeat(stay, self.lengths))
        index = np.zeros(rounded(len(tokens)), dtype=np.int64)  # filler repeats the first token
        index[: len(tokens)] = tokens
        self.callers, self.thresholds = self.callers[stay], self.thresholds[stay]
        self.earlier = self.earlier[stay]
        self.caps = None if self.caps is None else self.caps[stay]
        x = self.x.index_select(0, torch.from_numpy(index).to(self.x.device))
        self._lay_out(x, list(compress(self.lengths, stay.tolist())))

    def _lay_out(self, x: Tensor, lengths: Sequence[int]) -> None:
        self.x = x
        self.lengths = lengths
        self.layout = blocked(lengths, len(x), x.device)
        starts = np.cumsum(lengths) - lengths
        self.starts = torch.from_numpy(starts).to(x.device)  # int64 [N], first tokens
