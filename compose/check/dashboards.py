"""Whether every panel and every rule has data on a live Prometheus, and the data are what the nodes themselves say.

    python compose/check/dashboards.py http://localhost:9090 [--healthy] [--without tls,gpu,votes]

Prints a line a problem, and ends with 1 if there is any. `--healthy`: no alert may fire. `--without` names what the
demo at hand does not have; what is left out for it is listed. Run it from the environment that shoal is installed in.
"""

import argparse
import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus import Prometheus, Unanswered, dashboards, filled

from shoal.metric_table import BY_NAME, PROCESS, TRAINER

RULES = Path(__file__).resolve().parent.parent / "prometheus" / "rules" / "shoal.yml"
NEEDS = {
    "tls": ("shoal_certificate_expiry_timestamp_seconds",),
    "gpu": ("shoal_gpu_memory_bytes",),
    "votes": ("shoal_vote_agreement_ratio", "shoal_rounds_total", "shoal_votes_total"),
    "a-psgd": ("shoal_gradient_staleness", "shoal_model_version"),
    "coordinator": ("shoal_enrolled", 'role=~"coordinator"'),
    "pairs": ("shoal_exchange_seconds", "shoal_model_distance", "shoal:model_distance", "shoal_peer_codec"),
}
"""What there may be none of -> what then has no data."""
PARTS = ("_bucket", "_sum", "_count")
SAME = {"shoal_step": "step", "shoal_sent_bytes_total": "bytes_sent"}
"""Metrics that only grow, and what /v1/status calls them."""
SCRAPED_WITHIN_S = 60.0
PUBLISHED_S = 1.0
"""A status may be half a second older than the metrics."""


def panels() -> Iterator[tuple[str, str, str]]:
    """(where, expression, legend) of every line of every panel."""
    for board in dashboards():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{board['title']}: {panel['title']}", target["expr"], target["legendFormat"]


def rules(prometheus: Prometheus) -> Iterator[tuple[str, str, str]]:
    """(name, type, expression) of those that Prometheus has loaded."""
    for group in prometheus.ask("rules")["groups"]:
        for rule in group["rules"]:
            yield rule["name"], rule["type"], rule["query"]


def unknown_names(expression: str) -> list[str]:
    """Metrics that no node exports and no rule makes."""
    made = set(re.findall(r"record: (\S+)", RULES.read_text()))
    known = {*BY_NAME, *PROCESS, *(f"{TRAINER}_{name}" for name in PROCESS), *made}
    known |= {row.name + part for row in BY_NAME.values() if row.kind == "histogram" for part in PARTS}
    return sorted(set(re.findall(r"\b(?:shoal|process)[_:][\w:]+", expression)) - known)


def left_out(expression: str, without: set[str]) -> str:
    """For what that expression has no data here; empty where it must have some."""
    return next((need for need in sorted(without) if any(name in expression for name in NEEDS[need])), "")


def check_panels(prometheus: Prometheus, without: set[str]) -> Iterator[str]:
    """Problems: no data, a legend without its label, a name that nobody exports, a number made up for want of one."""
    for where, expression, legend in panels():
        for name in unknown_names(expression):
            yield f"{where}: nobody exports {name}"
        if "vector(" in expression:
            yield f"{where}: shows a number where there is no data: {expression}"
        try:
            found = prometheus.now(filled(expression))
        except (Unanswered, KeyError) as error:
            yield f"{where}: {error} in {expression}"
            continue
        if need := left_out(expression, without):
            print(f"left out, for there is no {need}: {where}: {len(found)} series")
        elif not found:
            yield f"{where}: no data for {expression}"
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            if any(label not in series["metric"] for series in found):
                yield f"{where}: no label {label} to name its lines by"


def check_variables(prometheus: Prometheus, without: set[str]) -> Iterator[str]:
    """Problems: a choice above a dashboard that has nothing to choose from."""
    for board in dashboards():
        for variable in board["templating"]["list"]:
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            selector = filled(series)
            values = prometheus.ask(f"label/{label}/values", **{"match[]": selector})
            if not values and not ("coordinator" in without and 'role="coordinator"' in selector):
                yield f"{board['title']}: nothing to choose {variable['name']} from"


