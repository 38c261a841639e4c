"""`make check-docker`: builds the images and runs the demo for real, in every way that compose/compose.yaml offers.

Five nodes that find each other by multicast alone learn all ten digits; others, that know each other by DNS alone, are
made eight while they train; any of them is killed, paused, slowed and cut off, Prometheus and coordinators too, and the
dashboards show it; a parameter server; votes; TLS; a swarm. Fails when anything does not hold. Without Docker, and
without a way to install it, it says so and checks nothing.
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine import ROOT, Unavailable, build_images, compose, docker, engine, inspect, logs, megabytes, say
from project import (
    ACCURACY,
    PROJECT,
    Demo,
    gone,
    knows,
    learnt,
    moved,
    panels,
    running,
    targets_up,
    train_together,
    train_together_over,
    until,
)

STACK = "shoal-check-stack"
IDLE_S, IDLE_CPU = 20.0, 0.02
LARGEST_MB = 500.0


# --- the checks -------------------------------------------------------------------------------------------------


def multicast(make: Callable[..., Demo]) -> None:
    """Five nodes that have nothing but multicast learn all digits."""
    with running(make(DISCOVERY="mdns", ROUNDS="1500", EMULATE_COMPUTE_S="0.01"), "node", node=5) as demo:
        train_together(demo, 5)
        say(f"by multicast alone: five nodes, mean model at {learnt(demo, 5):.3f}")


def names_and_faults(make: Callable[..., Demo]) -> None:
    """By DNS alone; five become eight; one is killed, one paused, one loses its network; Prometheus is killed; the
    trouble-maker goes round."""
    demo = make(DISCOVERY="dns", SUSPECT_AFTER_S="3", CHAOS_EVERY_S="2", CHAOS_LENGTH_S="5")
    with running(demo, "node", "prometheus", node=5):
        train_together(demo, 5)
        targets_up(demo, 5)
        demo.up("node", "prometheus", node=8)
        train_together(demo, 8)
        targets_up(demo, 8)
        say("by DNS alone: five nodes, then eight; all targets up")
        panels(demo, "tls", "gpu", "votes", "a-psgd", "coordinator", healthy=True)
        *victims, _, _, _, _, _ = nodes = demo.containers("node")
        for victim, fault in zip(victims, FAULTS, strict=True):
            rest = [node for node in nodes if node != victim]
            with befallen(demo, victim, "node", fault, rest):
                moved(demo, rest)
            train_together(demo, 8)
            healed(demo)
            say(f"{fault}: the others went on, and it came back; the dashboard showed both")
        docker("kill", *demo.containers("prometheus"))
        moved(demo, nodes)
        docker("start", *demo.containers("prometheus"))
        targets_up(demo, 8)
        say("Prometheus killed: nodes went on, and all targets are up again")
        trouble(demo, nodes)


FAULTS = {
    "kill": ("kill --signal KILL {it}", "start {it}"),
    "pause": ("pause {it}", "unpause {it}"),
    "network disconnect": (
        "network disconnect {project}_default {it}",
        "network connect --alias {service} {project}_default {it}",
    ),
}
"""What is done to a container, and how that is undone."""
TROUBLES = ("kill", "pause", "slow", "disconnect")
"""What chaos.py does."""


@contextlib.contextmanager
def befallen(demo: Demo, victim: str, service: str, fault: str, others: list[str]) -> Iterator[None]:
    """One fault: within, the others miss it and the dashboard shows that; afterwards it is undone."""
    begin, end = (words.format(it=victim, service=service, project=PROJECT) for words in FAULTS[fault])
    before = {node: knows(demo, node) for node in others}
    docker(*begin.split())
    until(lambda: all(knows(demo, node) == before[node] - 1 for node in others), f"{victim} is missed")
    until(lambda: gone(demo) == 1, f"the dashboard shows that {victim} is gone")
    yield
    docker(*end.split())


def healed(demo: Demo) -> None:
    """Until the dashboard shows nobody as gone."""
    until(lambda: gone(demo) == 0, "the dashboard shows nobody as gone")


def trouble(demo: Demo, nodes: list[str]) -> None:
    """The profile `chaos`: each of its faults once, and all are well afterwards."""
    demo.up("node", "chaos", node=len(nodes))
    (chaos,) = demo.containers("chaos")
    slowed = False

    def over() -> bool:
        nonlocal slowed
        slowed = slowed or any(facts["HostConfig"]["CpuQuota"] > 0 for facts in inspect(nodes))
        return logs(chaos).count(": over") >= len(TROUBLES)

    until(over, "each fault has come and gone")
    docker("stop", chaos)
    said = logs(chaos)
    assert all(f"{fault} {PROJECT}-node-" in said for fault in TROUBLES), said
    assert "failed" not in said, said
    assert slowed, "no node was given less of a core"
    assert not any(f["State"]["Paused"] or f["HostConfig"]["CpuQuota"] > 0 for f in inspect(nodes)), said
    train_together(demo, len(nodes))
    targets_up(demo, len(nodes))
    say(f"the profile chaos: {', '.join(TROUBLES)}, and all came back")


def parameter_server(make: Callable[..., Demo]) -> None:
    """The coordinator's profile, with its coordinator killed once."""
    demo = make(env_file="a-psgd.env", ROUNDS="3000", EMULATE_COMPUTE_S="0.01")
    with running(demo, "node", "coordinator", "prometheus", node=5):
        train_together_over(demo, 5)
        targets_up(demo, 6)
        panels(demo, "tls", "gpu", "votes", "pairs")
        docker("kill", "--signal", "KILL", *demo.containers("coordinator"))
        docker("start", *demo.containers("coordinator"))
        moved(demo, demo.containers("node"))
        say(f"a parameter server, killed once: mean model at {learnt(demo, 5):.3f}")


