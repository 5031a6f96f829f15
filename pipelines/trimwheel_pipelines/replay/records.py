"""The arrays that replay reads: one row for each audited request.

Built by the records reader and by offline evaluation; read by `bitmaps` and `reference`. Holds
data only. Which audits belong in (one uniform stream, before or after a run) is the caller's
decision: `certificate` says which may certify.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ReplayRecords:
    """Scores and agreement at every exit of N requests; E exits before full depth.

    The dense model's answer is the truth throughout: `agree[i, e]` says that exit e's prediction
    equals it. `final_agree[i]` says the same of full depth *under the policy's signature*: true for
    the dense signature, but fewer experts may change even the deepest answer.
    """

    scores: npt.NDArray[np.float32]  # [N, E], in [0, 1]; exit e answers iff score >= threshold
    agree: npt.NDArray[np.bool_]  # [N, E]
    final_agree: npt.NDArray[np.bool_]  # [N]
    weights: npt.NDArray[np.float64]  # [N], 1 / propensity; all ones for a uniform stream
    graded: npt.NDArray[np.float32] | None = None
    """[N, E + 1], losses in [0, 1] at each exit and full depth where answers are not just right or
    wrong; None: the loss is 0 where they agree, else 1."""

    @classmethod
    def build(
        cls,
        scores: npt.ArrayLike,
        agree: npt.ArrayLike,
        final_agree: npt.ArrayLike | None = None,
        propensity: npt.ArrayLike | None = None,
    ) -> ReplayRecords:
        """Check shapes and ranges; `final_agree` defaults to true, `propensity` to 1.

        Raises ValueError naming the array, the rule and what was given.
        """
        table = np.ascontiguousarray(scores, dtype=np.float32)
        matches = np.ascontiguousarray(agree, dtype=np.bool_)
        if table.ndim != 2 or table.shape != matches.shape:
            raise ValueError(
                f"scores, agree: must both be [records, exits], got {table.shape} "
                f"and {matches.shape}"
            )
        if not np.all(np.isfinite(table)):
            raise ValueError("scores: must be finite; set such records aside and count them")
        rows = table.shape[0]
        final = np.ones(rows, bool) if final_agree is None else np.asarray(final_agree, bool)
        share = np.ones(rows) if propensity is None else np.asarray(propensity, np.float64)
        for name, column in (("final_agree", final), ("propensity", share)):
            if column.shape != (rows,):
                raise ValueError(f"{name}: must hold {rows} values, got shape {column.shape}")
        if np.any(share <= 0) or np.any(share > 1):
            raise ValueError("propensity: must lie in (0, 1]")
        return cls(table, matches, final, 1.0 / share)

    @classmethod
    def from_predictions(
        cls,
        scores: npt.ArrayLike,
        predictions: npt.ArrayLike,
        truth: npt.ArrayLike,
        propensity: npt.ArrayLike | None = None,
    ) -> ReplayRecords:
        """Records of a run: `predictions` [N, E + 1] (last: its full depth), `truth` [N].

        `truth` is the dense model's full-depth prediction; for the dense signature itself that is
        the last column of `predictions`.
        """
        same = np.asarray(predictions) == np.asarray(truth)[:, None]
        return cls.build(scores, same[:, :-1], same[:, -1], propensity)

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    @property
    def exits(self) -> int:
        """Number of exits before full depth."""
        return int(self.scores.shape[1])

    def take(self, rows: npt.ArrayLike) -> ReplayRecords:
        """The records at these indices (or under this mask), in that order."""
        index = np.asarray(rows)
        return ReplayRecords(
            self.scores[index],
            self.agree[index],
            self.final_agree[index],
            self.weights[index],
            None if self.graded is None else self.graded[index],
        )

    def with_losses(self, losses: npt.ArrayLike) -> ReplayRecords:
        """The same records with graded losses [N, E + 1]; agreement is a loss of 0.

        Raises ValueError where the shape differs or a loss lies outside [0, 1].
        """
        graded = np.ascontiguousarray(losses, dtype=np.float32)
        if graded.shape != (len(self), self.exits + 1):
            raise ValueError(
                f"losses: must be [{len(self)}, {self.exits + 1}], got shape {graded.shape}"
            )
        if not np.all((graded >= 0) & (graded <= 1)):
            raise ValueError("losses: must lie in [0, 1]")
        return ReplayRecords(
            self.scores, graded[:, :-1] == 0, graded[:, -1] == 0, self.weights, graded
        )