def check_rules(prometheus: Prometheus, healthy: bool) -> Iterator[str]:
    """Problems: a rule that is not loaded, does not run, or names what nobody exports; an alert that fires."""
    wanted = set(re.findall(r"(?:record|alert): (\S+)", RULES.read_text()))
    loaded = list(rules(prometheus))
    for name in sorted(wanted - {name for name, _, _ in loaded}):
        yield f"rule {name} is not loaded"
    for name, kind, expression in loaded:
        for unknown in unknown_names(expression):
            yield f"rule {name}: nobody exports {unknown}"
        try:
            fires = prometheus.now(expression)
        except Unanswered as error:
            yield f"rule {name}: {error}"
            continue
        if kind == "alerting" and healthy and fires:
            yield f"alert {name} would fire: {fires[0]['metric']}"


def check_targets(prometheus: Prometheus) -> Iterator[str]:
    """Problems: none, or one that is down."""
    targets = prometheus.targets()
    if not targets:
        yield "nobody is scraped"
    for target in targets:
        if target["health"] != "up":
            yield f"{target['labels']['instance']} is {target['health']}: {target['lastError']}"


def check_values(prometheus: Prometheus) -> Iterator[str]:
    """Problems: a value that the node's own /v1/status denies. What grows must lie between what the node said before
    the scrape and what it says after it."""
    targets = {target["labels"]["instance"]: target for target in prometheus.targets() if target["health"] == "up"}
    said = {instance: (time.time(), _status(target)) for instance, target in targets.items()}
    until = time.monotonic() + SCRAPED_WITHIN_S
    for instance, (asked_at, before) in said.items():
        role = before["node"].get("role", "node")
        while not (scraped := _scraped(prometheus, instance, asked_at)):
            if time.monotonic() > until:
                yield f"{instance} was not scraped within {SCRAPED_WITHIN_S:.0f} s"
                return
            time.sleep(0.5)
        time.sleep(PUBLISHED_S)
        after = _status(targets[instance])
        for name, key in SAME.items():
            if role == "coordinator" and name != "shoal_sent_bytes_total":
                continue
            least, value, most = before["node"][key], scraped[name], after["node"][key]
            if not least <= value <= most:
                yield f"{instance}: {name} is {value:g}, and the node says {least:g} before and {most:g} after"
        yield from _check_labels(prometheus, instance, after)


def _check_labels(prometheus: Prometheus, instance: str, status: dict[str, Any]) -> Iterator[str]:
    held = [float(s["value"][1]) for s in prometheus.now(f'shoal_label_samples{{instance="{instance}"}}')]
    if sorted(held) != sorted(map(float, status["node"].get("histogram", []))):
        yield f"{instance}: holds {status['node']['histogram']} samples by label, and Prometheus says {held}"


def _scraped(prometheus: Prometheus, instance: str, since: float) -> dict[str, float]:
    """Name -> value, of a scrape after that time; empty before there is one."""
    found = prometheus.now(f'{{__name__=~"{"|".join(SAME)}", instance="{instance}"}}')
    when = prometheus.now(f'timestamp(shoal_sent_bytes_total{{instance="{instance}"}}) > {since}')
    return {series["metric"]["__name__"]: float(series["value"][1]) for series in found} if when else {}


def _status(target: dict[str, Any]) -> dict[str, Any]:
    place = urlsplit(target["scrapeUrl"])
    with urllib.request.urlopen(f"{place.scheme}://{place.netloc}/v1/status", timeout=10) as answer:
        status: dict[str, Any] = json.load(answer)
    return status


def main() -> int:
    """0 when there is no problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of Prometheus, such as http://localhost:9090")
    parser.add_argument("--healthy", action="store_true", help="no alert may fire")
    parser.add_argument("--without", default="", help=f"what there is none of: {', '.join(NEEDS)}")
    given = parser.parse_args()
    without = set(filter(None, given.without.split(",")))
    if without - NEEDS.keys():
        parser.error(f"--without knows {', '.join(NEEDS)}")
    prometheus = Prometheus(given.url)
    problems: list[str] = []
    try:
        for check in (
            check_targets(prometheus),
            check_panels(prometheus, without),
            check_variables(prometheus, without),
            check_rules(prometheus, given.healthy),
            check_values(prometheus),
        ):
            problems += check
    except Unanswered as error:
        problems.append(str(error))
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    print(f"{len(list(panels()))} expressions of panels, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
