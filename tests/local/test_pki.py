"""Certificates name the right users, and files are private."""

from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from trimwheel_local import pki
from trimwheel_local.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path, 3)
    pki.ensure_pki(found)
    return found


def names(certificate: bytes) -> tuple[str, list[str]]:
    subject = x509.load_pem_x509_certificate(certificate).subject
    [user] = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(user.value), [str(group.value) for group in groups]


def test_a_users_kubeconfig_carries_name_groups_and_the_clusters_address(layout: Layout) -> None:
    path = pki.write_kubeconfig(layout, "alice", ["reviewers", "operators"])
    document = yaml.safe_load(path.read_text())
    data = document["users"][0]["user"]["client-certificate-data"]
    assert names(base64.b64decode(data)) == ("alice", ["reviewers", "operators"])
    assert document["clusters"][0]["cluster"]["server"] == layout.server
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_node_is_the_user_that_the_node_authorizer_knows(layout: Layout) -> None:
    found = names((layout.pki / "node.crt").read_bytes())
    assert found == ("system:node:local", ["system:nodes"])


def test_keys_are_private_and_survive_a_second_call(layout: Layout) -> None:
    before = {path.name: path.read_bytes() for path in layout.pki.iterdir()}
    pki.ensure_pki(layout)
    assert {path.name: path.read_bytes() for path in layout.pki.iterdir()} == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in layout.pki.iterdir()} == {0o600}


def test_a_certificate_about_to_expire_is_renewed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (layout.pki / "apiserver.crt").read_bytes()
    authority = (layout.pki / "ca.crt").read_bytes()

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + pki.LEAF_LIFE - timedelta(days=1)

    monkeypatch.setattr(pki, "datetime", Later)
    pki.ensure_pki(layout)
    assert (layout.pki / "apiserver.crt").read_bytes() != before
    assert (layout.pki / "ca.crt").read_bytes() == authority


def test_the_api_servers_certificate_covers_how_it_is_reached(layout: Layout) -> None:
    found = x509.load_pem_x509_certificate((layout.pki / "apiserver.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", str(layout.kubernetes_ip)}
