"""Bearer tokens and TLS: who is let in, as whom, and what a broken Secret does."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.workers.served import made_worker

from trimwheel_api.errors import RequestInvalid, SetupFailed
from trimwheel_workers.front.access import Tokens
from trimwheel_workers.front.app import make_app
from trimwheel_workers.front.tls import Certificate

INFER = "/v2/models/m/infer"
TOKEN = "a-long-enough-token"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tokens"
    (made / "..data").mkdir(parents=True)  # as the kubelet mounts a Secret
    (made / "team-a").write_text(f"{TOKEN}\n")
    (made / "team-b").write_text("another-long-token")
    (made / "team-c").write_text("short")
    return made


REFUSED = {
    "no header": None,
    "no scheme": TOKEN,
    "another scheme": f"Basic {TOKEN}",
    "no token": "Bearer ",
    "an unknown token": "Bearer not-a-token-of-anyone",
    "a part of a token": f"Bearer {TOKEN[:-1]}",
    "a token that is too short to be let in": "Bearer short",
    "a file that is none of the Secret's": "Bearer ..data",
}


@pytest.mark.parametrize("path", [INFER, "/v2/models/m", "/v2/models/x", "/v2/models/m/versions/7"])
@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED.keys())
async def test_without_a_token_nobody_is_let_in(
    folder: Path, header: str | None, path: str, make: Any
) -> None:
    worker = made_worker(tokens_path=str(folder))
    transport = httpx.ASGITransport(app=make_app(worker))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        headers = {"authorization": header} if header else {}
        how: dict[str, Any] = {"json": make.body("x")} if path == INFER else {}
        answer = await client.request("POST" if how else "GET", path, headers=headers, **how)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["details"]["field"] == "header authorization"
        assert TOKEN not in answer.text and "not-a-token" not in answer.text
        assert (await client.get("/v2/health/ready")).status_code == 200, "probes need none"


async def test_a_token_is_its_subject_whatever_the_address(folder: Path, make: Any) -> None:
    worker = made_worker(tokens_path=str(folder))
    transport = httpx.ASGITransport(app=make_app(worker))
    seen: list[str] = []
    infer = worker.infer

    async def noted(texts: Any, caller: Any) -> Any:
        seen.append(caller.identity)
        return await infer(texts, caller)

    worker.infer = noted  # type: ignore[method-assign]
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        for scheme in ("Bearer", "bearer"):
            headers = {"authorization": f"{scheme} {TOKEN}", "x-forwarded-for": "6.6.6.6"}
            answer = await client.post(INFER, json=make.body("x"), headers=headers)
            assert answer.status_code == 200
    assert seen == ["team-a", "team-a"]


def test_tokens_are_read_again_and_a_missing_folder_lets_nobody_in(folder: Path) -> None:
    now = [0.0]
    tokens = Tokens(folder, lambda: now[0])
    assert tokens.subject(f"Bearer {TOKEN}") == "team-a"
    (folder / "team-a").write_text("a-new-and-long-token")
    assert tokens.subject(f"Bearer {TOKEN}") == "team-a"
    now[0] += 5
    assert tokens.subject("Bearer a-new-and-long-token") == "team-a"
    with pytest.raises(RequestInvalid):
        tokens.subject(f"Bearer {TOKEN}")
    for path in folder.glob("team-*"):
        path.unlink()
    now[0] += 5
    with pytest.raises(RequestInvalid):
        tokens.subject("Bearer a-new-and-long-token")
    with pytest.raises(RequestInvalid):
        Tokens(folder / "absent").subject(f"Bearer {TOKEN}")


def certificate(folder: Path, name: str = "worker.test") -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key", "both", "a key that fits"])
def test_a_broken_tls_secret_is_a_sentence(tmp_path: Path, missing: str) -> None:
    certificate(tmp_path / "tls")
    certificate(tmp_path / "other")
    if missing == "a key that fits":
        os.replace(tmp_path / "other" / "tls.key", tmp_path / "tls" / "tls.key")
    else:
        for name in ("tls.crt", "tls.key") if missing == "both" else (missing,):
            (tmp_path / "tls" / name).unlink()
    with pytest.raises(SetupFailed, match=r"must hold tls\.crt and tls\.key"):
        Certificate(tmp_path / "tls")


@pytest.mark.slow
def test_a_worker_speaks_tls_and_asks_for_tokens(
    start_worker: Callable[..., Any], make: Any, folder: Path, tmp_path: Path
) -> None:
    from trimwheel_api.policy import DENSE

    tls = tmp_path / "tls"
    certificate(tls, "localhost")
    worker = start_worker(
        make.assignment(1, DENSE), wait=False, tlsPath=str(tls), tokensPath=str(folder)
    )
    worker.wait(lambda: worker.probe("/v2/health/ready").status_code == 200)
    trusted = ssl.create_default_context(cafile=str(tls / "tls.crt"))
    with httpx.Client(base_url=f"https://localhost:{worker.port}", verify=trusted) as client:
        assert client.post(INFER, json=make.body("x")).status_code == 401
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert client.post(INFER, json=make.body("x"), headers=headers).status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.post(worker.url, json=make.body("x"))
