"""Writes CRDs and the models' admission policy into the chart.

`python -m trimwheel_api.generate [--check]`.

Called by `make generate`, and with `--check` by the tests: it then writes nothing, and exits 1 when
a file is not what the kinds say. Needs PyYAML, which the contract itself does not import; it is
imported here alone. What a CRD contains is decided in `trimwheel_api.crd`, what the admission
policy asks in `trimwheel_api.admission_policy`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from trimwheel_api import admission_policy, crd

CRD_FOLDER = Path("charts/trimwheel/templates/crds")
ADMISSION_FILE = Path("charts/trimwheel/templates/admission/models.yaml")
_ADMISSION_HEADER = (
    "# Generated from trimwheel_api.loosening by `make generate`: edit that table.\n"
)
_HEADER = "# Generated from trimwheel_api.kinds by `make generate`: edit the kinds.\n"
_ESCAPED_OPEN = '{{ "{{" }}'


def files() -> dict[str, str]:
    """File name -> content, one file a kind.

    Helm renders everything under `templates/`, so a literal `{{` in a description is escaped.
    """
    return {f"{_plural(manifest)}.yaml": _render(manifest) for manifest in crd.manifests()}


def stale(folder: Path) -> list[str]:
    """What differs between `folder` and `files()`, one sentence each; empty when it is current."""
    wanted = files()
    found = {path.name: path.read_text() for path in sorted(folder.glob("*.yaml"))}
    sentences = [f"{name}: no kind has this file" for name in found.keys() - wanted.keys()]
    sentences += [f"{name}: missing" for name in wanted.keys() - found.keys()]
    both = wanted.keys() & found.keys()
    sentences += [f"{name}: differs from the kinds" for name in both if found[name] != wanted[name]]
    return sorted(sentences)


def admission() -> str:
    """The content of `ADMISSION_FILE`."""
    return _ADMISSION_HEADER + admission_policy.text()


def write(folder: Path) -> None:
    """Make `folder` hold exactly `files()`."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = files()
    for path in folder.glob("*.yaml"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)


class _Dumper(yaml.SafeDumper):
    """Quotes `y` and `n`, which PyYAML leaves plain and Kubernetes' parser reads as booleans."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))


def _plural(manifest: dict[str, Any]) -> str:
    return str(manifest["spec"]["names"]["plural"])


def _render(manifest: dict[str, Any]) -> str:
    text = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return _HEADER + text.replace("{{", _ESCAPED_OPEN)


def main(arguments: list[str] | None = None) -> int:
    """0 when the files are current (or were written), 1 with `--check` when they are not."""
    parser = argparse.ArgumentParser(prog="python -m trimwheel_api.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--folder", type=Path, help="another folder of CRDs, and nothing else")
    options = parser.parse_args(arguments)
    folder = options.folder or root / CRD_FOLDER
    policy = None if options.folder else root / ADMISSION_FILE
    if not options.check:
        write(folder)
        if policy:
            policy.write_text(admission())
        return 0
    differences = [str(folder / sentence) for sentence in stale(folder)]
    if policy and policy.read_text() != admission():
        differences.append(f"{policy}: differs from the table of looser fields")
    for sentence in differences:
        sys.stderr.write(f"{sentence}; run `make generate`\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
