"""Whose records a folder of the store holds, and the end of those whose model was deleted.

The watch loop calls `claim` for each model that there is, once an hour: a small file in the model's
folder names the object's uid, this release's account and when the model was last there.
`delete_abandoned` removes folders that this release claimed and whose model has been gone for
longer than records may outlive it. No claim, somebody else's claim or a claim that cannot be read:
the folder stays, so that two clusters may share a store and nothing is deleted on a guess.

Leaves out age (`retention.purge`) and tenants (`retention.forget`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from trimwheel_api.records import segment_folder
from trimwheel_pipelines.segment_files import answering
from trimwheel_workers.records.segments import deliver

log = logging.getLogger(__name__)

CLAIM_FILE = "owner.json"
_LARGEST_CLAIM = 4096


@dataclass(frozen=True, slots=True)
class Claim:
    """What stands in a model's folder."""

    uid: str
    """Of the AdaptiveModel."""
    account: str
    """uid of the account that the claiming release runs under."""
    seen: float
    """Unix seconds: the model was there then."""
    keep: float
    """Seconds that records may outlive their model."""


def claim(root: str, namespace: str, model: str, owner: Claim) -> None:
    """Write down that a folder is a living model's. Raises Unavailable when the store is away."""
    data = json.dumps(asdict(owner), sort_keys=True).encode()
    deliver(segment_folder(root, namespace, model), CLAIM_FILE, data)


def delete_abandoned(root: str, account: str, living: set[tuple[str, str]], now: float) -> int:
    """Delete the folders of models that are gone for good; returns how many.

    `living`: (namespace, name) of every model, those that cannot be read included. Raises
    Unavailable when the store is away.
    """
    with answering(root):
        system, top = fsspec.url_to_fs(root)
        system.invalidate_cache()
    gone = 0
    for place in _folders(system, str(top), root):
        for folder in _folders(system, place, root):
            if (_name(place), _name(folder)) in living:
                continue
            found = _claim_of(system, folder)
            if found is None or found.account != account:
                continue
            # NaN is no reason to delete anything.
            if not now - found.seen >= found.keep:
                continue
            # The claim goes last: a deletion that stops half-way is found again.
            _delete(system, folder, root)
            gone += 1
            log.info(
                "%s/%s was deleted: its records are deleted, %.1f days later.",
                _name(place), _name(folder), (now - found.seen) / 86_400,
            )  # fmt: skip
    return gone


def _folders(system: Any, folder: str, root: str) -> list[str]:
    try:
        with answering(root):
            entries = system.ls(folder, detail=True)
    except FileNotFoundError:
        return []
    return [str(one["name"]).rstrip("/") for one in entries if one["type"] == "directory"]


def _claim_of(system: Any, folder: str) -> Claim | None:
    try:
        with answering(folder), system.open(f"{folder}/{CLAIM_FILE}", "rb") as stream:
            text = stream.read(_LARGEST_CLAIM)
        document = json.loads(text)
        return Claim(
            uid=str(document["uid"]),
            account=str(document["account"]),
            seen=float(document["seen"]),
            keep=float(document["keep"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s/%s cannot be read, so the folder stays: %s", folder, CLAIM_FILE, error)
        return None


def _delete(system: Any, folder: str, root: str) -> None:
    claim_file = f"{folder}/{CLAIM_FILE}"
    with answering(root):
        system.invalidate_cache()
        for path in system.ls(folder, detail=False):
            if str(path).rstrip("/") != claim_file:
                system.rm(path, recursive=True)
        system.rm(folder, recursive=True)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
