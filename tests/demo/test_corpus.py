"""The corpus: real source, no leak between pools, drift that nobody trained on, honest draws."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from trimwheel_demo import corpus


@pytest.fixture(scope="module")
def built() -> corpus.Corpus:
    return corpus.build(0)


def test_about_twenty_classes_have_snippets_in_every_labelled_pool(built: corpus.Corpus) -> None:
    assert 18 <= len(built.classes) <= 24
    for pool in ("train", "score", "heldout"):
        assert {s.label for s in built.pools[pool]} == set(built.classes)


def test_no_text_is_in_two_pools_or_has_two_labels(built: corpus.Corpus) -> None:
    counts = Counter(s.text for pool in built.pools.values() for s in pool)
    assert [text for text, count in counts.items() if count > 1] == []


def test_snippets_are_two_lines(built: corpus.Corpus) -> None:
    assert {s.text.count("\n") for pool in built.pools.values() for s in pool} == {1}


def test_base_traffic_is_code_without_comment_lines(built: corpus.Corpus) -> None:
    lines = [line for s in built.pools["heldout"] for line in s.text.split("\n")]
    assert [line for line in lines if line.startswith("#")] == []


def test_the_drift_is_comments_without_labels(built: corpus.Corpus) -> None:
    drift = built.pools["comments"]
    assert len(drift) > 2000
    assert all(line.startswith("#") for s in drift for line in s.text.split("\n"))
    assert {s.label for s in drift} == {None}


def test_the_seed_decides_the_split_and_nothing_else_does(built: corpus.Corpus) -> None:
    assert corpus.build(0).digest() == built.digest()
    assert corpus.build(1).digest() != built.digest()


def test_pools_are_large_and_no_class_dominates(built: corpus.Corpus) -> None:
    assert len(built.pools["train"]) > 20_000 and len(built.pools["heldout"]) > 5_000
    assert built.majority_share("heldout") < 0.1


def test_draws_follow_the_mix_and_repeat_for_a_seed(built: corpus.Corpus) -> None:
    mix = {"heldout": 3.0, "comments": 1.0}
    draws = list(islice(built.draw(mix, seed=4), 4000))
    assert draws == list(islice(built.draw(mix, seed=4), 4000))
    share = sum(s.label is None for s in draws) / len(draws)
    assert abs(share - 0.25) < 0.035  # five standard deviations


@pytest.mark.parametrize("mix", [{}, {"nowhere": 1.0}, {"heldout": 0.0}, {"heldout": -1.0}])
def test_a_mix_that_names_no_traffic_is_refused(
    built: corpus.Corpus, mix: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="mix must give weights of known pools"):
        next(built.draw(mix, seed=0))


def test_a_python_without_its_source_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found 0 usable packages .* libpython3-stdlib"):
        corpus.build(0, tmp_path)


@pytest.mark.slow
def test_the_distributions_own_python_has_enough_source_too() -> None:
    root = Path("/usr/lib/python3.11")
    if not (root / "asyncio").is_dir():
        pytest.skip("no distribution Python here")
    assert len(corpus.build(0, root).classes) >= 18
