"""The house style of panels: every one has a title, a description, a unit, and a legend that names its series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as chosen
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    MatcherConfig,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
BLOCK_LEGEND = "{{job_id}} {{block}}"

SECONDS, BYTES, SHARE, COUNT = "s", "bytes", "percentunit", "short"
BYTES_PER_SECOND, REQUESTS_PER_SECOND = "Bps", "reqps"
SAMPLES_PER_SECOND, STEPS_PER_SECOND, TOKENS_PER_SECOND = "suffix: samples/s", "suffix: steps/s", "suffix: tokens/s"
UNITLESS, MOMENT = "none", "dateTimeFromNow"

GREEN, ORANGE, RED = "green", "orange", "red"
HEIGHT, LOW = 8, 4  # rows of the grid
HALF, THIRD, QUARTER, WHOLE = 12, 8, 6, 24  # columns of the grid's 24

Steps = Sequence[tuple[float, str]]  # from which value on, which colour
P = TypeVar("P", timeseries.Panel, stat.Panel, bargauge.Panel, statetimeline.Panel, table.Panel)


@dataclass(frozen=True)
class Query:
    """A query and what its series are called. In a table, the legend is the title of its column of values."""

    expr: str
    legend: str
    unit: str | None = None  # of this column, in a table


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    limits: Steps = (),
    span: int = HALF,
    stacked: bool = False,
    logarithmic: bool = False,
    least: float | None = 0,
    most: float | None = None,
) -> Builder[Panel]:
    """Series over time. `limits` are drawn as dashed lines, coloured as what lies above them."""
    panel = (
        _headed(timeseries.Panel(), title, description, unit, span, HEIGHT)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(chosen.VisibilityMode.NEVER)
        .targets([_over_time(query, letter) for query, letter in zip(queries, _letters(), strict=False)])
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(chosen.TooltipDisplayMode.MULTI).sort(chosen.SortOrder.DESCENDING))
    )
    if least is not None and not logarithmic:
        panel = panel.axis_soft_min(least)
    if most is not None:
        panel = panel.axis_soft_max(most)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(chosen.StackingMode.NORMAL))
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(chosen.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    if limits:
        drawn = common.GraphThresholdsStyleConfig().mode(chosen.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(limits)).thresholds_style(drawn)
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    limits: Steps = (),
    span: int = QUARTER,
    from_colour: str = GREEN,
    none: str = "none",
) -> Builder[Panel]:
    """The last value of each series, large. `none` is said when there is no series."""
    return (
        _headed(stat.Panel(), title, description, unit, span, LOW)
        .no_value(none)
        .graph_mode(chosen.BigValueGraphMode.NONE)
        .color_mode(chosen.BigValueColorMode.VALUE)
        .text_mode(chosen.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(limits, from_colour))
        .targets([_at_once(query, letter) for query, letter in zip(queries, _letters(), strict=False)])
    )


def bars(
    title: str, description: str, unit: str, *queries: Query, limits: Steps = (), span: int = HALF
) -> Builder[Panel]:
    """The last value of each series as a bar."""
    return (
        _headed(bargauge.Panel(), title, description, unit, span, HEIGHT)
        .min(0)
        .no_value("none")
        .orientation(chosen.VizOrientation.HORIZONTAL)
        .display_mode(chosen.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(limits))
        .legend(common.VizLegendOptions().show_legend(False))
        .targets([_at_once(query, letter) for query, letter in zip(queries, _letters(), strict=False)])
    )


def timeline(
    title: str, description: str, query: Query, states: Mapping[int, tuple[str, str]], span: int = WHOLE
) -> Builder[Panel]:
    """A row a series, coloured by its state; `states` gives each value a text and a colour."""
    return (
        _headed(statetimeline.Panel(), title, description, UNITLESS, span, HEIGHT)
        .mappings([_named(states)])
        .merge_values(True)
        .show_value(chosen.VisibilityMode.AUTO)
        .legend(common.VizLegendOptions().display_mode(chosen.LegendDisplayMode.LIST).show_legend(True))
        .targets([_over_time(query, "A")])
    )


def rows(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    keys: Mapping[str, str],
    states: Mapping[str, Mapping[int, tuple[str, str]]] | None = None,
    links: Mapping[str, str] | None = None,
    hidden: Sequence[str] = (),
    span: int = WHOLE,
) -> Builder[Panel]:
    """A table, a row for each combination of labels in `keys` (label -> title); each query is a column.

    A query with an empty legend only brings labels. `states` names the values of a column; `links` makes a column's
    cells lead to another dashboard; `hidden` are labels that rows are joined by, and that need not be shown.
    """
    named = dict(zip(_letters(), queries, strict=False))
    # Grafana calls the values of a query by its letter, but not where it is the only one.
    columns = {letter: f"Value #{letter}" if len(queries) > 1 else "Value" for letter in named}
    unshown = ["Time", *hidden, *(columns[letter] for letter, query in named.items() if not query.legend)]
    titles = {columns[letter]: query.legend for letter, query in named.items() if query.legend}
    order = [*keys, *titles]
    panel = (
        _headed(table.Panel(), title, description, unit, span, HEIGHT)
        .no_value("")
        .show_header(True)
        .transformations(
            [
                DataTransformerConfig(id_val="merge", options={}),
                DataTransformerConfig(
                    id_val="organize",
                    options={
                        "excludeByName": dict.fromkeys(unshown, True),
                        "indexByName": {name: place for place, name in enumerate(order)},
                        "renameByName": {**keys, **titles},
                    },
                ),
            ]
        )
        .targets([_cells(query, letter) for letter, query in named.items()])
    )
    for query in queries:
        if query.unit is not None:
            panel = panel.override_by_name(query.legend, [DynamicConfigValue("unit", query.unit)])
    for column, meaning in (states or {}).items():
        shown = [
            DynamicConfigValue("mappings", [_named(meaning)]),
            DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
        ]
        panel = panel.override_by_name(column, shown)
    for column, url in (links or {}).items():
        panel = panel.with_override(
            MatcherConfig("byName", column), [DynamicConfigValue("links", [{"title": "Open", "url": url}])]
        )
    return panel


def _headed(panel: P, title: str, description: str, unit: str, span: int, height: int) -> P:
    """What every panel has."""
    named = panel.title(title).description(description).datasource(DATASOURCE)
    return named.unit(unit).span(span).height(height)


def _letters() -> Sequence[str]:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _query(query: Query, letter: str) -> Dataquery:
    return Dataquery().datasource(DATASOURCE).expr(query.expr).legend_format(query.legend).ref_id(letter)


def _over_time(query: Query, letter: str) -> Dataquery:
    return _query(query, letter).range().format(PromQueryFormat.TIME_SERIES)


def _at_once(query: Query, letter: str) -> Dataquery:
    return _query(query, letter).instant().format(PromQueryFormat.TIME_SERIES)


def _cells(query: Query, letter: str) -> Dataquery:
    return _query(query, letter).instant().format(PromQueryFormat.TABLE)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(chosen.LegendDisplayMode.TABLE)
        .placement(chosen.LegendPlacement.BOTTOM)
        .calcs(["lastNotNull", "max"])
    )


def _thresholds(limits: Steps, from_colour: str = GREEN) -> ThresholdsConfig:
    steps = [Threshold(value=None, color=from_colour)]
    steps += [Threshold(value=value, color=colour) for value, colour in limits]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _named(states: Mapping[int, tuple[str, str]]) -> ValueMap:
    return ValueMap(
        {
            str(value): ValueMappingResult(text=text, color=colour, index=place)
            for place, (value, (text, colour)) in enumerate(states.items())
        }
    )
