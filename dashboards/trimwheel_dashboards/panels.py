"""The look of every panel: helpers that leave title, unit and queries to the dashboards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLink,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableHide,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from trimwheel_api.metrics import POLICY_EPOCH

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED = "green", "yellow", "red"
_HEIGHT = 8
ValueNames = Mapping[int, tuple[str, str]]
"""(text, colour) for a value."""
Query = tuple[str, str]
"""(PromQL, legend)."""
Steps = Sequence[tuple[float | None, str]]
"""Thresholds: (from this value, colour); the first has no value."""


def graph(
    title: str,
    unit: str,
    help_text: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    limit: float | None = None,
    top: float | None = None,
) -> timeseries.Panel:
    """Lines over time; `limit` draws a line that should not be crossed."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(help_text)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(_HEIGHT)
        .span(width)
        .line_width(1)
        .fill_opacity(40 if stacked else 10)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    if top is not None:
        panel = panel.max(top)
    if limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(looks.GraphTresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds([(None, GREEN), (limit, RED)]))
        panel = panel.thresholds_style(style)
    return _with_queries(panel, queries)


def number(
    title: str,
    unit: str,
    help_text: str,
    query: str,
    *,
    steps: Steps = ((None, GREEN),),
    width: int = 4,
    names: ValueNames | None = None,
) -> stat.Panel:
    """One number, coloured by thresholds; `names` shows (text, colour) for some values."""
    panel = (
        stat.Panel()
        .title(title)
        .description(help_text)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(width)
        .thresholds(_thresholds(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if names:
        panel = panel.mappings([_value_names(names)])
    return _with_queries(panel, [(query, "")])


def bars(title: str, unit: str, help_text: str, *queries: Query, steps: Steps) -> bargauge.Panel:
    """One bar for each series, now."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(help_text)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(_HEIGHT)
        .span(8)
        .orientation(looks.VizOrientation.HORIZONTAL)
        .thresholds(_thresholds(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _with_queries(panel, queries)


def states(title: str, help_text: str, *queries: Query, names: ValueNames) -> statetimeline.Panel:
    """What held when; `names` gives (text, colour) for each value."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(help_text)
        .datasource(SOURCE)
        .height(_HEIGHT)
        .span(12)
        .merge_values(True)
        .mappings([_value_names(names)])
        .legend(_legend())
    )
    return _with_queries(panel, queries)


def table(title: str, help_text: str, query: str, *, width: int = 12) -> tables.Panel:
    """The labels and values of an instant query."""
    panel = (
        tables.Panel().title(title).description(help_text).datasource(SOURCE)
        .height(_HEIGHT).span(width)
    )  # fmt: skip
    target = prometheus.Dataquery().expr(query).instant().format(PromQueryFormat.TABLE).ref_id("A")
    return panel.with_target(target.datasource(SOURCE))


def page(uid: str, title: str, help_text: str) -> dashboard.Dashboard:
    """An empty dashboard with the variables that every query uses."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(help_text)
        .tags(["trimwheel"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(_links())
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("namespace", f"label_values({POLICY_EPOCH.name}, namespace)"))
        .with_variable(
            _variable(
                "model", f'label_values({POLICY_EPOCH.name}{{namespace="$namespace"}}, model)'
            )
        )
    )


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .hide(VariableHide.DONT_HIDE)
    )


def _links() -> Any:
    return _Built(
        DashboardLink(
            title="Trimwheel",
            type_val=DashboardLinkType.DASHBOARDS,
            icon="external link",
            tags=["trimwheel"],
            include_vars=True,
            keep_time=True,
        )
    )


class _Built:
    """A finished model where the SDK asks for a builder."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def build(self) -> Any:
        return self._value


def _legend() -> Any:
    return (
        common.VizLegendOptions()
        .display_mode(looks.LegendDisplayMode.LIST)
        .placement(looks.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _thresholds(steps: Steps) -> Any:
    made = [Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def _value_names(names: ValueNames) -> ValueMap:
    options = {
        str(value): ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(names.items())
    }
    return ValueMap(options=options)


def _with_queries(panel: Any, queries: Sequence[Query]) -> Any:
    for index, (expression, legend) in enumerate(queries):
        target = prometheus.Dataquery().expr(expression).ref_id(chr(ord("A") + index))
        target = target.datasource(SOURCE).legend_format(legend or "__auto")
        panel = panel.with_target(target)
    return panel
