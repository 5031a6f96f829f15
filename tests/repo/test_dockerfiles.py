"""The images of the deployables: built alike, run as the account that pods run as."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.repo.repository import ROOT

from trimwheel_operator.manifests import unprivileged

DEPLOYABLES = ("operator", "workers", "pipelines")


def lines(deployable: str) -> list[str]:
    text = (ROOT / deployable / "Dockerfile").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def building(deployable: str) -> list[str]:
    """The build stage and the base of the other, without the deployable's own name."""
    found = lines(deployable)
    end = next(i for i, line in enumerate(found) if line.startswith("COPY --from=build")) + 1
    return [line.replace(f"requirements/{deployable}.txt", "LOCK") for line in found[:end]]


@pytest.mark.parametrize("deployable", DEPLOYABLES[1:])
def test_images_are_built_alike(deployable: str) -> None:
    assert building(deployable) == building(DEPLOYABLES[0])
    assert any("LOCK" in line for line in building(deployable))


@pytest.mark.parametrize("deployable", DEPLOYABLES)
def test_an_image_runs_its_package_as_the_user_of_pods(deployable: str) -> None:
    user = unprivileged()["runAsUser"]
    assert f"USER {user}:{user}" in lines(deployable)
    assert lines(deployable)[-1].startswith(f'CMD ["python", "-m", "trimwheel_{deployable}"')


@pytest.mark.parametrize("deployable", DEPLOYABLES)
def test_the_line_that_builds_it_gives_the_charts_name(deployable: str) -> None:
    values = yaml.safe_load((ROOT / "charts/trimwheel/values.yaml").read_text())
    name = values["images"][deployable]["repository"]
    built = f"docker build -f {deployable}/Dockerfile -t {name} ."
    assert built in (ROOT / deployable / "Dockerfile").read_text()


def test_the_build_sees_what_is_copied_and_no_state() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source.split("/")[0]
        for deployable in DEPLOYABLES
        for line in lines(deployable)
        if (found := re.match(r"COPY (?!--from)(.+) \S+$", line))
        for source in found[1].split()
    }
    assert "*" in rules and allowed == copied


@pytest.mark.parametrize("deployable", DEPLOYABLES)
def test_no_module_is_imported_from_the_working_directory(deployable: str) -> None:
    """It is a volume that others may write, and `python -m` would look there first."""
    assert "PYTHONSAFEPATH=1 \\" in [line.strip() for line in lines(deployable)]