def votes(make: Callable[..., Demo]) -> None:
    """The same profile with votes; its coordinator is killed, paused, and loses its network."""
    demo = make(env_file="a-psgd.env", ALGORITHM="signum", EMULATE_COMPUTE_S="0.01", SUSPECT_AFTER_S="3")
    with running(demo, "node", "coordinator", "prometheus", node=5):
        train_together_over(demo, 5)
        targets_up(demo, 6)
        panels(demo, "tls", "gpu", "pairs", "a-psgd")
        (coordinator,), nodes = demo.containers("coordinator"), demo.containers("node")
        for fault in FAULTS:
            with befallen(demo, coordinator, "coordinator", fault, nodes):
                pass
            train_together_over(demo, 5)
            healed(demo)
            say(f"{fault} of the coordinator: its nodes waited for it, and went on; the dashboard showed both")
        targets_up(demo, 6)


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


def rules(image: str) -> None:
    """By Prometheus' own tool, out of its image: its configurations, and that every alert fires where it should."""
    tool = ["run", "--rm", "--network", "none", "--entrypoint", "promtool"]
    mount = ["--volume", f"{ROOT / 'compose' / 'prometheus'}:/rules:ro", image]
    docker(*tool, *mount, "check", "config", "/rules/prometheus.yml", "/rules/http-sd.yml")
    docker(*tool, *mount, "test", "rules", "/rules/tests/shoal_test.yml")
    say("promtool: configurations are valid, every alert fires in its test and none where all is well")


def refusals(image: str) -> None:
    """A volume that the image's user may not write is named, with the remedy."""
    said = ""
    try:
        docker("run", "--rm", "--tmpfs", "/state:uid=0,mode=755", image, "node", "--insecure")
    except RuntimeError as error:
        said = str(error)
    assert "failed with 2" in said, said or "a node started on a volume that it may not write"
    assert "cannot be used: Permission denied; give --state-dir" in said, said
    say("a volume without its rights: refused, with the remedy")


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

    rules(settings["PROMETHEUS_IMAGE"])
    sizes(f"{settings['IMAGE']}:node")
    refusals(f"{settings['IMAGE']}:node")
    for check in (multicast, names_and_faults, parameter_server, votes, encrypted, swarm, idle):
        check(make)
    say(f"all held, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
