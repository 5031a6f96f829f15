"""Fetching a model: from allowed addresses alone, and the named bytes alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trimwheel_api.errors import DigestMismatch, SpecInvalid, Unavailable
from trimwheel_workers.fetch import allowed_prefixes, check_allowed, fetch_model
from trimwheel_workers.model.artifact import load

PREFIXES = ("models:/", "s3://models", "file:///srv/models/")
ALLOWED = ("models:/demo/1", "models:/demo@stable", "s3://models/a", "s3://models",
           "file:///srv/models/a/b")  # fmt: skip
REFUSED = {
    "another scheme": "gs://models/a",
    "a neighbour with the same beginning": "s3://models-of-others/a",
    "climbing out": "file:///srv/models/../secrets",
    "climbing out of MLflow": "models:/../x",
    "an empty part": "s3://models//etc",
    "a bare path": "/srv/models/a",
}


@pytest.mark.parametrize("uri", ALLOWED)
def test_addresses_below_a_prefix_are_allowed(uri: str) -> None:
    check_allowed(uri, PREFIXES)


@pytest.mark.parametrize("uri", REFUSED.values(), ids=REFUSED.keys())
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        check_allowed(uri, PREFIXES)
    assert caught.value.field == "spec.model.uri" and uri in str(caught.value)


def test_without_prefixes_nothing_is_allowed() -> None:
    with pytest.raises(SpecInvalid, match="no prefix is allowed"):
        check_allowed("s3://models/a", allowed_prefixes({}))
    assert allowed_prefixes({"TRIMWHEEL_ALLOWED_PREFIXES": "a:/, b:/,"}) == ("a:/", "b:/")


def test_the_artifact_arrives_and_loads(tiny_model: tuple[Path, str], tmp_path: Path) -> None:
    folder, digest = tiny_model
    nested = tmp_path / "store" / "run" / "encoder"
    shutil.copytree(folder, nested)
    uri = f"file://{tmp_path}/store/run"
    fetch_model(uri, digest, tmp_path / "to", (f"file://{tmp_path}/store",))
    assert load(tmp_path / "to", digest).digest == digest
    assert sorted(os.listdir(tmp_path / "to")) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_other_bytes_are_refused_and_leave_nothing(
    tiny_model: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = tiny_model
    with pytest.raises(DigestMismatch, match="spec.model.digest"):
        fetch_model(f"file://{folder}", "sha256:" + "0" * 64, tmp_path / "to", ("file:///",))
    assert os.listdir(tmp_path / "to") == []


def test_an_address_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme").write_text("")
    with pytest.raises(SpecInvalid, match="must hold one model.safetensors"):
        fetch_model(f"file://{tmp_path}/empty", "sha256:0", tmp_path / "to", ("file:///",))


def test_a_store_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        fetch_model(f"file://{tmp_path}/nowhere", "sha256:0", tmp_path / "to", ("file:///",))


def test_fetching_a_model_needs_no_torch(tiny_model: tuple[Path, str], tmp_path: Path) -> None:
    """The init step copies and compares bytes: torch would cost it seconds and half a gigabyte."""
    folder, digest = tiny_model
    arguments = ["fetch", "--uri", f"file://{folder}", "--digest", digest, "--to", str(tmp_path)]
    program = (
        "import sys; from trimwheel_workers.__main__ import main;"
        f"main({arguments!r}, standalone_mode=False);"
        "sys.exit(', '.join({'torch', 'numpy', 'safetensors'} & sys.modules.keys()) or None)"
    )
    environment = os.environ | {"TRIMWHEEL_ALLOWED_PREFIXES": "file:///"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_mlflow_addresses_resolve_and_refusals_are_one_sentence(
    tiny_model: tuple[Path, str], tmp_path: Path
) -> None:
    import mlflow

    folder, digest = tiny_model
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    # Not `set_tracking_uri`: it writes the variable for every test that follows.
    client = mlflow.MlflowClient(tracking_uri=tracking)
    experiment = client.create_experiment("e", artifact_location=f"file://{tmp_path}/artifacts")
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.create_registered_model("demo")
    client.create_model_version("demo", f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias("demo", "stable", "1")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking, "TRIMWHEEL_ALLOWED_PREFIXES": "models:/",
    }  # fmt: skip

    def fetch(uri: str, to: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trimwheel_workers", "fetch", "--uri", uri, "--digest", digest,
             "--to", str(tmp_path / to)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    for uri, to in (("models:/demo/1", "by-version"), ("models:/demo@stable", "by-alias")):
        done = fetch(uri, to)
        assert done.returncode == 0, done.stderr
        assert load(tmp_path / to, digest).digest == digest
    refused = fetch("s3://elsewhere/x", "never")
    assert refused.returncode == 1 and "must lie below one of models:/" in refused.stderr
    assert "Traceback" not in refused.stderr
