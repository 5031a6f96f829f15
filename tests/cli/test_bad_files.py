"""Over all verbs that take a file: whatever it holds ends in a sentence, and nothing is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cli.test_every_verb import ends
from tests.cli.verbs import VERBS, required

FILES: dict[str, bytes | None] = {
    "missing": None,
    "a folder": None,
    "binary": bytes(range(256)) * 10,
    "empty": b"",
    "truncated": b"apiVersion: v1\nspec: {policy: {exit: {enabled",
    "a list": b"- exit\n- moe\n",
    "text": b"hello",
    "a number": b"7",
    "a huge number": b"moe: {topK: " + b"9" * 5000 + b"}",
    "a large number": b"moe: {topK: " + b"9" * 25 + b"}",
    "nested deep in JSON": b"[" * 100_000,
    "nested deep, closed": b"[" * 5_000 + b"]" * 5_000,
    "nested deep in YAML": b"{a: " * 3_000,
    "ten megabytes": b"a: " + b"x" * 10_000_000,
    "another encoding": "exit: café".encode("latin-1"),
    "UTF-16": "exit: {}".encode("utf-16"),
    "NaN": b'{"moe": {"topK": NaN}}',
    "infinity in YAML": b"moe: {topK: .inf}",
    "a date": b"exit: 2026-11-28",
    "a set": b"exit: !!set {a, b}",
    "Python": b"!!python/object/apply:os.system [id]",
    "a key that is a list": b"? [a]\n: b\n",
    "a key that is a number": b"1: b\n",
    "a key that is null": b"~: b\n",
    "a key given twice": b"exit: {}\nexit: {}\n",
    "an alias to itself": b"a: &a [*a]\n",
    "aliases that multiply": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9))
               for i in range(8)),
    "two documents": b"exit: {}\n---\nexit: {}\n",
    "spec is a list": b"kind: AdaptivePolicy\nspec: []\n",
    "spec is text": b"kind: AdaptivePolicy\nspec: hello\n",
    "policy is a list": b"kind: AdaptivePolicy\nspec: {policy: [1]}\n",
    "policy is null": b"kind: AdaptivePolicy\nspec: {policy: null}\n",
    "true for a number": b"moe: {topK: true}",
    "text for a number": b'moe: {topK: "2"}',
    "a number for true": b"exit: {enabled: 1, thresholds: ['0.5']}",
    "a word for true": b"exit: {enabled: 'yes', thresholds: ['0.5']}",
    "a number for a fraction": b"moe: {routerBlend: 0.5}",
}  # fmt: skip


@pytest.fixture(params=FILES)
def bad(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of each kind, in a folder of its own that is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMWHEEL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("KUBECONFIG", "TRIMWHEEL_MODEL", "TRIMWHEEL_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    path, content = tmp_path / "given", FILES[request.param]
    if request.param == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("verb", ["policy digest", "policy validate"])
def test_a_policy_document_that_is_none_is_refused_in_a_sentence(verb: str, bad: Path) -> None:
    before = _files(bad.parent)
    code, said = ends(verb, str(bad))
    # Whether an empty file is the empty document is the one thing that may be asked about.
    assert code in (1, 2), said
    assert "must" in said or "Input should" in said or "is a directory" in said, said
    assert len(said) < 2000
    code, said = ends(verb, str(bad), "-o", "json")
    assert code in (1, 2)
    assert _files(bad.parent) == before


READS_KUBECONFIG = sorted(
    verb
    for verb, command in VERBS.items()
    if any("--kubeconfig" in param.opts for param in command.params) and verb != "bench rollback"
)


def test_a_kubeconfig_that_is_none_is_refused_in_a_sentence(bad: Path) -> None:
    assert len(READS_KUBECONFIG) == 7
    before = _files(bad.parent)
    # They all connect by one function: each file goes to one of them, so that all are tried.
    verb = READS_KUBECONFIG[list(FILES).index(_kind(bad)) % len(READS_KUBECONFIG)]
    code, said = ends(verb, "--kubeconfig", str(bad), *required(VERBS[verb]))
    assert code == 2, said
    assert "kubeconfig" in said and len(said) < 2000
    assert _files(bad.parent) == before


@pytest.mark.parametrize("variable", ["BAD_POLICY", "TRIMWHEEL_VALUES"])
def test_a_file_that_the_demo_is_given_is_refused_before_anything_starts(
    variable: str, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimwheel_api.errors import InvalidInput
    from trimwheel_demo.settings import Options

    kind = _kind(bad)
    an_object = FILES[kind] is not None and kind.startswith(
        ("spec is", "policy is", "true for", "text for", "a number for", "a word for", "a large")
    )
    if variable == "TRIMWHEEL_VALUES" and an_object and kind != "a large number":
        return  # an object: what it must hold is helm's to say, by the chart's schema
    with pytest.raises(InvalidInput, match=variable):
        Options.from_environment({variable: str(bad)})


BAD_VALUES = {
    "DETACH": ("2", "maybe", "-1", "nan"),
    "SEED": ("-1", "nan", "1e400", "9" * 25, "x", "1.5", "١"),
    "TRIMWHEEL_USE_KUBECONFIG": ("/nowhere", "/etc"),
    "TRIMWHEEL_USE_PROMETHEUS": ("nonsense", "ftp://x", "http://", "http://h:x", "http://[::1"),
    "TRIMWHEEL_USE_MLFLOW": ("nonsense", "databricks", "http://h:99999999"),
    "REPORT": ("/etc", "/etc/passwd/report.json"),
}


@pytest.mark.parametrize(
    ("variable", "value"), [(name, value) for name, each in BAD_VALUES.items() for value in each]
)
def test_a_variable_of_the_demo_is_refused_before_anything_starts(
    variable: str, value: str
) -> None:
    from trimwheel_api.errors import InvalidInput
    from trimwheel_demo.settings import Options

    with pytest.raises(InvalidInput, match=f"^{variable}: must"):
        Options.from_environment({variable: value})


@pytest.mark.parametrize("verb", ["ledger show", "ledger verify"])
def test_an_address_without_a_ledger_is_refused_and_none_is_made(verb: str, bad: Path) -> None:
    before = _files(bad.parent)
    code, said = ends(verb, "--url", f"sqlite:///{bad}")
    assert code in (2, 3), said
    assert "holds" not in said
    assert "must name a ledger that is there" in said or "file is not a database" in said
    assert _files(bad.parent) == before


STATE_FILES = {
    "env": "session.json",
    "demo check": "session.json",
    "load status": "load/control.json",
    "load start": "load/control.json",
}


@pytest.mark.parametrize("verb", STATE_FILES)
def test_a_damaged_file_of_the_demo_is_named_with_a_remedy(
    verb: str, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimwheel_demo import load

    monkeypatch.setattr(load.Folder, "running", lambda self: os.getpid())
    monkeypatch.setenv("TRIMWHEEL_INDEX", "0")
    place = bad.parent / "state" / "demo-0" / STATE_FILES[verb]
    place.parent.mkdir(parents=True)
    if bad.exists():
        bad.rename(place)
    code, said = ends(verb)
    assert code in (1, 2, 3), said
    assert len(said) < 2000


def _kind(path: Path) -> str:
    """The name under which the fixture made a file."""
    if not path.exists():
        return "missing"
    if path.is_dir():
        return "a folder"
    return next(name for name, content in FILES.items() if content == path.read_bytes())


def _files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}
