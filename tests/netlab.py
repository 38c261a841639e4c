"""Several hosts on one machine: each a network, process and host-name namespace of its own, on one switch that can
cut, drop, delay and slow down what passes it.

Needs root, `unshare`, `nsenter`, `setpriv` and `ip`; faults need `nft` and `tc` besides. Nothing stays behind, even
after kill -9: each namespace is held by a child that dies with this process, and everything inside dies with its first
process.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NET = "10.77.0"
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""Not a function between fork and exec: where gRPC has threads in this process, that may hang."""


FAULT_TOOLS = ("nft", "tc")
CUTS = """
add table bridge lab
add chain bridge lab faults { type filter hook forward priority 0; }
add set bridge lab cut { type ifname . ifname; }
add rule bridge lab faults iifname . oifname @cut drop
add chain bridge lab losses
add rule bridge lab faults jump losses
"""
"""What the switch forwards, for nft: a pair (from, to) in the set `cut` is dropped, and what `losses` picks."""

KNOCK = """
import socket, sys
try: socket.create_connection((sys.argv[1], 9), 1.0)
except ConnectionRefusedError: pass
except OSError: sys.exit(1)
"""


def why_not(*more: str) -> str:
    """Why there can be no hosts here, with `more` tools; empty where there can."""
    missing = [tool for tool in ("unshare", "nsenter", "setpriv", "ip", *more) if shutil.which(tool) is None]
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
        (self.pid,) = children(self._holder.pid)

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
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
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


class Lab:
    """Hosts on one switch, and what the switch does to what they send each other. A fault holds until it is undone;
    of two partitions the later counts. Host k is behind the switch's port `p{k}`."""

    def __init__(self, hosts: Sequence[Host], switch: Host) -> None:
        self.hosts, self.switch = list(hosts), switch
        self._cuts: set[tuple[int, int]] = set()
        self._ports = [f"p{k}" for k in range(len(hosts))]  # by which the switch knows them; a delay changes it
        self._relays: dict[int, subprocess.Popen[bytes]] = {}
        self._ready = False

    def block(self, source: int, to: int) -> None:
        """Nothing gets from one host to another any more; the way back stays."""
        self._cuts.add((source, to))
        self._apply()

    def cut(self, one: int, other: int) -> None:
        """Nothing gets from either host to the other; both reach all the rest."""
        self._cuts |= {(one, other), (other, one)}
        self._apply()

    def partition(self, *groups: Sequence[int]) -> None:
        """Nothing gets from one group to another."""
        pairs = ((a, b) for group in groups for other in groups if other is not group for a in group for b in other)
        self._cuts = set(pairs)
        self._apply()

    def mend(self, pairs: Sequence[tuple[int, int]] | None = None) -> None:
        """Those ways pass again; without an argument all."""
        self._cuts = set() if pairs is None else self._cuts - set(pairs)
        self._apply()

    def connected(self, one: int, other: int) -> bool:
        """Whether nothing is cut between two hosts, either way."""
        return not {(one, other), (other, one)} & self._cuts

    def loss(self, percent: float) -> None:
        """Frames are lost at random, on every way; 0: none."""
        self._prepare()
        rule = f"add rule bridge lab losses numgen random mod 1000 < {round(10 * percent)} drop" if percent else ""
        self._nft(f"flush chain bridge lab losses\n{rule}")

    def limit(self, k: int, rate: str = "") -> None:
        """What host k sends and gets, each, such as 2mbit a second; empty: no limit."""
        for place, device in ((self.hosts[k], "eth0"), (self.switch, f"p{k}")):
            shaped = f"tc qdisc replace dev {device} root tbf rate {rate} burst 64kb latency 400ms"
            place.sh(shaped if rate else f"tc qdisc del dev {device} root 2>/dev/null || true")

    def delay(self, k: int, ms: float = 0, jitter_ms: float = 0) -> None:
        """All that host k sends and gets takes so much longer, each way, by a relay (`delayline.py`); 0: no relay."""
        port, inner, outer = f"p{k}", f"d{k}a", f"d{k}b"
        if (relay := self._relays.pop(k, None)) is not None:
            self.switch.kill(relay)
            if relay.stdout is not None:
                relay.stdout.close()
            self.switch.sh(f"ip link del {inner}; ip link set {port} promisc off master br0")
            self._ports[k] = port
        if ms:
            relay_argv = [sys.executable, str(Path(__file__).with_name("delayline.py"))]
            self.hosts[k].sh(f"{' '.join(relay_argv)} --plain eth0")
            self.switch.sh(
                f"ip link set {port} nomaster promisc on; ip link add {inner} type veth peer name {outer};"
                f"ip link set {inner} up promisc on; ip link set {outer} up master br0;"
                f"{' '.join(relay_argv)} --plain {outer}"
            )
            self._ports[k] = outer
            said = self.switch.start([*relay_argv, port, inner, str(ms), str(jitter_ms)], stdout=subprocess.PIPE)
            assert said.stdout is not None
            assert said.stdout.readline() == b"ready\n"
            self._relays[k] = said
        self._apply()

    def reaches(self, source: int, to: int) -> bool:
        """Whether both ways pass: an answer comes from a port where nobody listens."""
        argv = self.hosts[source].argv([sys.executable, "-c", KNOCK, self.hosts[to].ip])
        return subprocess.run(argv, check=False).returncode == 0

    def _apply(self) -> None:
        self._prepare()
        pairs = ", ".join(f'"{self._ports[a]}" . "{self._ports[b]}"' for a, b in sorted(self._cuts))
        self._nft("flush set bridge lab cut\n" + (f"add element bridge lab cut {{ {pairs} }}" if pairs else ""))

    def _prepare(self) -> None:
        if not self._ready:
            self._ready = True
            self._nft(CUTS)

    def _nft(self, script: str) -> None:
        subprocess.run(self.switch.argv(["nft", "-f", "-"]), input=script.encode(), check=True)


def children(pid: int) -> list[int]:
    """Ids of the processes that process `pid` has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def card(k: int) -> str:
    """Hardware address of host k."""
    return f"02:00:00:00:00:{10 + k:02x}"


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts on one switch, gone afterwards."""
    with lab(names) as made:
        yield made.hosts


@contextmanager
def lab(names: Sequence[str]) -> Iterator[Lab]:
    """The same, with the switch."""
    made: list[Host] = []
    try:
        made.append(switch := Host("switch"))
        switch.sh("ip link add br0 type bridge; ip link set br0 up")
        for k, name in enumerate(names):
            made.append(host := Host(name, f"{NET}.{10 + k}"))
            ends = ["type", "veth", "peer", "name", f"p{k}", "netns", str(switch.pid)]
            subprocess.run(["ip", "link", "add", "eth0", "netns", str(host.pid), *ends], check=True)
            switch.sh(f"ip link set p{k} master br0; ip link set p{k} up")
            host.sh(
                f"ip link set eth0 address {card(k)}; ip addr add {host.ip}/24 dev eth0; ip link set eth0 up;"
                f"ip route add default via {NET}.1"
            )
        for k, host in enumerate(made[1:]):  # or a way that is blocked would soon be missed by ARP on the way back
            others = (j for j in range(len(names)) if j != k)
            host.sh("; ".join(f"ip neigh replace {NET}.{10 + j} lladdr {card(j)} dev eth0" for j in others) or ":")
        yield Lab(made[1:], switch)
    finally:
        for host in reversed(made):
            host.close()
