"""What must not be in the repository: local paths, registry addresses, unpinned dependencies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.repo.repository import ROOT, project, tracked

REGISTRIES = re.compile(
    r"\b(pypi\.org|pythonhosted\.org|proxy\.golang\.org|sum\.golang\.org|goproxy\.\w+|npmjs\.\w+|"
    r"docker\.io|ghcr\.io|quay\.io|gcr\.io|registry\.k8s\.io|registry\.npmjs)\b"
)
LOCAL = re.compile(r"(?<![\w.$}/-])/(home/(?!somebody)|root/|Users/|work/)[a-z]\w*")
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PINNED = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[\w,-]+\])?==\S+( ;.*)? \\$")
THIS = Path(__file__).relative_to(ROOT)


def _texts():
    for path in tracked():
        if path == THIS or path.suffix in (".png", ".svg", ".parquet", ".safetensors"):
            continue
        try:
            yield path, (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue


def test_no_file_names_a_path_of_somebodys_machine():
    found = [f"{path}: {hit[0]}" for path, text in _texts() if (hit := LOCAL.search(text))]
    assert found == []


def test_no_file_names_a_package_registry():
    """Mirrors and indexes are the reader's to configure."""
    found = [f"{path}: {hit[0]}" for path, text in _texts() if (hit := REGISTRIES.search(text))]
    assert found == []


def test_there_is_a_lock_file_for_every_deployable():
    names = {path.stem for path in LOCKS}
    assert {"operator", "workers", "pipelines", "dev", "bootstrap"} <= names


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_file_pins_with_hashes_and_holds_no_address(lock):
    text = lock.read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    entries = [entry for entry in entries if not entry.startswith("#")]
    assert entries
    for entry in entries:
        first, *hashes = entry.splitlines()
        assert PINNED.match(first), first
        hashes = [line for line in hashes if not line.strip().startswith("#")]
        assert hashes, first
        assert all(re.match(r" +--hash=sha256:[0-9a-f]{64}( \\)?$", line) for line in hashes), first


@pytest.mark.parametrize("extra", ["operator", "workers", "pipelines"])
def test_a_lock_file_covers_its_extra(extra):
    locked = {
        re.split(r"[\[=]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "requirements" / f"{extra}.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {re.split(r"[\[<>=~! ]", one)[0].lower().replace("_", "-")
              for one in project()["project"]["optional-dependencies"][extra]}  # fmt: skip
    assert wanted - {"trimwheel"} <= locked


def test_every_dependency_is_bounded_below():
    groups = project()["project"]["optional-dependencies"]
    named = [
        *project()["project"]["dependencies"],
        *[one for each in groups.values() for one in each],
    ]
    free = [
        one for one in named if not re.search(r">=|==", one) and not one.startswith("trimwheel")
    ]
    assert free == []


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[Unreleased\]$|^## \[\d+\.\d+\.\d+\]", text, re.MULTILINE)
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_continuous_integration_runs_make_test_and_nothing_else():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines()
             if line and not line.startswith(("#", "set ", "cd "))]  # fmt: skip
    assert lines == ["make test"]
    verbs = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.removeprefix("make ") for line in lines} <= set(verbs)


def test_every_test_is_run_by_a_verb_and_faults_by_none_but_their_own():
    """`make test` ends with the first story; what takes services away is a verb apart."""
    text = (ROOT / "Makefile").read_text()
    assert '"(cluster or e2e) and not faults"' in text and "pytest -m faults" in text
    marked = [path.name for path in (ROOT / "tests").rglob("test_*.py")
              if "pytest.mark.faults" in path.read_text() and path.name != THIS.name]  # fmt: skip
    assert marked == ["test_story_outages.py"]
