"""The encoder's fast paths against its slow reference, and the exit decision against the
contract's."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from trimwheel_api.decide import NEVER, as_compared, decide
from trimwheel_workers.model import measured, prepacked
from trimwheel_workers.model.config import EncoderConfig, Signature
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.exits import Rows
from trimwheel_workers.model.kernels import Linear, first_token_attention, packed_attention
from trimwheel_workers.model.packing import Block, Layout, blocked, exact, pack
from trimwheel_workers.model.reference import reference_logits
from trimwheel_workers.model.scores import SCORES, Judged, features_of, judge

EXITS = (1, 2, 3)
CONFIG = EncoderConfig(
    vocabulary=50,
    classes=tuple("abcdefg"),
    dim=32,
    layers=4,
    heads=4,
    feed_forward=64,
    max_tokens=24,
    exits=EXITS,
    moe_layer=2,
    expert_feed_forward=48,
)
DENSE = CONFIG.dense_signature
SIGNATURES = [DENSE, Signature(1, 0.0), Signature(1, 1.0), Signature(3, 0.35)]
# fp32 results of different kernels for the same sums; a wrong formula is off by far more.
NEAR = {"atol": 2e-5, "rtol": 2e-5}


def random_weights(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(CONFIG)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.25)
        encoder.learned.weight.normal_()
        encoder.learned.class_bias.normal_()
    return encoder


def random_texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [0] + [rng.randrange(1, CONFIG.vocabulary) for _ in range(rng.randrange(0, 23))]
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def served() -> Encoder:
    return random_weights().serving()


def force_products(way: str, patch: pytest.MonkeyPatch) -> None:
    """Have layers that begin to serve multiply in one way, whatever is the faster one here."""
    patch.setattr(prepacked, "pay", lambda dtype: way != "plain" and prepacked.can(dtype))
    patch.setattr(prepacked, "small_product", lambda dtype: {"mixed": 3_000}.get(way, 0))


WAYS = ["plain", "prepacked", "mixed"]
"""Plain products, products on laid-out weights, and either by the size of the product."""


def mixed_thresholds(rows: int, seed: int = 0) -> torch.Tensor:
    """Per-row thresholds in the middle of the scores, some never."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, len(EXITS), generator=generator, dtype=torch.float64)
    return torch.where(values > 0.85, torch.tensor(NEVER, dtype=torch.float64), values)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
def test_full_depth_agrees_with_the_padded_reference_at_every_exit(
    signature: Signature, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_products(way, monkeypatch)
    served, texts = random_weights().serving(), random_texts(13)
    assert served.layers[0].attention.qkv.is_prepacked == (
        way != "plain" and prepacked.can(torch.float32)
    )
    expected = reference_logits(served, texts, signature)
    outcome = served.full(pack(texts), signature, score="maxProb")
    for index in range(len(EXITS)):
        best = expected[index].softmax(-1).max(-1)
        torch.testing.assert_close(outcome.scores[:, index], best.values, **NEAR)
        assert torch.equal(outcome.predictions[:, index], best.indices)
    end = expected[-1].softmax(-1).max(-1)
    torch.testing.assert_close(outcome.probability, end.values, **NEAR)
    assert torch.equal(outcome.predictions[:, -1], end.indices)


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 9, 32])
@pytest.mark.parametrize("score", SCORES)
def test_adaptive_answers_are_the_contract_decision_over_the_full_record(
    served: Encoder, signature: Signature, count: int, score: str
) -> None:
    batch = pack(random_texts(count, seed=count))
    thresholds = mixed_thresholds(count, seed=count)
    full = served.full(batch, signature, score=score)
    outcome = served.adaptive(batch, thresholds, signature, score=score)
    decided = [
        decide(row, limits)
        for row, limits in zip(full.scores.tolist(), thresholds.tolist(), strict=True)
    ]
    assert outcome.exit.tolist() == decided
    depths = [*EXITS, CONFIG.layers]
    assert outcome.layers.tolist() == [depths[index] for index in decided]
    expected = full.predictions[torch.arange(count), outcome.exit]
    assert torch.equal(outcome.prediction, expected)
    assert outcome.finite.all()


def test_the_batches_of_one_row_take_a_list_and_answer_the_same(served: Encoder) -> None:
    for seed, text in enumerate(random_texts(20, seed=3)):
        thresholds = mixed_thresholds(1, seed)
        for score in SCORES:
            slow = served.adaptive(pack([text]), thresholds, DENSE, score=score)
            fast = served.adaptive(pack([text]), thresholds[0].tolist(), DENSE, score=score)
            for name, a, b in zip(slow._fields, slow, fast, strict=True):
                torch.testing.assert_close(a, b, **NEAR, msg=f"{name}: {a} against {b}")


