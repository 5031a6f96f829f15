"""The serving benchmark compares like with like: same weights, same answers, then times."""

from __future__ import annotations

import pytest
import torch

from trimwheel_workers import bench_serving as bench
from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.encoder import Encoder, pack

TEXTS = [[0, 1, 2, 3, 4, 5, 6, 7][: 1 + n % 8] for n in range(16)]


def encoders() -> tuple[Encoder, Encoder]:
    config = EncoderConfig(
        vocabulary=20, classes=("a", "b", "c"), dim=16, layers=3, heads=2, feed_forward=32,
        max_tokens=12, exits=(1, 2), expert_feed_forward=16,
    )  # fmt: skip
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = Encoder(config)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        pair.append(encoder)
    return pair[0], pair[1].serving()


def test_bert_with_our_weights_gives_our_answers() -> None:
    from trimwheel_workers.bench_bert import BertTwin  # loads transformers: seconds

    trained, served = encoders()
    twin = BertTwin(trained, torch.float32).probabilities(TEXTS)
    ours = served.full(pack(TEXTS), served.config.dense_signature)
    assert torch.equal(twin.argmax(1), ours.predictions[:, -1])
    difference = bench.largest_difference(trained, served, TEXTS, "float32")
    assert difference < 1e-5, f"largest difference of a probability: {difference:.2e}"


def test_rounds_are_interleaved_and_ratios_are_taken_round_by_round() -> None:
    trained, served = encoders()
    runs = bench.contenders(trained, served, [0.5, 0.5], "float32")
    called: list[str] = []
    watched = {
        name: lambda texts, name=name, run=run: (called.append(name), run(texts))
        for name, run in runs.items()
    }
    times = bench.measure(watched, TEXTS, batch=8, rounds=2)
    assert [len(values) for values in times.values()] == [2, 2, 2]
    assert set(called[:6]) == set(runs), "every contender runs in each round"
    report = bench.summary(times, 8)
    expected = sorted(a / b for a, b in zip(times[bench.BERT], times[bench.DENSE], strict=True))
    ratio = report["ratios"]["dense_against_transformers"]
    assert ratio["median"] == pytest.approx(sum(expected) / 2, abs=1e-3)
    assert ratio["aim"] == 1.6
