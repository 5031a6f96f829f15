"""The artifact on disk: whole, checked before it is parsed, and the same model after a round
trip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Library

from trimwheel_api.errors import DigestMismatch
from trimwheel_workers.engine.runner import Runner
from trimwheel_workers.engine.warm_up import warm_up
from trimwheel_workers.model import artifact
from trimwheel_workers.model.config import RANGES, EncoderConfig
from trimwheel_workers.model.encoder import Encoder, pack
from trimwheel_workers.model.tokenizer import Tokenizer
from trimwheel_workers.offline import evaluate, evaluate_tokens

TEXTS = ["import json\nreturn json.dumps(x)", "x = 1", "", "naïve → ünïcode", "word " * 200]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, vocabulary=300, max_tokens=16)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(
        EncoderConfig(
            vocabulary=tokenizer.vocabulary,
            classes=("a", "b", "c"),
            dim=16,
            layers=3,
            heads=2,
            feed_forward=32,
            max_tokens=16,
            exits=(1, 2),
            expert_feed_forward=16,
        )
    )
    torch.nn.init.normal_(encoder.learned.weight)
    return encoder


@pytest.fixture
def saved(tmp_path: Path, encoder: Encoder, tokenizer: Tokenizer) -> tuple[Path, str]:
    return tmp_path, artifact.save(tmp_path, encoder, tokenizer, {"seed": 7})


def test_a_round_trip_gives_the_same_answers(
    saved: tuple[Path, str], encoder: Encoder, tokenizer: Tokenizer
) -> None:
    folder, digest = saved
    loaded = artifact.load(folder, digest)
    assert loaded.digest == digest and loaded.metadata == {"seed": 7}
    assert loaded.config == encoder.config
    batch = pack(tokenizer.encode(TEXTS))
    assert loaded.tokenizer.encode(TEXTS) == tokenizer.encode(TEXTS)
    dense = encoder.config.dense_signature
    for a, b in zip(loaded.encoder.full(batch, dense), encoder.full(batch, dense), strict=True):
        torch.testing.assert_close(a, b)


def test_the_folder_holds_three_files_and_saving_again_gives_the_same_digest(
    saved: tuple[Path, str], tmp_path: Path, encoder: Encoder, tokenizer: Tokenizer
) -> None:
    folder, digest = saved
    assert sorted(path.name for path in folder.iterdir()) == sorted(artifact.FILES)
    assert artifact.save(tmp_path / "again", encoder, tokenizer, {"seed": 7}) == digest
    assert artifact.save(tmp_path / "other", encoder, tokenizer, {"seed": 8}) != digest


@pytest.mark.parametrize("name", artifact.FILES)
def test_a_changed_byte_in_any_file_is_another_model(saved: tuple[Path, str], name: str) -> None:
    folder, digest = saved
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DigestMismatch, match="model.digest: must be the digest of the files") as e:
        artifact.load(folder, digest)
    assert isinstance(e.value, artifact.ModelDigestMismatch)
    assert digest in str(e.value)


@pytest.mark.parametrize("name", artifact.FILES)
@pytest.mark.parametrize("content", [None, b"", b"{}", b"not a model"])
def test_a_missing_or_broken_file_is_named(
    saved: tuple[Path, str], name: str, content: bytes | None
) -> None:
    folder, _ = saved
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(artifact.ModelInvalid, match="model.uri: must"):
        artifact.load(folder)


def test_a_config_of_other_sizes_than_the_weights_is_refused(saved: tuple[Path, str]) -> None:
    folder, _ = saved
    path = folder / artifact.CONFIG_FILE
    stored = json.loads(path.read_text())
    stored["encoder"]["feed_forward"] = 64
    path.write_text(json.dumps(stored))
    with pytest.raises(artifact.ModelInvalid, match="size mismatch"):
        artifact.load(folder)


def test_only_the_learned_scores_change_the_score_digest(
    saved: tuple[Path, str], tmp_path: Path, encoder: Encoder, tokenizer: Tokenizer
) -> None:
    first = artifact.load(saved[0])
    other = Encoder(encoder.config)
    other.learned.load_state_dict(encoder.learned.state_dict())
    artifact.save(tmp_path / "weights", other, tokenizer, {})
    other.learned.class_bias[0, 0] += 1
    artifact.save(tmp_path / "scores", other, tokenizer, {})
    assert artifact.load(tmp_path / "weights").score_digest == first.score_digest
    assert artifact.load(tmp_path / "scores").score_digest != first.score_digest


def test_every_text_has_a_token_and_long_texts_are_cut(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXTS)
    assert [len(row) for row in ids][2] == 1 and {row[0] for row in ids} == {ids[2][0]}
    assert max(map(len, ids)) == 16


def test_offline_evaluation_keeps_the_order_of_texts_and_ignores_the_batch_size(
    saved: tuple[Path, str],
) -> None:
    model = artifact.load(saved[0])
    dense = model.config.dense_signature
    whole = evaluate(model, TEXTS, dense, batch_size=32)
    single = evaluate_tokens(model, model.tokenizer.encode(TEXTS), dense, batch_size=1)
    np.testing.assert_allclose(whole.scores, single.scores, atol=1e-5)
    np.testing.assert_array_equal(whole.predictions, single.predictions)
    assert whole.scores.shape == (5, 2) and whole.predictions.shape == (5, 3)
    with pytest.raises(ValueError, match="one text or more"):
        evaluate(model, [], dense)


CONFIGS: dict[str, tuple[Any, str]] = {
    "a list": ([], "must be an object"),
    "no encoder": ({}, "must be an object"),
    "an encoder that is a list": ({"encoder": []}, "must be an object"),
    "metadata that is a list": ({"metadata": []}, "must be an object"),
    "an empty encoder": ({"encoder": {}}, "vocabulary must be given"),
    "an unknown field": ({"encoder.colour": 1}, "has no field 'colour'"),
    "classes that are a text": ({"encoder.classes": "ab"}, "classes must be"),
    "classes that are numbers": ({"encoder.classes": [1, 2, 3]}, "classes must be"),
    "a class twice": ({"encoder.classes": ["a", "a", "b"]}, "classes must be"),
    "one class": ({"encoder.classes": ["a"]}, "classes must be"),
    "no exits": ({"encoder.exits": []}, "exits"),
    "exits that are texts": ({"encoder.exits": ["1", "2"]}, "exits"),
    "exits that are true": ({"encoder.exits": [True, 2]}, "exits"),
    "exits that fall": ({"encoder.exits": [2, 1]}, "exits"),
    "an exit at the end": ({"encoder.exits": [1, 3]}, "exits"),
    "a mixture beyond the end": ({"encoder.moe_layer": 9}, "moe_layer"),
    "more experts a token than there are": ({"encoder.default_top_k": 5}, "default_top_k"),
    "heads that do not divide": ({"encoder.heads": 3}, "multiple of heads"),
    "huge sizes within the ranges": (
        {"encoder.dim": 65_536, "encoder.vocabulary": 10_000_000}, "size mismatch"
    ),
    "a shorter embedding": ({"encoder.vocabulary": 5}, "size mismatch"),
}  # fmt: skip
ODD: tuple[Any, ...] = (
    0,
    -1,
    True,
    1.0,
    "4",
    None,
    [],
    {},
    10**9,
    10**30,
    float("nan"),
    "x" * 10**6,
)


def with_config(folder: Path, changes: Any) -> None:
    path = folder / artifact.CONFIG_FILE
    stored: Any = json.loads(path.read_text())
    if not isinstance(changes, dict) or not changes:
        stored = changes
    else:
        for name, value in changes.items():
            outer, _, inner = name.partition(".")
            (stored[outer] if inner else stored)[inner or outer] = value
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(("changes", "words"), CONFIGS.values(), ids=CONFIGS.keys())
def test_an_odd_config_is_a_sentence(saved: tuple[Path, str], changes: Any, words: str) -> None:
    with_config(saved[0], changes)
    with pytest.raises(artifact.ModelInvalid, match=words) as caught:
        artifact.load(saved[0])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", [*RANGES, "classes", "exits"])
def test_every_size_has_its_range(saved: tuple[Path, str], name: str, value: Any) -> None:
    with_config(saved[0], {f"encoder.{name}": value})
    with pytest.raises(artifact.ModelInvalid, match=name) as caught:
        artifact.load(saved[0])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_config_that_is_nested_deep_is_a_sentence(saved: tuple[Path, str]) -> None:
    (saved[0] / artifact.CONFIG_FILE).write_text("[" * 100_000)
    with pytest.raises(artifact.ModelInvalid):
        artifact.load(saved[0])


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / artifact.WEIGHTS_FILE
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _fill(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = value

    return change


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "one that is NaN": (_fill("tokens.weight", float("nan")), "tokens.weight has 1 of"),
    "one that is infinite": (_fill("heads.exits.0.weight", float("inf")), "NaN or Inf"),
    "a score that is NaN": (_fill("learned.weight", float("nan")), "learned.weight has 1 of"),
    "one that is missing": (lambda t: t.__delitem__("tokens.weight"), "lacks tokens.weight"),
    "one too many": (lambda t: t.update(other=torch.zeros(2)), "'other'"),
    "whole numbers": (
        lambda t: t.update({"tokens.weight": torch.zeros_like(t["tokens.weight"]).int()}),
        "no floats",
    ),
}


@pytest.mark.parametrize(("change", "words"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_cannot_serve_are_a_sentence(
    saved: tuple[Path, str], change: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    _weights(saved[0], change)
    with pytest.raises(artifact.ModelInvalid, match=words):
        artifact.load(saved[0])


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(
    saved: tuple[Path, str], tokenizer: Tokenizer
) -> None:
    library = Library.from_str(tokenizer.to_json())
    library.add_tokens(["lambda"])
    (saved[0] / artifact.TOKENIZER_FILE).write_text(library.to_str())
    with pytest.raises(artifact.ModelInvalid, match="ids must stay below that"):
        artifact.load(saved[0])


def test_a_tokenizer_without_a_first_token_is_refused(
    saved: tuple[Path, str], tokenizer: Tokenizer
) -> None:
    stored = json.loads(tokenizer.to_json())
    stored["post_processor"] = None
    (saved[0] / artifact.TOKENIZER_FILE).write_text(json.dumps(stored))
    with pytest.raises(artifact.ModelInvalid, match="empty text no id"):
        artifact.load(saved[0])


def test_a_model_that_loads_and_gives_no_numbers_never_becomes_ready(
    saved: tuple[Path, str],
) -> None:
    """Weights that are finite and too large: only running them shows it."""
    _weights(
        saved[0], lambda t: t.update({"heads.exits.1.weight": t["heads.exits.1.weight"] + 3e38})
    )
    runner = Runner(artifact.load(saved[0]))
    with pytest.raises(artifact.ModelInvalid, match="gives NaN or Inf at exit 1|gives NaN or Inf"):
        warm_up(runner, [1, 2])


def test_a_sound_model_passes_its_trial(saved: tuple[Path, str]) -> None:
    warm_up(Runner(artifact.load(saved[0])), [1, 2, 8])
