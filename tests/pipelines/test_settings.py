"""Settings come from the environment once; what cannot be read is named."""

from __future__ import annotations

import pytest

from trimwheel_api.errors import SpecInvalid
from trimwheel_pipelines.settings import Settings, from_environment


def test_an_empty_environment_gives_the_defaults() -> None:
    assert from_environment({}) == Settings()


def test_every_variable_of_the_chart_arrives() -> None:
    settings = from_environment(
        {
            "TRIMWHEEL_RAY_CPUS": "4",
            "TRIMWHEEL_ALLOWED_PREFIXES": "models:/, file:///models ,",
            "MLFLOW_TRACKING_URI": "http://mlflow:5000/",
            "TRIMWHEEL_RAY_ADDRESS": "local",
            "TRIMWHEEL_LOOP_INTERVAL": "500ms",
            "TRIMWHEEL_SCRAPE_INTERVAL": "2",
        }
    )
    assert settings.ray_cpus == 4
    assert (settings.interval, settings.scrape_interval) == (0.5, 2.0)
    assert settings.allowed_prefixes == ("models:/", "file:///models")
    assert settings.mlflow_link == "http://mlflow:5000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRIMWHEEL_RAY_CPUS", "many"),
        ("TRIMWHEEL_RAY_CPUS", "0"),
        ("TRIMWHEEL_LOOP_INTERVAL", "soon"),
    ],
)
def test_a_value_that_is_no_number_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(SpecInvalid, match=name):
        from_environment({name: value})
