"""What all dashboards have in common: variables, links to each other, the way panels are laid out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import DATASOURCE

TAG = "dbserve"
COLUMNS = 24

SOURCES = {
    "job_id": ("Job", "label_values(dbserve_job_info, job_id)"),
    "block": ("Block", 'label_values(dbserve_block_info{job_id=~"$job_id"}, block)'),
    "node": ("Node", 'label_values(dbserve_block_info{job_id=~"$job_id"}, node)'),
}
EVERYTHING = {"job_id": ".+", "block": ".+", "node": ".*"}  # before it starts, a block has no node


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: Sequence[Builder[model.Panel]]


def board(
    name: str,
    title: str,
    description: str,
    sections: Iterable[Section],
    *,
    variables: Sequence[str] = ("job_id", "block", "node"),
    one_job: bool = False,
    hours: int = 3,
) -> model.Dashboard:
    """The dashboard `dbserve-<name>`. `one_job`: it shows one job at a time, not a choice of them."""
    built = (
        Dashboard(f"dbserve / {title}")
        .uid(f"dbserve-{name}")
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time(f"now-{hours}h", "now")
        .refresh("10s")
        .variables([_datasource(), *(_variable(each, one=one_job and each == "job_id") for each in variables)])
        .link(
            DashboardLink("dbserve")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    identity, top = 1, 0
    for section in sections:
        built = built.with_row(Row(section.title).id(identity).grid_pos(model.GridPos(x=0, y=top, w=COLUMNS, h=1)))
        identity, top = identity + 1, top + 1
        left = tallest = 0
        for builder in section.panels:
            panel = builder.build()
            place = panel.grid_pos or model.GridPos()
            if left + place.w > COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            panel.id_val, panel.grid_pos = identity, model.GridPos(x=left, y=top, w=place.w, h=place.h)
            built = built.with_panel(_Built(panel))
            identity, left, tallest = identity + 1, left + place.w, max(tallest, place.h)
        top += tallest
    return built.build()


class _Built(Builder[model.Panel]):
    """A panel that is finished: the SDK takes builders only, and would choose another place."""

    def __init__(self, panel: model.Panel) -> None:
        self._panel = panel

    def build(self) -> model.Panel:
        return self._panel


def _datasource() -> Builder[model.VariableModel]:
    return DatasourceVariable("datasource").label("Data source").type("prometheus")


def _variable(name: str, *, one: bool) -> Builder[model.VariableModel]:
    label, query = SOURCES[name]
    variable = (
        QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.NATURAL_ASC)
    )
    if one:
        return variable
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return variable.multi(True).include_all(True).all_value(EVERYTHING[name]).current(everything)
