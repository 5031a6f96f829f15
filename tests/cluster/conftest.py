"""Tests below need a real API server: the run's one cluster, and a namespace each."""

from __future__ import annotations

from trimwheel_local.testing import admin, as_user, cluster, namespace

__all__ = ["admin", "as_user", "cluster", "namespace"]
