"""Where things are: source roots, packages, tests, and what each module says of itself."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter

import pytest
from tests.repo.repository import ROOT, SOURCE_ROOTS, modules, packages, project, tracked, tree

LONGEST_FILE = 650
"""A hard stop; the aim is 300. A longer file is two files."""
OUTPUT_HELPERS = {"operator/trimwheel_console"}


def test_source_roots_hold_packages_only():
    """A package named operator would shadow the standard library's module."""
    for root in SOURCE_ROOTS:
        loose = [path for path in tracked() if path.parts[0] == root and len(path.parts) == 2
                 and path.suffix == ".py"]  # fmt: skip
        assert loose == [], root
    import operator

    assert "trimwheel" not in (operator.__file__ or "")


def test_every_package_is_built_linted_and_covered():
    named = sorted(path.name for path in packages())
    built = project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(built) == sorted(str(path) for path in packages())
    assert sorted(project()["tool"]["importlinter"]["root_packages"]) == named
    assert sorted(project()["tool"]["coverage"]["run"]["source_pkgs"]) == named
    warned = project()["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert sorted(line.removeprefix("error:::") for line in warned
                  if line.startswith("error:::")) == named  # fmt: skip


def test_every_module_opens_with_what_it_does():
    opening = re.compile(r'(#.*\n|\s)*"""[^\s"]')
    texts = {str(path): (ROOT / path).read_text() for path in modules()}
    assert [path for path, text in texts.items() if text.strip() and not opening.match(text)] == []


def test_nothing_prints_past_the_output_helpers():
    def prints(path):
        if "print(" not in (ROOT / path).read_text():
            return False  # parsing is slow
        calls = (node.func for node in ast.walk(tree(path))
                 if isinstance(node, ast.Call))  # fmt: skip
        return any(isinstance(call, ast.Name) and call.id == "print" for call in calls)

    guilty = [str(path) for path in modules()
              if str(path.parent) not in OUTPUT_HELPERS and prints(path)]  # fmt: skip
    assert guilty == []


def test_no_file_grows_without_end():
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in modules()}
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_modules_do_not_shadow_the_standard_library():
    """Within a package a name may repeat one of the library's; a source root may not."""
    tops = {path.name for path in packages()}
    assert not tops & set(sys.stdlib_module_names)


def test_test_files_have_names_of_their_own_and_no_packages():
    tests = [path for path in tracked() if path.parts[0] == "tests"]
    assert not [path for path in tests if path.name == "__init__.py"]
    twice = [name for name, count in
             Counter(path.name for path in tests if path.name.startswith("test_")).items()
             if count > 1]  # fmt: skip
    assert twice == []


@pytest.mark.parametrize("marker", ["cluster", "e2e", "slow"])
def test_markers_are_declared(marker):
    declared = project()["tool"]["pytest"]["ini_options"]["markers"]
    assert any(re.match(rf"{marker}: .+", line) for line in declared)


def test_tests_are_named_as_sentences():
    """Two words at least after `test_`: a name that says what holds."""
    short = []
    for path in tracked():
        if path.parts[0] == "tests" and path.name.startswith("test_") and path.suffix == ".py":
            named = re.findall(r"^ *(?:async )?def (test_\w+)", (ROOT / path).read_text(), re.M)
            assert named, f"{path} has no test"
            short += [f"{path}: {name}" for name in named if name.count("_") < 2]
    assert short == []
