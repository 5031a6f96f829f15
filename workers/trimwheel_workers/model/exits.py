"""Exit heads, and the rows still under way in an adaptive batch.

``Heads`` turns a row's first token into class logits at every exit and at full depth. ``Rows`` is
the shrinking batch: when rows answer early, the rest are compacted so that deeper layers compute
nothing for those that left. The decision equals ``trimwheel_api.decide.decide`` (tested); the
encoder calls both.

Shapes: N rows, T tokens, D model, C classes, E exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, compress

import torch
from torch import Tensor, nn

from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.kernels import Modules
from trimwheel_workers.model.packing import Group, groups_of
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


@dataclass(slots=True)
class Rows:
    """Rows still under way, stored shortest first."""

    x: Tensor  # [T, D]
    lengths: list[int]
    callers: Tensor  # int64 [N], the caller's row
    thresholds: Tensor  # float64 [N, E], as `trimwheel_api.decide.as_compared` gives them
    caps: Tensor | None  # int64 [N], index of the latest exit to answer at; E is none
    earlier: Tensor  # int64 [N, e], predictions of the exits passed so far
    groups: tuple[Group, ...]
    starts: Tensor  # int64 [N], each row's first token

    @property
    def first(self) -> Tensor:
        """First tokens [N, D]."""
        return self.x.index_select(0, self.starts)

    def leaving(self, exit_index: int, judged: Judged) -> Tensor:
        """Which rows answer here: bool [N]. A score that is not a number never reaches a
        threshold."""
        leave = judged.score.double() >= self.thresholds[:, exit_index]
        return leave if self.caps is None else leave | (self.caps <= exit_index)

    def passed(self, judged: Judged) -> None:
        """Note the predictions of an exit for the agreement feature of later ones."""
        self.earlier = torch.cat((self.earlier, judged.prediction.unsqueeze(1)), dim=1)

    def keep(self, stay: Tensor) -> None:
        """Compact to the rows of ``stay`` (bool [N]); at least one must stay."""
        kept = list(compress(self.lengths, stay.tolist()))
        sizes = torch.tensor(self.lengths, device=stay.device)
        self.x = self.x[torch.repeat_interleave(stay, sizes)]
        self.callers, self.thresholds = self.callers[stay], self.thresholds[stay]
        self.earlier = self.earlier[stay]
        self.caps = None if self.caps is None else self.caps[stay]
        self.lengths = kept
        self.groups = groups_of(kept)
        self.starts = starts_of(kept, stay.device)


def starts_of(lengths: list[int], device: torch.device) -> Tensor:
    """Offset of each row's first token [N]."""
    return torch.tensor([0, *accumulate(lengths[:-1])], device=device)
