"""Shared by the tests of the pipelines: a small real model and audits that it really made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimwheel_pipelines.trials import Audits, ModelRef
from trimwheel_workers.model import artifact
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.tokenizer import Tokenizer
from trimwheel_workers.offline import evaluate

TEXTS = [f"def f{i}(x): return {i * 7 % 13} + x * {i % 31} # {i * i % 17}" for i in range(400)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-layer encoder with three experts: untrained, but exits mostly agree and have scores.

    Exit 1 agrees with full depth on 70 %, exit 3 on 91 %; one expert in place of two on 96 %.
    """
    import torch  # noqa: TID251  the test makes what a worker would load

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, 300, 24)
    config = EncoderConfig(
        vocabulary=tokenizer.vocabulary,
        classes=("a", "b", "c"),
        dim=16,
        layers=4,
        heads=2,
        feed_forward=32,
        max_tokens=24,
        exits=(1, 2, 3),
        moe_layer=2,
        experts=3,
        expert_feed_forward=16,
    )
    encoder = Encoder(config)
    encoder.learned.weight[:, 1] = torch.tensor([3.0, 5.0, 8.0])
    encoder.learned.weight[:, 3] = 1.0
    _make_exits_agree(encoder)
    folder = tmp_path_factory.mktemp("model")
    artifact.save(folder, encoder, tokenizer, {})
    return folder


def _make_exits_agree(encoder: Encoder) -> None:
    """One head for all depths, much attention first, little change later."""
    import torch  # noqa: TID251  the test makes what a worker would load

    encoder.layers[0].attention.out.weight.data *= 8.0
    for layer in encoder.layers[2:]:
        layer.attention.out.weight.data *= 0.15
        layer.feed.down.weight.data *= 0.15
    for expert in encoder.layers[1].mixture.experts:
        expert.down.weight.data *= 0.45
    heads = encoder.heads
    heads.pooler.weight.data = torch.eye(encoder.config.dim) * 0.5
    for head in heads.exits:
        head.load_state_dict(heads.classifier.state_dict())


@pytest.fixture(scope="session")
def model(model_folder: Path) -> LoadedModel:
    """The same, loaded."""
    return artifact.load(model_folder)


@pytest.fixture(scope="session")
def model_ref(model_folder: Path, model: LoadedModel) -> ModelRef:
    """The same, as trials name it."""
    return ModelRef(str(model_folder), model.digest)


@pytest.fixture(scope="session")
def audits(model: LoadedModel) -> Audits:
    """What workers would have recorded of TEXTS, inputs included."""
    found = evaluate(model, TEXTS, model.config.dense_signature)
    return Audits(
        scores=found.scores,
        predictions=found.predictions,
        propensity=np.full(len(TEXTS), 0.5),
        sessions=np.array([f"s{i // 2}" for i in range(len(TEXTS))]),
        texts=tuple(TEXTS),
    )
