"""Kills, pauses, slows and disconnects containers of the demo, so that you can watch the others go on.

Talks to the Docker engine through its socket. Every EVERY_S seconds it picks a node, or the coordinator, at random.
Each kind of fault comes once before any comes again.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

SOCKET = "/var/run/docker.sock"
PROJECT = os.environ.get("PROJECT", "shoal")
EVERY_S = float(os.environ.get("EVERY_S", "20"))
LENGTH_S = float(os.environ.get("LENGTH_S", "8"))
"""Of a pause, and of a time without network: longer than members wait for a sign of life."""
PERIOD_US, SLOW_US = 100_000, 5_000
"""Of each period of CPU time, how much a slow one gets: a twentieth of a core."""
SERVICES = ("node", "coordinator")


class Engine(http.client.HTTPConnection):
    """The Docker engine of this machine."""

    def __init__(self) -> None:
        super().__init__("docker", timeout=60)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Raises RuntimeError with the engine's words."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {text.decode(errors='replace')}")
        return json.loads(text) if text else None


def containers(engine: Engine) -> list[dict[str, Any]]:
    """Those of the demo that run and train or serve."""
    wanted = json.dumps({"label": [f"com.docker.compose.project={PROJECT}"], "status": ["running"]})
    found = engine.ask("GET", f"/containers/json?filters={quote(wanted)}")
    return [each for each in found if each["Labels"].get("com.docker.compose.service") in SERVICES]


def kill(engine: Engine, container: dict[str, Any]) -> None:
    """And starts it again: the engine takes a container that it was told to kill for one that is to stay down."""
    engine.ask("POST", f"/containers/{container['Id']}/kill?signal=KILL")
    try:
        time.sleep(LENGTH_S)
    finally:
        engine.ask("POST", f"/containers/{container['Id']}/start")


def pause(engine: Engine, container: dict[str, Any]) -> None:
    """All its processes stand still."""
    engine.ask("POST", f"/containers/{container['Id']}/pause")
    try:
        time.sleep(LENGTH_S)
    finally:
        engine.ask("POST", f"/containers/{container['Id']}/unpause")


def slow(engine: Engine, container: dict[str, Any]) -> None:
    """It gets little of a core. A quota of -1 is none; the engine takes 0 for what is to stay as it is."""
    engine.ask("POST", f"/containers/{container['Id']}/update", {"CpuPeriod": PERIOD_US, "CpuQuota": SLOW_US})
    try:
        time.sleep(LENGTH_S)
    finally:
        engine.ask("POST", f"/containers/{container['Id']}/update", {"CpuPeriod": PERIOD_US, "CpuQuota": -1})


def disconnect(engine: Engine, container: dict[str, Any]) -> None:
    """It loses its network, and gets it back with another address perhaps."""
    known = engine.ask("GET", f"/containers/{container['Id']}/json")  # the list of all leaves aliases out
    (network, facts), *_ = known["NetworkSettings"]["Networks"].items()
    config = {"Aliases": facts.get("Aliases"), "IPAMConfig": {"IPv4Address": facts["IPAddress"]}}
    engine.ask("POST", f"/networks/{network}/disconnect", {"Container": container["Id"], "Force": True})
    try:
        time.sleep(LENGTH_S)
    finally:
        try:
            engine.ask("POST", f"/networks/{network}/connect", {"Container": container["Id"], "EndpointConfig": config})
        except RuntimeError:  # an engine that lets nobody choose an address on a network that it numbered itself
            del config["IPAMConfig"]
            engine.ask("POST", f"/networks/{network}/connect", {"Container": container["Id"], "EndpointConfig": config})


FAULTS = (kill, pause, slow, disconnect)


def main() -> None:
    """For ever."""
    dealt: list[Callable[[Engine, dict[str, Any]], None]] = []
    while True:
        time.sleep(EVERY_S)
        dealt = dealt or random.sample(FAULTS, len(FAULTS))
        fault = dealt.pop()
        try:
            with contextlib.closing(Engine()) as engine:
                container = random.choice(containers(engine))
                name = f"{fault.__name__} {container['Names'][0].lstrip('/')}"
                print(name, flush=True)
                fault(engine, container)
                print(f"{name}: over", flush=True)
        except (OSError, RuntimeError, IndexError) as error:
            print(f"{fault.__name__} failed: {error}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is stopped mends what it broke
    try:
        main()
    except KeyboardInterrupt:
        print("stopped")