def test_a_rows_answer_does_not_depend_on_its_batch_mates(served: Encoder) -> None:
    texts = random_texts(24, seed=5)
    together = served.full(pack(texts), DENSE)
    alone = [served.full(pack([text]), DENSE) for text in texts]
    scores = torch.cat([outcome.scores for outcome in alone])
    largest = (scores - together.scores).abs().max().item()
    assert largest < 5e-6, f"largest difference of a score by batch mates: {largest:.2e}"
    predictions = torch.cat([outcome.predictions for outcome in alone])
    assert torch.equal(predictions, together.predictions)


def test_masked_blocks_attend_as_a_block_for_each_length_does(served: Encoder) -> None:
    lengths = sorted(len(text) for text in random_texts(24, seed=14))
    total, filler = sum(lengths), 5
    torch.manual_seed(3)
    qkv = torch.randn(total + filler, 3 * CONFIG.dim)
    query = torch.randn(len(lengths), CONFIG.heads, CONFIG.dim)
    fast, slow = blocked(lengths, total + filler, qkv.device), exact(lengths)
    assert fast.slots is not None and len(fast.blocks) < len(slow.blocks)
    torch.testing.assert_close(
        packed_attention(qkv, fast, CONFIG.heads)[:total],
        packed_attention(qkv, slow, CONFIG.heads)[:total],
        **NEAR,
    )
    x = qkv[:, : CONFIG.dim]
    torch.testing.assert_close(
        first_token_attention(query, x, fast, 0.2),
        first_token_attention(query, x, slow, 0.2),
        **NEAR,
    )


def test_a_broken_row_stays_alone_in_a_block_of_many_lengths() -> None:
    encoder = random_weights().serving()
    encoder.tokens.weight[7] = float("nan")
    texts = [[0, *[place % 5 + 1 for place in range(n)]] for n in range(12)]
    texts[6][3] = 7
    assert blocked(sorted(map(len, texts)), 200, torch.device("cpu")).slots is not None
    expected = [n != 6 for n in range(12)]
    never = torch.full((12, len(EXITS)), NEVER, dtype=torch.float64)
    assert encoder.adaptive(pack(texts), never, DENSE).finite.tolist() == expected
    assert encoder.full(pack(texts), DENSE).finite.tolist() == expected


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
def test_experts_side_by_side_give_what_routing_gives(
    signature: Signature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "crossover", lambda sizes, ways, worth=1.0: len(sizes))
    monkeypatch.setattr(measured, "_known", {})
    served = random_weights().serving()
    torch.manual_seed(4)
    x, results = torch.randn(40, CONFIG.dim), []
    for tokens in (0, 40):
        served.mixture.side_by_side_tokens = dict.fromkeys(range(1, 5), tokens)
        with torch.inference_mode():
            results.append(served.mixture(x, signature))
    torch.testing.assert_close(results[0][0], results[1][0], **NEAR)
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("rows", [1, 5, 63, 64, 65, 700, 1025])
def test_row_counts_are_rounded_up_to_few_values(rows: int) -> None:
    assert rows <= prepacked.rounded(rows) <= rows + 63
    assert prepacked.rounded(prepacked.rounded(rows)) == prepacked.rounded(rows)
    assert len({prepacked.rounded(n) for n in range(1, 2048)}) < 100


def test_results_come_back_in_the_callers_order(served: Encoder) -> None:
    texts = random_texts(10, seed=6)
    thresholds = mixed_thresholds(10)
    forward = served.adaptive(pack(texts), thresholds, DENSE)
    backward = served.adaptive(pack(texts[::-1]), thresholds.flip(0), DENSE)
    assert torch.equal(forward.prediction, backward.prediction.flip(0))
    assert torch.equal(forward.exit, backward.exit.flip(0))


