"""Clusters of different index never share an address, a port or a folder."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.errors import InvalidInput
from trimwheel_local.layout import LOOPBACK, Layout, cache_folder
from trimwheel_local.names import MAX_INDEX

INDEX = st.integers(0, MAX_INDEX)


@given(INDEX, INDEX)
def test_two_clusters_have_nothing_in_common(one: int, two: int) -> None:
    first, second = Layout(Path("/s"), one), Layout(Path("/s"), two)
    ranges = [first.service_range, first.pod_range]
    assert not ranges[0].overlaps(ranges[1])
    if one != two:
        others = [second.service_range, second.pod_range]
        assert not any(mine.overlaps(theirs) for mine in ranges for theirs in others)
        assert {first.api_port, first.kubelet_port}.isdisjoint(
            {second.api_port, second.kubelet_port}
        )
        assert first.root != second.root


@given(INDEX)
def test_everything_lies_in_the_loopback_block_and_below_ephemeral_ports(index: int) -> None:
    layout = Layout(Path("/s"), index)
    assert layout.service_range.subnet_of(LOOPBACK)
    assert layout.pod_range.subnet_of(LOOPBACK)
    assert LOOPBACK.subnet_of(ipaddress.IPv4Network("127.0.0.0/8"))
    assert layout.kubelet_port < 32768


@pytest.mark.parametrize("index", [-1, MAX_INDEX + 1])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(InvalidInput, match=f"index: must be 0 to {MAX_INDEX}, but got {index}"):
        Layout(Path("/s"), index)


def test_a_socket_below_a_pods_folder_fits_into_its_address() -> None:
    layout = Layout(Path("/home/somebody/code/trimwheel/.trimwheel"), 9)
    socket = layout.pods / ("x" * 13) / "t" / "pymp-abcdefgh" / "listener-abcdefgh"
    assert len(str(socket)) < 108


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/trimwheel")
    monkeypatch.setenv("TRIMWHEEL_CACHE", "/own")
    assert cache_folder() == Path("/own")
