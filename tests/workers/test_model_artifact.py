"""The artifact on disk: whole, checked before it is parsed, and the same model after a round
trip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trimwheel_api.errors import DigestMismatch
from trimwheel_workers.model import artifact
from trimwheel_workers.model.config import EncoderConfig
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
