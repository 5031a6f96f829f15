"""What holds for a whole run: its order, and patience on a busy machine."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How fast examples come depends on who else uses the machine; tests of speed measure it themselves.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs no cluster first, then what does, the story last.

    So a mistake shows within seconds, and no unit test shares the machine with a cluster.
    """
    last = ("e2e", "cluster")
    items.sort(key=lambda item: [bool(item.get_closest_marker(name)) for name in last])
