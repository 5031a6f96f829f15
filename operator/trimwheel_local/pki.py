"""Certificates and kubeconfigs of one cluster.

A cluster has its own authority. From it come the API server's and the node's serving
certificates and one client certificate per component; `write_kubeconfig` mints more for named
people, so that RBAC and admission see real users. Keys are P-256: small, and quick to make.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trimwheel_local.files import private_folder, write_atomic
from trimwheel_local.layout import Layout
from trimwheel_local.names import KUBELET_CLIENT, NODE_NAME

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True)
class Subject:
    """Whom a certificate names: the Kubernetes user and groups, or a server's addresses."""

    user: str
    groups: Sequence[str] = ()
    addresses: Sequence[str] = ()

    @property
    def name(self) -> x509.Name:
        groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in self.groups]
        return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, self.user)])


COMPONENTS: dict[str, Subject] = {
    "admin": Subject("admin", ["system:masters"]),
    "kube-controller-manager": Subject("system:kube-controller-manager"),
    "kube-scheduler": Subject("system:kube-scheduler"),
    "node": Subject(f"system:node:{NODE_NAME}", ["system:nodes"]),
    KUBELET_CLIENT: Subject(KUBELET_CLIENT, ["system:masters"]),
}


@dataclass(frozen=True)
class Authority:
    """A certificate authority; `certificate` is PEM, the key stays in memory."""

    certificate: bytes
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load_or_create(cls, folder: Path) -> Authority:
        key_file, certificate_file = folder / "ca.key", folder / "ca.crt"
        if key_file.exists() and certificate_file.exists():
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey), "only this module writes ca.key"
            return cls(certificate_file.read_bytes(), key)
        key = ec.generate_private_key(ec.SECP256R1())
        name = Subject("trimwheel-local").name
        signed = (
            _builder(name, name, key.public_key(), AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        write_atomic(key_file, key_pem(key))
        write_atomic(certificate_file, _pem(signed))
        return cls(_pem(signed), key)

    def issue(self, subject: Subject) -> tuple[bytes, bytes]:
        """A new key pair for `subject`: (certificate PEM, key PEM). Addresses make it a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.certificate).subject
        usages = ExtendedKeyUsageOID
        use = usages.SERVER_AUTH if subject.addresses else usages.CLIENT_AUTH
        builder = (
            _builder(subject.name, issuer, key.public_key(), LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        )
        if subject.addresses:
            names = [_general_name(address) for address in subject.addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _pem(builder.sign(self.key, hashes.SHA256())), key_pem(key)


def ensure_pki(layout: Layout) -> Authority:
    """Create what is missing or about to expire, and the components' kubeconfigs."""
    folder = private_folder(layout.pki)
    private_folder(layout.kubeconfigs)
    authority = Authority.load_or_create(folder)
    signing = folder / "service-accounts.key"
    if not signing.exists():
        write_atomic(signing, key_pem(ec.generate_private_key(ec.SECP256R1())))
    service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    own = ["127.0.0.1", "localhost", str(layout.kubernetes_ip), *service]
    subjects = {
        **COMPONENTS,
        "apiserver": Subject("kube-apiserver", addresses=own),
        "kubelet": Subject(f"system:node:{NODE_NAME}", addresses=["127.0.0.1", NODE_NAME]),
    }
    for name, subject in subjects.items():
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        if _expires_soon(certificate):
            pem, key_bytes = authority.issue(subject)
            write_atomic(key, key_bytes)
            write_atomic(certificate, pem)
    for name in COMPONENTS:
        pair = (folder / f"{name}.crt").read_bytes(), (folder / f"{name}.key").read_bytes()
        path = layout.kubeconfigs / name
        write_atomic(path, _kubeconfig(layout.server, authority.certificate, name, pair))
    return authority


def write_kubeconfig(
    layout: Layout, user: str, groups: Sequence[str] = (), namespace: str = ""
) -> Path:
    """Mint a client certificate for `user` in `groups`; returns its kubeconfig (0600).

    `namespace` is that of its context: where kubectl looks when a command names none.
    """
    authority = Authority.load_or_create(layout.pki)
    # KUBECONFIG is a list with colons between, and an account's name is full of them.
    path = private_folder(layout.kubeconfigs / "users") / re.sub("[/:]", "_", user)
    pair = authority.issue(Subject(user, groups))
    write_atomic(path, _kubeconfig(layout.server, authority.certificate, user, pair, namespace))
    return path


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SEC 1, the one form that the API server reads a public key from; the mode protects it."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def _kubeconfig(
    server: str, authority: bytes, user: str, pair: tuple[bytes, bytes], namespace: str = ""
) -> bytes:
    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    cluster = {"server": server, "certificate-authority-data": b64(authority)}
    credentials = {"client-certificate-data": b64(pair[0]), "client-key-data": b64(pair[1])}
    context = {"cluster": "trimwheel", "user": user}
    context |= {"namespace": namespace} if namespace else {}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "trimwheel", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "trimwheel", "context": context}],
        "current-context": "trimwheel",
    }
    return yaml.safe_dump(document, sort_keys=False).encode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # A clock that is corrected backwards must not make a new certificate "not yet valid".
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + life)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _expires_soon(path: Path) -> bool:
    if not path.exists():
        return True
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc - datetime.now(UTC) < RENEW_BEFORE
