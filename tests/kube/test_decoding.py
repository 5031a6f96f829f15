"""Answers with an object that somebody nested deeper than Python's parser goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_kube.decoding import LEFT_OUT, cut, decode, is_deeper

TRICKY = st.text(alphabet='[]{}",:\\ aä', max_size=8)
JSON = st.recursive(
    TRICKY | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TRICKY, inner, max_size=3),
    max_leaves=25,
)


def cut_by_hand(value: Any, most: int) -> Any:
    """What `cut` shall do, written as a recursion."""
    if isinstance(value, (dict, list)) and most == 0:
        return json.loads(LEFT_OUT)
    if isinstance(value, dict):
        return {key: cut_by_hand(each, most - 1) for key, each in value.items()}
    if isinstance(value, list):
        return [cut_by_hand(each, most - 1) for each in value]
    return value


@given(value=JSON, most=st.integers(1, 4), compact=st.booleans())
def test_what_is_cut_is_what_a_recursion_would_cut(value: Any, most: int, compact: bool) -> None:
    text = json.dumps(value, ensure_ascii=compact).encode()
    assert json.loads(cut(text, most)) == cut_by_hand(value, most)


@given(value=JSON, most=st.integers(0, 4))
def test_depth_is_that_of_a_recursion(value: Any, most: int) -> None:
    def depth(one: Any) -> int:
        if not isinstance(one, (dict, list)):
            return 0
        inner = one.values() if isinstance(one, dict) else one
        return 1 + max(map(depth, inner), default=0)

    assert is_deeper(value, most) is (depth(value) > most)


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ('[{"]":', "}]")])
@pytest.mark.parametrize("levels", [10, 990, 1_200, 9_000])
def test_a_list_with_one_object_of_any_depth_has_the_others(
    opening: str, closing: str, levels: int
) -> None:
    deep = opening * levels + "1" + closing * levels
    text = f'{{"items": [{{"a": {deep}}}, {{"b": "[[{{"}}]}}'
    for found in (decode(text), decode(text.encode())):
        assert found["items"][1] == {"b": "[[{"}


@pytest.mark.parametrize("text", ["[" * 2_000, '{"a":' * 2_000, "[" * 2_000 + "]" * 1_999, "<a>"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)
