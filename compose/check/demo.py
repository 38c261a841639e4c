"""`make check-docker`: builds the images and runs the demo for real, in every way that compose/compose.yaml offers.

Five nodes that find each other by multicast alone learn all ten digits; others, that know each other by DNS alone, are
made eight while they train, lose one, a pause and a network, and go on; a parameter server; votes; TLS; a swarm. Fails
when anything does not hold. Without Docker, and without a way to install it, it says so and checks nothing.
"""

import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from engine import ROOT, Unavailable, build_images, compose, docker, engine, fetch, inspect, logs, megabytes, run, say

T = TypeVar("T")
PROJECT = "shoal-check"
"""Of compose: a demo that runs here already is left alone."""
STACK = "shoal-check-stack"
ACCURACY = 0.95
IDLE_S, IDLE_CPU = 20.0, 0.02
LARGEST_MB = 500.0
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
    url = f"http://{demo.address(demo.containers('prometheus')[0])}:9090/api/v1/targets?state=active"

    def health() -> list[str]:
        with contextlib.suppress(OSError, ValueError):
            return [target["health"] for target in fetch(url)["data"]["activeTargets"]]
        return []

    until(lambda: health() == ["up"] * (n + 1), f"{n} targets of Prometheus and itself are up")


def panels(demo: Demo, *without: str, healthy: bool = False) -> None:
    """Every panel and rule has data, which are what the nodes say; no alert fires where all is well."""
    url = f"http://{demo.address(demo.containers('prometheus')[0])}:9090"
    options = ["--without", ",".join(without), *(["--healthy"] if healthy else [])]
    script = ROOT / "compose" / "check" / "dashboards.py"
    said = ""
    for _ in range(6):  # rates want some minutes of data
        try:
            said = run(sys.executable, script, *options, url).splitlines()[-1]
            break
        except RuntimeError as error:
            said = str(error)
            time.sleep(10)
    else:
        raise AssertionError(said)
    say(f"dashboards: {said}")


# --- the checks -------------------------------------------------------------------------------------------------


def multicast(make: Callable[..., Demo]) -> None:
    """Five nodes that have nothing but multicast learn all digits."""
    with running(make(DISCOVERY="mdns", ROUNDS="1500", EMULATE_COMPUTE_S="0.01"), "node", node=5) as demo:
        train_together(demo, 5)
        say(f"by multicast alone: five nodes, mean model at {learnt(demo, 5):.3f}")


def names_and_faults(make: Callable[..., Demo]) -> None:
    """By DNS alone; five become eight; one is killed, one paused, one loses its network."""
    with running(make(DISCOVERY="dns", SUSPECT_AFTER_S="3"), "node", "prometheus", node=5) as demo:
        train_together(demo, 5)
        targets_up(demo, 5)
        demo.up("node", "prometheus", node=8)
        train_together(demo, 8)
        targets_up(demo, 8)
        say("by DNS alone: five nodes, then eight; all targets up")
        panels(demo, "tls", "gpu", "votes", "a-psgd", "coordinator", healthy=True)
        killed, paused, cut, *rest = demo.containers("node")
        for name, begin, end in (
            (killed, ("kill", "--signal", "KILL", killed), ("start", killed)),
            (paused, ("pause", paused), ("unpause", paused)),
            (
                cut,
                ("network", "disconnect", f"{PROJECT}_default", cut),
                ("network", "connect", "--alias", "node", f"{PROJECT}_default", cut),
            ),
        ):
            docker(*begin)
            until(lambda: all(knows(demo, node) == 7 for node in rest), f"{name} is missed")
            moved(demo, rest)
            docker(*end)
            train_together(demo, 8)
            say(f"{begin[0]} {begin[1] if len(begin) > 2 else ''}: the others went on, and it came back")
        targets_up(demo, 8)


def parameter_server(make: Callable[..., Demo]) -> None:
    """The coordinator's profile, with its coordinator killed once."""
    demo = make(env_file="a-psgd.env", ROUNDS="1500", EMULATE_COMPUTE_S="0.01")
    with running(demo, "node", "coordinator", "prometheus", node=5):
        train_together_over(demo, 5)
        targets_up(demo, 6)
        panels(demo, "tls", "gpu", "votes", "pairs")
        docker("kill", "--signal", "KILL", *demo.containers("coordinator"))
        docker("start", *demo.containers("coordinator"))
        moved(demo, demo.containers("node"))
        say(f"a parameter server, killed once: mean model at {learnt(demo, 5):.3f}")


def votes(make: Callable[..., Demo]) -> None:
    """The same profile with votes."""
    demo = make(env_file="a-psgd.env", ALGORITHM="signum", EMULATE_COMPUTE_S="0.01")
    with running(demo, "node", "coordinator", "prometheus", node=5):
        train_together_over(demo, 5)
        targets_up(demo, 6)
        panels(demo, "tls", "gpu", "pairs", "a-psgd")


