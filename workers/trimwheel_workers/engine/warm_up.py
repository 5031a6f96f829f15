"""The trial run before an engine reports that it is ready: real texts, every exit, finite numbers.

Called by the engine's entry. The first call of a shape also allocates and lays out, so what is
tried here is fast afterwards. A model that fails it is refused in one sentence, for good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimwheel_workers.arms import ResidentPolicy
from trimwheel_workers.engine.audits import AuditTask
from trimwheel_workers.engine.runner import Runner
from trimwheel_workers.model.digest import ModelInvalid

TEXTS = (
    "warm up",
    "",
    " ",
    "import os\n\n\ndef f(x):\n    return os.path.join(x, '1')\n",
    "The quick brown fox jumps over the lazy dog, 12,345 times.",
    "na\u00efve \u4e2d\u6587 \U0001f600 \u202e\u0301",
    "\x00\t\r\n",
    "word " * 500,
    "x" * 2000,
)


def warm_up(runner: Runner, sizes: Sequence[int]) -> None:
    """Run the texts in batches of each size. Raises ModelInvalid where that gives no answers."""
    for policy in _policies(runner):
        for size in sizes:
            _try(runner, [TEXTS[0]] * size, policy)
        for text in TEXTS:
            _try(runner, [text], policy)
    for text in TEXTS:
        _audit(runner, text, _policies(runner)[0])


def _policies(runner: Runner) -> tuple[ResidentPolicy, ResidentPolicy]:
    """Full depth, and one that looks at every exit."""
    exits, dense = len(runner.shape.exits), runner.shape.dense_key
    return (
        ResidentPolicy("", (1.01,) * exits, exits, dense),
        ResidentPolicy("", (0.5,) * exits, exits, dense),
    )


def _try(runner: Runner, texts: list[str], policy: ResidentPolicy) -> None:
    try:
        answers = runner.answer(runner.tokens(texts), [policy] * len(texts), policy.compute)
    except Exception as error:
        raise _unservable(f"raises {type(error).__name__} ({error})", texts[0]) from error
    if not all(answers.finite):
        raise _unservable("gives NaN or Inf", texts[0])


def _audit(runner: Runner, text: str, dense: ResidentPolicy) -> None:
    task = AuditTask(0, runner.tokens([text])[0], dense, dense, None, 0.0)
    steps = runner.audit_steps([task])
    try:
        while True:
            next(steps)
    except StopIteration as end:
        (judged,) = end.value
    except Exception as error:
        raise _unservable(f"raises {type(error).__name__} ({error})", text) from error
    bad = [index for index, score in enumerate(judged.scores) if not math.isfinite(score)]
    if bad:
        raise _unservable(f"gives NaN or Inf at exit {bad[0]}", text)


def _unservable(what: str, text: str) -> ModelInvalid:
    rule = f"must hold a model that answers every text, but it {' '.join(what.split())[:300]}"
    return ModelInvalid("model.uri", rule, text[:60])
