"""Volumes as folders: atomic sets of files, tokens renewed in time, credentials that expire."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimwheel_local.node.environment import ConfigError, Objects
from trimwheel_local.node.volumes import ACCOUNT_MOUNT, Token, Volumes, references, write_set

LIFE = 600


class Mint:
    """Hands out numbered tokens by a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.wishes: list[tuple[str, int]] = []

    async def __call__(self, audience: str, life: int) -> Token:
        self.wishes.append((audience, life))
        return Token(f"token-{len(self.wishes)}", self.now, self.now + life)


@pytest.fixture
def mint() -> Mint:
    return Mint()


@pytest.fixture
def volumes(tmp_path: Path, mint: Mint) -> Volumes:
    authority = tmp_path / "ca.crt"
    authority.write_text("CA")
    folder = tmp_path / "pod"
    folder.mkdir()
    return Volumes(folder, "https://127.0.0.1:1", authority, mint, clock=lambda: mint.now)


def pod(*volumes: dict[str, Any], mounts: list[dict[str, str]] | None = None) -> dict[str, Any]:
    container = {"name": "main", "volumeMounts": mounts or []}
    metadata = {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}}
    spec = {"volumes": list(volumes), "containers": [container]}
    return {"metadata": metadata, "spec": spec, "status": {}}


def account_pod() -> dict[str, Any]:
    token = {"path": "token", "expirationSeconds": LIFE}
    sources = [
        {"serviceAccountToken": token},
        {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    mounts = [{"name": "api", "mountPath": ACCOUNT_MOUNT}]
    return pod({"name": "api", "projected": {"sources": sources}}, mounts=mounts)


CA = Objects({("configMap", "ca"): {"ca.crt": b"CA"}})


async def test_a_projected_volume_holds_token_authority_and_namespace(volumes: Volumes) -> None:
    await volumes.refresh(account_pod(), CA)
    folder = volumes.path("api")
    assert (folder / "token").read_text() == "token-1"
    assert (folder / "ca.crt").read_text() == "CA"
    assert (folder / "namespace").read_text() == "n"
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600


async def test_a_token_is_renewed_at_80_percent_of_its_life_and_not_before(
    volumes: Volumes, mint: Mint
) -> None:
    await volumes.refresh(account_pod(), CA)
    mint.now += 0.8 * LIFE - 1
    await volumes.refresh(account_pod(), CA)
    assert (volumes.path("api") / "token").read_text() == "token-1"
    mint.now += 1
    await volumes.refresh(account_pod(), CA)
    assert (volumes.path("api") / "token").read_text() == "token-2"
    assert mint.wishes == [("", LIFE), ("", LIFE)]


async def test_clients_come_back_after_the_renewal_and_before_the_end(
    volumes: Volumes, mint: Mint
) -> None:
    await volumes.refresh(account_pod(), CA)
    execute = yaml.safe_load(volumes.kubeconfig.read_text())["users"][0]["user"]["exec"]
    command = [execute["command"], *execute["args"]]
    credential = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert credential["kind"] == "ExecCredential"
    assert credential["status"]["token"] == "token-1"
    # The mint's clock starts at 1970-01-12T13:46:40Z; 90 % of 600 s later is:
    assert credential["status"]["expirationTimestamp"] == "1970-01-12T13:55:40Z"


async def test_a_changed_config_map_replaces_all_files_at_once(volumes: Volumes) -> None:
    manifest = pod({"name": "cfg", "configMap": {"name": "c"}})
    await volumes.refresh(manifest, Objects({("configMap", "c"): {"a": b"1", "b": b"1"}}))
    folder = volumes.path("cfg")
    held = os.open(folder / "a", os.O_RDONLY)
    await volumes.refresh(manifest, Objects({("configMap", "c"): {"b": b"2", "c": b"2"}}))
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {"b", "c"}
    assert (folder / "b").read_bytes() == b"2"
    assert os.read(held, 9) == b"1", "who has the old file open still reads the old file"
    os.close(held)
    assert len(list(folder.glob("..*"))) == 2, "one set of files, and the link to it"


async def test_items_choose_keys_and_modes(volumes: Volumes) -> None:
    items = [{"key": "k", "path": "deep/er", "mode": 0o400}]
    manifest = pod({"name": "s", "secret": {"secretName": "x", "items": items}})
    await volumes.refresh(manifest, Objects({("secret", "x"): {"k": b"v", "other": b"w"}}))
    found = volumes.path("s") / "deep" / "er"
    assert found.read_bytes() == b"v"
    assert stat.S_IMODE(found.stat().st_mode) == 0o400
    assert not (volumes.path("s") / "other").exists()


@pytest.mark.parametrize(
    ("source", "objects", "message"),
    [
        ({"name": "gone"}, {}, 'configMap "gone" not found'),
        (
            {"name": "c", "items": [{"key": "k", "path": "p"}]},
            {("configMap", "c"): {}},
            'configMap "c" has no key "k"',
        ),
    ],
)
async def test_what_is_missing_is_named(
    volumes: Volumes, source: dict[str, Any], objects: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await volumes.refresh(pod({"name": "v", "configMap": source}), Objects(objects))
    optional = pod({"name": "v", "configMap": {**source, "optional": True}})
    await volumes.refresh(optional, Objects(objects))
    assert volumes.path("v").is_dir()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_a_file_cannot_leave_its_volume(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="leaves its volume"):
        write_set(tmp_path, {name: (b"", 0o644)})


def test_mounts_map_to_folders_and_sub_paths(volumes: Volumes) -> None:
    mounts = [
        {"name": "a", "mountPath": "/a/"},
        {"name": "a", "mountPath": "/b", "subPath": "sub"},
    ]
    found = volumes.mounts({"volumeMounts": mounts})
    assert found == {"/a": str(volumes.path("a")), "/b": str(volumes.path("a") / "sub")}


def test_references_of_volumes_are_found_in_projections_too() -> None:
    manifest = pod(
        {"name": "1", "secret": {"secretName": "s"}},
        {"name": "2", "projected": {"sources": [{"configMap": {"name": "c"}}]}},
        {"name": "3", "emptyDir": {}},
    )
    assert list(references(manifest)) == [("secret", "s"), ("configMap", "c")]