def test_peeking_at_an_exit_decides_as_running_the_layer_does(
    served: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, thresholds = pack(random_texts(20, seed=7)), mixed_thresholds(20)
    outcomes = []
    for tokens in (0, 10**9):
        monkeypatch.setattr(served, "peek_tokens", tokens)
        outcomes.append(served.adaptive(batch, thresholds, DENSE))
    for name, a, b in zip(outcomes[0]._fields[:-1], *(o[:-1] for o in outcomes), strict=True):
        torch.testing.assert_close(a, b, **NEAR, msg=f"{name}: {a} against {b}")


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("cap", [0, 1, 2, 3])
def test_a_depth_cap_answers_there_at_the_latest(served: Encoder, rows: int, cap: int) -> None:
    batch, never = pack(random_texts(rows, seed=8)), [NEVER] * len(EXITS)
    outcome = served.adaptive(batch, never, DENSE, torch.full((rows,), cap))
    assert outcome.exit.tolist() == [decide([0.0] * len(EXITS), never, cap)] * rows


def test_caps_and_thresholds_mix_by_row(served: Encoder) -> None:
    batch = pack(random_texts(4, seed=9))
    never = torch.full((4, len(EXITS)), NEVER, dtype=torch.float64)
    never[3] = 0.0
    outcome = served.adaptive(batch, never, DENSE, torch.tensor([3, 0, 1, 3]))
    assert outcome.exit.tolist() == [3, 0, 1, 0]


def test_ties_and_their_neighbours_leave_as_the_contract_says() -> None:
    torch.manual_seed(3)
    scores = torch.rand(3_000)
    # A third each: the threshold equals the score, is the next 32-bit float above, or below it.
    towards = torch.tensor([0.0, 1.0, 2.0]).repeat(1_000)
    near = torch.where(towards == 1, scores, torch.nextafter(scores, towards)).tolist()
    # As a policy writes it: a decimal, in 64 bits beside the 32-bit float that it means.
    asked = [float(f"{value:.9f}") for value in near]
    limits = np.array([[as_compared(value)] for value in asked])
    count = len(asked)
    rows = Rows(torch.zeros(count, 1), [1] * count, np.arange(count), limits, caps=None)
    answers = np.zeros(count, dtype=np.int64)
    left = rows.leaving(0, Judged(scores.numpy(), answers, scores.numpy()))
    wanted = [decide([s], [t]) == 0 for s, t in zip(scores.tolist(), asked, strict=True)]
    assert left.tolist() == wanted and 1_000 < sum(wanted) < 2_100


def test_a_single_row_is_as_sure_as_a_batch_at_the_end_of_the_scale() -> None:
    encoder = random_weights().serving()
    # So sure that the score is 1 as a 32-bit float, and less in 64 bits.
    encoder.learned.weight.zero_()
    encoder.learned.class_bias.fill_(20.0)
    encoder = encoder.serving()
    texts = random_texts(2, seed=13)
    ones = torch.ones(2, len(EXITS), dtype=torch.float64)
    assert encoder.adaptive(pack(texts), ones, DENSE).exit.tolist() == [0, 0]
    for text in texts:
        assert encoder.adaptive(pack([text]), [1.0] * len(EXITS), DENSE).exit.tolist() == [0]


def test_full_steps_yields_between_layers_and_returns_what_full_returns(served: Encoder) -> None:
    batch = pack(random_texts(6))
    steps = served.full_steps(batch, DENSE)
    yields = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stepped = end.value
            break
        yields += 1
    assert yields == CONFIG.layers - 1
    for a, b in zip(stepped, served.full(batch, DENSE), strict=True):
        assert torch.equal(a, b)


def test_training_logits_are_the_reference_logits() -> None:
    encoder, texts = random_weights(), random_texts(9, seed=11)
    batch = pack(texts)
    expected = reference_logits(encoder, texts, DENSE)
    for trained, reference in zip(encoder(batch, DENSE), expected, strict=True):
        torch.testing.assert_close(trained, reference[list(batch.order)], **NEAR)


def test_rows_of_broken_numbers_say_so_and_never_exit_early() -> None:
    encoder = random_weights().serving()
    encoder.tokens.weight[7] = float("nan")
    texts = [[0, 1, 2], [0, 7, 3], [0, 4]]
    open_door = torch.zeros(3, len(EXITS), dtype=torch.float64)
    outcome = encoder.adaptive(pack(texts), open_door, DENSE)
    assert outcome.finite.tolist() == [True, False, True]
    assert outcome.exit.tolist() == [0, len(EXITS), 0]
    alone = encoder.adaptive(pack([texts[1]]), [0.0] * len(EXITS), DENSE)
    assert (alone.finite.item(), alone.exit.item()) == (False, len(EXITS))
    assert encoder.full(pack(texts), DENSE).finite.tolist() == [True, False, True]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_every_token_under_way_visits_top_k_experts(served: Encoder, top_k: int) -> None:
    texts = random_texts(8, seed=12)
    never = torch.full((8, len(EXITS)), NEVER, dtype=torch.float64)
    outcome = served.adaptive(pack(texts), never, Signature(top_k, 0.0))
    assert outcome.expert_tokens.sum().item() == top_k * sum(map(len, texts))
    one = served.adaptive(pack(texts[:1]), [NEVER] * len(EXITS), Signature(top_k, 0.0))
    assert one.expert_tokens.sum().item() == top_k * len(texts[0])


def test_bfloat16_stays_near_the_full_precision_reference() -> None:
    exact, texts = random_weights().serving(), random_texts(32, seed=13)
    rounded = random_weights().serving(torch.bfloat16)
    a = exact.full(pack(texts), DENSE, score="maxProb")
    b = rounded.full(pack(texts), DENSE, score="maxProb")
    assert b.scores.dtype == torch.float32
    difference = (a.scores - b.scores).abs().mean().item()
    assert difference < 0.03, f"mean difference of a probability: {difference:.4f}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_prepacked_linear_agrees_with_the_fallback(
    dtype: torch.dtype, gelu: bool, rows: int
) -> None:
    torch.manual_seed(1)
    layer, x = Linear(40, 24, gelu=gelu).to(dtype), torch.randn(rows, 40, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        layer.prepack()
        assert layer.is_prepacked == prepacked.can(dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_a_product_does_not_depend_on_where_its_rows_lie_in_memory(
    rows: int, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_products(way, monkeypatch)
    torch.manual_seed(1)
    layer, x = Linear(192, 64).to(dtype), torch.randn(rows, 192, dtype=dtype)
    with torch.no_grad():
        layer.serving()
        expected, room = layer(x), torch.empty(x.numel() + 32, dtype=dtype)
        for offset in range(32):
            moved = room[offset : offset + x.numel()].view_as(x).copy_(x)
            assert torch.equal(layer(moved), expected), f"{x.element_size() * offset} bytes further"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_serves_whichever_way_its_products_go(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, scores = random_texts(5), []
    for way in WAYS:
        force_products(way, monkeypatch)
        scores.append(random_weights().serving(dtype).full(pack(texts), DENSE).scores)
    near = NEAR if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(scores[0], scores[1], **near)
    torch.testing.assert_close(scores[0], scores[2], **near)


@pytest.mark.parametrize("earlier_exits", [0, 2])
def test_scores_agree_with_their_definitions_and_lie_in_the_unit_interval(
    earlier_exits: int, served: Encoder
) -> None:
    torch.manual_seed(2)
    logits = torch.randn(200, 7) * torch.logspace(-2, 2, 200).unsqueeze(1)
    earlier = torch.randint(7, (200, earlier_exits))
    p = torch.softmax(logits, dim=-1)
    top = p.topk(2, dim=-1)
    features = features_of(logits, p, top.indices, earlier)
    odds = features @ served.learned.weight[2] + served.learned.class_bias[2, top.indices[:, 0]]
    expected = {
        "learned": torch.sigmoid(odds),
        "maxProb": top.values[:, 0],
        "margin": top.values[:, 0] - top.values[:, 1],
        "entropy": 1 - torch.special.entr(p).sum(1) / math.log(7),
    }
    regression = served.learned.regressions()[2]
    for score in SCORES:
        judged = judge(logits.numpy(), earlier.numpy(), regression, score)
        torch.testing.assert_close(torch.from_numpy(judged.score), expected[score], **NEAR)
        assert judged.score.dtype == np.float32, "scores are 32-bit floats"
        assert judged.prediction.tolist() == top.indices[:, 0].tolist()
        assert judged.score.min() >= -1e-6 and judged.score.max() <= 1 + 1e-6


def test_an_unknown_score_is_refused_by_name(served: Encoder) -> None:
    for thresholds in ([0.5] * 3, torch.full((1, 3), 0.5)):
        with pytest.raises(ValueError, match="score must be one of learned.*got 'luck'"):
            served.adaptive(pack([[0, 1]]), thresholds, DENSE, score="luck")


def test_packing_groups_rows_of_equal_length_and_remembers_the_order() -> None:
    batch = pack([[1, 2, 3], [4], [5, 6, 7], [8]])
    assert batch.tokens.tolist() == [4, 8, 1, 2, 3, 5, 6, 7]
    assert batch.offsets.tolist() == [0, 1, 2, 5, 8]
    assert batch.positions.tolist() == [0, 0, 0, 1, 2, 0, 1, 2]
    assert batch.order == (1, 3, 0, 2)
    assert batch.lengths == (1, 1, 3, 3)
    assert exact(batch.lengths) == Layout(8, (Block(2, 1), Block(2, 3)))


@pytest.mark.parametrize("texts", [[], [[]], [[1], []]])
def test_packing_refuses_what_has_no_tokens(texts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="one token or more"):
        pack(texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 30}, "dim 30 must be a multiple of heads 4"),
        ({"exits": (2, 1)}, "exits .* must be layers that rise strictly within 1..3"),
        ({"exits": (1, 4)}, "within 1..3"),
        ({"moe_layer": 9}, "moe_layer 9 must lie in 1..4"),
        ({"default_top_k": 5}, "default_top_k 5 must lie in 1..4"),
        ({"classes": ("one",)}, "classes must be 2 to .* different names"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_dict(CONFIG.as_dict() | change)
