"""Writes the CRDs into the chart: `python -m trimwheel_api.generate [--check]`.

Called by `make generate`, and with `--check` by the tests: it then writes nothing, and exits 1 when
a file is not what the kinds say. Needs PyYAML, which the contract itself does not import; it is
imported here alone. What a CRD contains is decided in `trimwheel_api.crd`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from trimwheel_api import crd

CRD_FOLDER = Path("charts/trimwheel/templates/crds")
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
    parser.add_argument("--folder", type=Path, default=root / CRD_FOLDER, help="where the CRDs are")
    options = parser.parse_args(arguments)
    if not options.check:
        write(options.folder)
        return 0
    differences = stale(options.folder)
    for sentence in differences:
        sys.stderr.write(f"{options.folder / sentence}; run `make generate`\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
