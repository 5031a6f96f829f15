"""The order of a whole run: what needs no cluster first, then what does, the story last."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """So a mistake shows within seconds, and no unit test shares the machine with a cluster."""
    items.sort(
        key=lambda item: [bool(item.get_closest_marker(name)) for name in ("e2e", "cluster")]
    )
