"""The demo as a compose project of its own, and what is asked of its nodes and its Prometheus."""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from engine import ROOT, docker, fetch, inspect, run, say
from prometheus import Prometheus, Unanswered, dashboards, filled

T = TypeVar("T")
PROJECT = "shoal-check"
"""Of compose: a demo that runs here already is left alone."""
ACCURACY = 0.95
PATIENCE_S = 120.0


class Demo:
    """The compose project of the demo, under a name of its own."""

    def __init__(
        self, command: list[Any], settings: dict[str, str], *files: str, env_file: str = "", **more: str
    ) -> None:
        self.image = settings["IMAGE"]
        self._env = {**settings, "COMPOSE_PROFILES": "", "PROMETHEUS_PORT": "0", "GRAFANA_PORT": "0", **more}
        names = ("compose.yaml", *files)
        self._command = [*command, "--project-name", PROJECT, *(w for f in names for w in ("-f", ROOT / "compose" / f))]
        if env_file:
            self._command += ["--env-file", ROOT / "compose" / env_file]
            del self._env["COMPOSE_PROFILES"]

    def __call__(self, *args: str, seconds: float = 180) -> str:
        return run(*self._command, *args, seconds=seconds, env=self._env)

    def up(self, *services: str, **scale: int) -> None:
        """Starts these services and leaves what runs alone."""
        counts = [word for service, n in scale.items() for word in ("--scale", f"{service}={n}")]
        self("up", "--detach", "--no-build", "--no-recreate", "--quiet-pull", *counts, *services)

    def containers(self, service: str, *, running: bool = False) -> list[str]:
        """Their names, by number."""
        wanted = [
            "--filter",
            f"label=com.docker.compose.project={PROJECT}",
            "--filter",
            f"label=com.docker.compose.service={service}",
        ]
        state = ["--filter", "status=running"] if running else ["--all"]
        found = docker("ps", *state, *wanted, "--format", "{{.Names}}").split()
        return sorted(found, key=lambda name: int(name.rpartition("-")[2]))

    def address(self, container: str) -> str:
        """Of a container on the demo's network, empty while it has none."""
        (facts,) = inspect([container])
        return str(next(iter(facts["NetworkSettings"]["Networks"].values()), {}).get("IPAddress", ""))

    def status(self, container: str) -> dict[str, Any]:
        """Its /v1/status; empty while it does not answer."""
        with contextlib.suppress(OSError, ValueError):
            return dict(fetch(f"http://{self.address(container)}:7460/v1/status"))
        return {}

    def result(self, container: str) -> dict[str, Any]:
        """Its result.json; the container may have ended."""
        with tempfile.TemporaryDirectory() as folder:
            docker("cp", f"{container}:/state/{container}/result.json", folder)
            return dict(json.loads((Path(folder) / "result.json").read_text()))

    def logs(self) -> str:
        """The last lines of everybody."""
        return self("logs", "--no-color", "--tail", "25")

    def down(self) -> None:
        """Nothing of it stays, services of other profiles included: a coordinator that is left keeps the volume, and
        compose only warns of that."""
        self("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")


@contextlib.contextmanager
def running(demo: Demo, *services: str, **scale: int) -> Iterator[Demo]:
    """Up, and down again; the logs are shown when something fails."""
    demo.down()
    try:
        demo.up(*services, **scale)
        yield demo
    except BaseException:
        print(demo.logs(), flush=True)
        raise
    finally:
        demo.down()


def until(condition: Callable[[], T], what: str, seconds: float = PATIENCE_S) -> T:
    """What it gives once that is true. Raises AssertionError."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(0.5)
    return value


# --- what is asked of nodes -------------------------------------------------------------------------------------


def steps(demo: Demo, container: str) -> int:
    return int(demo.status(container).get("node", {}).get("step") or 0)


def knows(demo: Demo, container: str) -> int:
    """Members that it takes for alive, itself included."""
    return sum(m["state"] in ("self", "alive") for m in demo.status(container).get("members", []))


def train_together(demo: Demo, n: int) -> None:
    """Until each of n nodes knows all the others and has made a step since."""
    nodes = demo.containers("node")
    assert len(nodes) == n, f"{len(nodes)} containers, expected {n}"
    until(lambda: all(knows(demo, node) == n for node in nodes), f"{n} nodes know each other")
    moved(demo, nodes)


def train_together_over(demo: Demo, n: int) -> None:
    """The same with a coordinator, which is a member too."""
    nodes = demo.containers("node")
    until(lambda: all(knows(demo, node) == n + 1 for node in nodes), "nodes and coordinator know each other")
    moved(demo, nodes)


def moved(demo: Demo, nodes: list[str]) -> None:
    """Until each has made another step."""
    before = {node: steps(demo, node) for node in nodes}
    until(lambda: all(steps(demo, node) > before[node] for node in nodes), f"{', '.join(nodes)} make another step")


def learnt(demo: Demo, n: int) -> float:
    """Accuracy of the mean model once all have ended, each in order."""
    nodes = demo.containers("node")
    until(lambda: not demo.containers("node", running=True), "all nodes have ended", 300)
    codes = {facts["Name"]: facts["State"]["ExitCode"] for facts in inspect(nodes)}
    assert set(codes.values()) == {0}, codes
    result = demo.result(nodes[0])
    assert len(result["members"]) == n, result["members"]
    accuracy = float(result["accuracy"])
    assert accuracy >= ACCURACY, f"accuracy {accuracy}, expected {ACCURACY}"
    return accuracy


def targets_up(demo: Demo, n: int) -> None:
    """Until Prometheus reaches itself and n nodes and coordinators, and nothing that it knows is down."""

    def health() -> list[str]:
        with contextlib.suppress(Unanswered):
            return [target["health"] for target in watching(demo).ask("targets", state="active")["activeTargets"]]
        return []

    until(lambda: health() == ["up"] * (n + 1), f"{n} targets of Prometheus and itself are up")


def panels(demo: Demo, *without: str, healthy: bool = False) -> None:
    """Every panel and rule has data, which are what the nodes say; no alert fires where all is well."""
    options = ["--without", ",".join(without), *(["--healthy"] if healthy else [])]
    script = ROOT / "compose" / "check" / "dashboards.py"
    said = ""
    for _ in range(6):  # rates want some minutes of data
        try:
            said = run(sys.executable, script, *options, watching(demo).url).splitlines()[-1]
            break
        except RuntimeError as error:
            said = str(error)
            say(next((line for line in said.splitlines() if line.startswith("PROBLEM")), said)[:200] + "; once more")
            time.sleep(10)
    else:
        raise AssertionError(said)
    say(f"dashboards: {said}")


def gone(demo: Demo) -> float:
    """How many members have fallen silent, as the panel "The others" of the dashboard Shoal shows it."""
    shown = (panel for board in dashboards() for panel in board["panels"] if panel["title"] == "The others")
    expression = filled(next(shown)["targets"][0]["expr"])
    found = watching(demo).now(expression)
    return max((float(s["value"][1]) for s in found if s["metric"]["state"] == "gone"), default=0.0)


def watching(demo: Demo) -> Prometheus:
    """That of the demo, at its present address."""
    return Prometheus(f"http://{demo.address(demo.containers('prometheus')[0])}:9090")
