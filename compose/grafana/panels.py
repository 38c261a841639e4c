"""What Grafana wants to hear of a dashboard, from what a person wants to say of it."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

DATASOURCE = {"type": "prometheus", "uid": "shoal-prometheus"}
SCHEMA = 39
"""Grafana's number of the form; 10.4 and later read it."""
WIDTH = 24
"""Columns of a dashboard."""

Kind = Literal["timeseries", "stat", "bargauge"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """`lines` are pairs of an expression and its legend, which may hold {{label}}. `unit` is one of Grafana's names."""

    title: str
    words: str
    unit: str
    lines: Sequence[tuple[str, str]]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    least: float | None = None
    most: float | None = None
    log: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A dashboard. `variables` maps a name to what its values come from, in Grafana's words."""

    uid: str
    title: str
    words: str
    variables: dict[str, str]
    panels: Sequence[Panel]


def document(board: Board, others: Iterable[Board]) -> dict[str, Any]:
    """The JSON that Grafana provisions."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.words,
        "tags": ["shoal"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_link(other) for other in others if other.uid != board.uid],
        "templating": {"list": [_variable(name, query) for name, query in board.variables.items()]},
        "panels": list(_placed(board.panels)),
    }


def _link(board: Board) -> dict[str, Any]:
    return {
        "title": board.title,
        "type": "link",
        "url": f"/d/{board.uid}",
        "icon": "dashboard",
        "tooltip": board.words,
        "tags": [],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the time range changes: nodes come and go
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
    }


def _placed(panels: Sequence[Panel]) -> Iterable[dict[str, Any]]:
    """From left to right, a new row where one is full."""
    x = y = tallest = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": panel.height})
        x, tallest = x + panel.width, max(tallest, panel.height)


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "color": {"mode": "palette-classic"}, "mappings": []}
    defaults |= {key: value for key, value in (("min", panel.least), ("max", panel.most)) if value is not None}
    if panel.kind == "timeseries":
        defaults["custom"] = _drawing(panel)
    else:
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": "green", "value": None}]}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.words,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [_target(letter, panel, *line) for letter, line in zip("ABCDEFGH", panel.lines, strict=False)],
    }


def _drawing(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "scaleDistribution": {"type": "log", "log": 10} if panel.log else {"type": "linear"},
    }


def _target(letter: str, panel: Panel, expression: str, legend: str) -> dict[str, Any]:
    now = panel.kind != "timeseries"
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": expression,
        "legendFormat": legend,
        "editorMode": "code",
        "instant": now,
        "range": not now,
    }


_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _LAST,
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    },
    "bargauge": {
        "reduceOptions": _LAST,
        "displayMode": "gradient",
        "orientation": "horizontal",
        "minVizHeight": 10,
        "maxVizHeight": 300,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "minVizWidth": 0,
        "namePlacement": "auto",
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    },
}