def train_together_over(demo: Demo, n: int) -> None:
    """The same with a coordinator, which is a member too."""
    nodes = demo.containers("node")
    until(lambda: all(knows(demo, node) == n + 1 for node in nodes), "nodes and coordinator know each other")
    moved(demo, nodes)


def encrypted(make: Callable[..., Demo]) -> None:
    """The TLS overlay."""
    demo = make("tls.yaml", ROUNDS="3000", EMULATE_COMPUTE_S="0.01", TLS_NODES="5")
    with running(demo, "node", "prometheus", node=5):
        train_together(demo, 5)
        targets_up(demo, 5)
        panels(demo, "gpu", "votes", "a-psgd", "coordinator")
        said = demo("logs", "--no-color", "node")
        assert "TLS with members of shoal compose alone" in said, said[-500:]
        say(f"over TLS: mean model at {learnt(demo, 5):.3f}")


def swarm(make: Callable[..., Demo]) -> None:
    """The same nodes as a stack on a swarm of one machine: by DNS on its overlay network."""
    env = {"IMAGE": make().image, "ROUNDS": "1500", "EMULATE_COMPUTE_S": "0.01"}
    mine = docker("info", "--format", "{{.Swarm.LocalNodeState}}").strip() != "active"
    if mine:
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        docker("stack", "deploy", "--compose-file", ROOT / "compose" / "stack.yaml", STACK, env=env)
        tasks = ["--filter", f"label=com.docker.swarm.service.name={STACK}_node", "--format", "{{.Names}}"]

        def means() -> list[float]:
            said = (logs(name) for name in docker("ps", "--all", *tasks).split())
            found = (re.search(r"mean model of all members: .* accuracy ([0-9.]+)", text) for text in said)
            return [float(match[1]) for match in found if match]

        accuracies = set(until(lambda: means() if len(means()) == 5 else [], "five tasks have the mean model", 240))
        assert len(accuracies) == 1, accuracies
        assert min(accuracies) >= ACCURACY, accuracies
        say(f"on a swarm, by DNS on its overlay network: mean model at {min(accuracies):.3f}")
    except BaseException:
        print(docker("service", "ps", "--no-trunc", f"{STACK}_node"), flush=True)
        raise
    finally:
        docker("stack", "rm", STACK)
        mine_alone = ("--filter", f"label=com.docker.stack.namespace={STACK}", "--quiet")
        until(lambda: not docker("network", "ls", *mine_alone), "its network is gone")  # some time after the answer
        if mine:
            docker("swarm", "leave", "--force")


def idle(make: Callable[..., Demo]) -> None:
    """What a node that waits for others takes of a core, its health checks included."""
    with running(make(MIN_NODES="99"), "node", node=1) as demo:
        (node,) = demo.containers("node")
        until(lambda: demo.status(node).get("node", {}).get("phase") == "ready", "it is ready")
        time.sleep(5)
        before, since = cpu_s(node), time.monotonic()
        time.sleep(IDLE_S)
        part = (cpu_s(node) - before) / (time.monotonic() - since)
        say(f"an idle node takes {part:.1%} of a core")
        assert part < IDLE_CPU


def cpu_s(container: str) -> float:
    """Seconds of CPU that all its processes have taken."""
    ticks = 0
    for pid in docker("top", container, "-o", "pid").split()[1:]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


def sizes(image: str) -> None:
    """Of the image, without torch and what only torch needs."""
    code = (
        "import pathlib, torch; site = pathlib.Path(torch.__file__).parents[1];"
        "only = ('torch', 'torchgen', 'functorch', 'sympy', 'mpmath', 'networkx', 'nvidia', 'triton');"
        "print(sum(f.stat().st_size for name in only for f in (site / name).rglob('*') if f.is_file()) / 1e6)"
    )
    torch = float(docker("run", "--rm", "--network", "none", "--entrypoint", "python3", image, "-c", code))
    whole = megabytes(image)
    say(f"image: {whole:.0f} MB, of them torch and what only torch needs {torch:.0f} MB")
    assert whole - torch < LARGEST_MB


def main() -> int:
    """Exit code: 0 when all held, or when there is no Docker to be had."""
    began = time.monotonic()
    try:
        engine()
    except Unavailable as why:
        print(f"NOT CHECKED: the images and the compose demo. {why}", flush=True)
        return 0
    command, settings = compose(), build_images("shoal-check/shoal")

    def make(*files: str, **more: str) -> Demo:
        return Demo(command, settings, *files, **more)

    sizes(f"{settings['IMAGE']}:node")
    for check in (multicast, names_and_faults, parameter_server, votes, encrypted, swarm, idle):
        check(make)
    say(f"all held, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
