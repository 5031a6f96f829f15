"""Verb `trimwheel dashboards`: the queries of the dashboards, resolved, and where the files are."""

from __future__ import annotations

import re

import click

from trimwheel_api.errors import InvalidInput
from trimwheel_api.values import DURATION_PATTERN, NAME_PATTERN, seconds
from trimwheel_console import emit, output_option, text_table
from trimwheel_dashboards.generate import boards, expressions
from trimwheel_dashboards.promql import INTERVAL, MODEL, NAMESPACE


@click.group("dashboards", short_help="Print dashboards, rules and their queries.")
def dashboards() -> None:
    """Print dashboards, rules and their queries.

    The dashboards are Grafana 10 JSON; the chart ships them as ConfigMaps with the label that
    Grafana's sidecar looks for (dashboards.enabled).
    """


@dashboards.command("queries")
@click.option(
    "-m",
    "--model",
    envvar="TRIMWHEEL_MODEL",
    default="classifier",
    show_default=True,
    help="AdaptiveModel that the queries ask about.",
)
@click.option(
    "-n",
    "--namespace",
    envvar="TRIMWHEEL_NAMESPACE",
    default="default",
    show_default=True,
    help="Its namespace.",
)
@click.option(
    "--interval", default="1m", show_default=True, help="Window of rate(): four scrapes at least."
)
@click.option("--dashboard", type=click.Choice(["serving", "rollout"]), help="Only this one.")
@output_option
def queries(model: str, namespace: str, interval: str, dashboard: str | None, output: str) -> None:
    """Print every PromQL expression of the dashboards with its variables filled in, one a line.

    \b
      trimwheel dashboards queries --model classifier --namespace shop --interval 1m
      trimwheel dashboards queries | xargs -d '\\n' -n1 promtool query instant $PROMETHEUS_URL
    """
    if not re.fullmatch(DURATION_PATTERN, interval) or not seconds(interval):
        raise InvalidInput("--interval", "must be a duration such as 1m, above 0", interval)
    for option, text in (("--model", model), ("--namespace", namespace)):
        if not re.fullmatch(NAME_PATTERN, text):
            raise InvalidInput(option, "must be a name of Kubernetes", text)
    values = {INTERVAL: interval, NAMESPACE: namespace, MODEL: model}
    found = [
        (name, resolve(expression, values))
        for name, board in boards().items()
        if dashboard in (None, name)
        for expression in expressions(board)
    ]
    unique = list(dict.fromkeys(found))
    value = {"queries": [{"dashboard": name, "expr": expression} for name, expression in unique]}
    emit(value, output, table="\n".join(expression for _, expression in unique))


@dashboards.command("show")
@click.argument("name", type=click.Choice(["serving", "rollout"]))
@output_option
def show(name: str, output: str) -> None:
    """Print a dashboard: its panels, or with -o json the file to import into Grafana.

    \b
      trimwheel dashboards show serving -o json > serving.json
    """
    board = boards()[name]
    rows = [
        (panel["id"], panel["type"], panel["title"], panel.get("description", ""))
        for panel in board["panels"]
    ]
    emit(board, output, table=lambda: text_table(("id", "type", "title", "shows"), rows))


def resolve(expression: str, values: dict[str, str]) -> str:
    """An expression with Grafana's variables replaced."""
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression
