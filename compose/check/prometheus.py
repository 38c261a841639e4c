"""Asking a live Prometheus what a dashboard would ask it."""

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parent.parent / "grafana" / "dashboards"
INTERVAL = {"__rate_interval": "1m", "__interval": "15s"}
"""What Grafana puts in; scrapes must come at least every 15 s."""
TIMEOUT_S = 10.0


class Unanswered(Exception):
    """Prometheus does not answer, or not with success; the text is its own."""


class Prometheus:
    """At a URL, without the slash at its end."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def ask(self, path: str, **query: Any) -> Any:
        """The `data` of an answer. Raises Unanswered."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise Unanswered(_reason(error)) from None
        except OSError as error:
            raise Unanswered(f"{self.url} does not answer: {error}") from None

    def now(self, expression: str) -> list[dict[str, Any]]:
        """Series with a value that is a number, each with `metric` and `value`, [time, text]."""
        data = self.ask("query", query=expression)
        if data["resultType"] != "vector":
            return [{"metric": {}, "value": data["result"]}]
        return [series for series in data["result"] if math.isfinite(float(series["value"][1]))]

    def over(self, expression: str, begin: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """Series with their `values`, [time, text], from `begin` to `end` in unix time."""
        found: list[dict[str, Any]] = self.ask("query_range", query=expression, start=begin, end=end, step=step_s)[
            "result"
        ]
        return found

    def targets(self, job: str = "shoal") -> list[dict[str, Any]]:
        """Those that are scraped, up or not."""
        active = self.ask("targets", state="active")["activeTargets"]
        return [target for target in active if target["labels"]["job"] == job]


def _reason(error: urllib.error.HTTPError) -> str:
    """In Prometheus' own words; while it starts it has none."""
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError):
        return str(error)


def dashboards() -> Iterator[dict[str, Any]]:
    """All that are provisioned."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        yield json.loads(path.read_text())


def filled(expression: str, **chosen: str) -> str:
    """As Grafana sends it: variables in place, `.*` for what is not chosen. Raises KeyError for an unknown one."""
    values = {**INTERVAL, "shoal": ".*", "node": ".*", "coordinator": ".*", **chosen}
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], expression)
