"""Which arm a request belongs to, and whether it is audited: keyed hashes in plain Python.

Workers call `cohort` once a request; tests and `trimwheel explain` recompute it. A ramp only ever
adds cohorts to the candidate, so nobody flips back while the weight grows.
"""

from __future__ import annotations

from hashlib import blake2b

COHORTS = 10_000
"""Basis points: one cohort is .01 % of the keys."""
_UNIT = float(2**64)


def cohort(key: str, salt: str) -> int:
    """Cohort of a session key in [0, 10000) under a rollout's salt (at most 64 bytes)."""
    digest = blake2b(key.encode(), key=salt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % COHORTS


def in_candidate(key: str, salt: str, weight_basis_points: int) -> bool:
    """Whether the candidate serves this key at this weight."""
    return cohort(key, salt) < weight_basis_points


def audit_score(server_id: str, key: str) -> float:
    """Uniform number in [0, 1) of a server-made id; the request is audited iff it is below q.

    Depends on nothing that a client can choose, so an attacker cannot steer clear of audits.
    """
    digest = blake2b(server_id.encode(), key=key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _UNIT
