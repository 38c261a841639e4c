"""Several hosts on one machine: each a network, process and host-name namespace of its own, on one switch.

Needs root, `unshare`, `nsenter`, `setpriv` and `ip`. Nothing stays behind, even after kill -9: each namespace is held
by a child that dies with this process, and everything inside dies with its first process.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NET = "10.77.0"
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Not a function between fork and exec: where gRPC has threads in this process, that may hang."""


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    missing = [tool for tool in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], check=False)
    return "" if tried.returncode == 0 else "no network namespaces can be made here"


class Host:
    """One host, or the switch between them."""

    def __init__(self, name: str, ip: str = "") -> None:
        self.name, self.ip = name, ip
        space = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        first = f"hostname {name}; ip link set lo up; echo up; exec sleep infinity"
        self._holder = subprocess.Popen([*WITH_PARENT, *space, "sh", "-c", first], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0])

    def argv(self, command: Sequence[str]) -> list[str]:
        """That command, run inside."""
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", "-p", f"--wd={os.getcwd()}", *command]

    def sh(self, script: str) -> str:
        """What it prints; raises where it fails."""
        return subprocess.run(self.argv(["sh", "-ec", script]), check=True, capture_output=True, text=True).stdout

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """A process inside; it ends with the host."""
        return subprocess.Popen([*WITH_PARENT, *self.argv(command)], **options)

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Ends what `start` gave: the command itself, and not only what entered the namespaces for it."""
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait()

    def traffic(self) -> tuple[int, int]:
        """(sent, received): bytes that passed its network interface, every header included."""
        (line,) = (line for line in self.sh("cat /proc/net/dev").splitlines() if line.strip().startswith("eth0:"))
        fields = line.partition(":")[2].split()
        return int(fields[8]), int(fields[0])

    def close(self) -> None:
        """Ends everything inside."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts on one switch, gone afterwards."""
    made: list[Host] = []
    try:
        made.append(switch := Host("switch"))
        switch.sh("ip link add br0 type bridge; ip link set br0 up")
        for k, name in enumerate(names):
            made.append(host := Host(name, f"{NET}.{10 + k}"))
            ends = ["type", "veth", "peer", "name", f"p{k}", "netns", str(switch.pid)]
            subprocess.run(["ip", "link", "add", "eth0", "netns", str(host.pid), *ends], check=True)
            switch.sh(f"ip link set p{k} master br0; ip link set p{k} up")
            host.sh(f"ip addr add {host.ip}/24 dev eth0; ip link set eth0 up; ip route add default via {NET}.1")
        yield made[1:]
    finally:
        for host in reversed(made):
            host.close()
