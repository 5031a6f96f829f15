"""Generated files are current, and the import contracts hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.repo.repository import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    "generator",
    ["trimwheel_api.generate", "trimwheel_dashboards.generate", "trimwheel_cli.generate_docs"],
)
def test_generated_files_are_current(generator):
    done = subprocess.run(
        [sys.executable, "-m", generator, "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"run make generate: {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_packages_import_only_what_they_may():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
