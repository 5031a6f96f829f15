"""Reference pages say what the code says; a bar is for terminals alone."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from trimwheel_api import names
from trimwheel_api.crd import manifests
from trimwheel_api.policy import Policy
from trimwheel_cli.generate_docs import REFERENCE
from trimwheel_cli.reference import kinds_page, metrics_page, policy_page, reasons_page
from trimwheel_cli.reference.markdown import table
from trimwheel_console.progress import progress


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("kinds", kinds_page),
        ("policy", policy_page),
        ("metrics", metrics_page),
        ("reasons", reasons_page),
    ],
)
def test_a_committed_page_is_what_the_code_renders(name, module):
    assert (REFERENCE / f"{name}.md").read_text() == module.render(), "run make generate"


def test_every_field_of_every_spec_has_its_row():
    rows = set(re.findall(r"^\| `(spec\.[\w.\[\]]+)` ", kinds_page.render(), re.MULTILINE))
    for crd in manifests():
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for field in schema["properties"]["spec"]["properties"]:
            assert f"spec.{field}" in rows, (crd["spec"]["names"]["kind"], field)


def test_every_knob_has_its_row():
    page = policy_page.render()
    for group, fields in Policy().model_dump(by_alias=True).items():
        for knob in fields:
            assert f"| `{group}.{knob}` |" in page


def test_bars_in_cells_do_not_break_a_table():
    assert table(("a",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_a_bar_is_silent_where_there_is_no_terminal():
    told = io.StringIO()
    with progress(Console(file=told)) as bar:
        assert list(bar.track(range(3), description="trials")) == [0, 1, 2]
    assert told.getvalue() == ""


def test_every_reason_has_a_line_with_a_sentence_on_its_page():
    listed = {line.reason: line for line in reasons_page.lines()}
    declared = {value for name, value in vars(names.Reason).items() if name.isupper()}
    assert listed.keys() == declared
    assert [reason for reason, line in listed.items() if not line.sentence] == []
    page = reasons_page.render()
    assert [reason for reason in declared if f"`{reason}`" not in page] == []
