"""The story shares the run's embedded cluster."""

from __future__ import annotations

from trimwheel_local.testing import admin, as_user, cluster, namespace

__all__ = ["admin", "as_user", "cluster", "namespace"]
