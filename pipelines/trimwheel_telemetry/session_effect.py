"""How many times one session is counted where its requests reach several pods.

Called by the operator's evidence with the samples that workers publish
(`trimwheel_guard_session_sample`), and by `bench canary`. A session that m pods count brings m
trials, and m events if it went wrong: Kish's design effect sum(m^2) / sum(m) over sessions says how
many times more the counts vary than if pods counted different sessions. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from trimwheel_api.metrics import GUARD_SAMPLE_EMPTY, GUARD_SAMPLE_SLOTS

Hashes = npt.NDArray[np.float64]

LEAST: Final = 8
"""Sessions below which the sample says nothing: then each pod may have counted each session."""


def session_effect(samples: Sequence[Hashes], slots: int = GUARD_SAMPLE_SLOTS) -> float:
    """The design effect of counting by pod, from each pod's smallest session hashes; at least 1.

    A pod with fewer than `slots` hashes has published all its sessions. Below the smallest of the
    full pods' largest hashes every pod has published all it counted, so the sessions there are a
    fair sample. Pods without a session count for nothing.
    """
    known = [np.unique(sample[sample > GUARD_SAMPLE_EMPTY]) for sample in samples]
    known = [sample for sample in known if len(sample)]
    if len(known) < 2:
        return 1.0
    complete = [float(sample[-1]) for sample in known if len(sample) >= slots]
    limit = min(complete, default=np.inf)
    seen = np.concatenate([sample[sample <= limit] for sample in known])
    _, times = np.unique(seen, return_counts=True)
    if len(times) < LEAST:
        return float(len(known))
    return float((times * times).sum() / times.sum())
