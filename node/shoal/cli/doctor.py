"""`shoal doctor`: whether a node with these settings could work here, and what to do where it could not."""

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path

import ifaddr
from rich.console import Console
from rich.text import Text

from shoal.cli.options import with_settings
from shoal.cli.terminal import JsonFile, printable, write_json
from shoal.doctor import machine, network, peers
from shoal.doctor.finding import Finding
from shoal.errors import SettingsError
from shoal.settings import Settings
from shoal.transport.tls import Tls

SETTINGS = [
    "listen",
    "advertise",
    "http",
    "tls",
    "insecure",
    "shoal",
    "name",
    "state_dir",
    "discovery",
    "peers",
    "coordinator",
    "device",
]
STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}


@with_settings(only=SETTINGS)
def command(settings: Settings, json_file: JsonFile = None) -> int:
    """Look at this machine as a node with these settings would, and name a remedy for whatever is wrong.

    With --peers it asks each to dial back, so that the way is tried in both directions. Exit code 1 if anything fails.
    """
    found = asyncio.run(examine(settings))
    failed = sum(finding.state == "failure" for finding in found)
    write_json(json_file, {"findings": [dataclasses.asdict(finding) for finding in found], "failures": failed})
    if str(json_file) != "-":
        show(found)
    return 1 if failed else 0


async def examine(settings: Settings) -> list[Finding]:
    """All that is found, in the order in which a node would meet it."""
    adapters = list(ifaddr.get_adapters())
    found = [*network.check_listen(settings, adapters), *network.check_ports(settings)]
    found += [*network.check_multicast(settings, adapters), machine.check_certificates(settings)]
    try:
        tls = tls_of_folder(settings)
    except SettingsError:
        found.append(Finding("peers", "skipped", "without a certificate that can be used nobody answers"))
    else:
        found += [finding async for finding in peers.check_peers(settings, tls)]
    return [*found, *machine.check_disk(settings), machine.check_device(settings)]


def tls_of_folder(settings: Settings) -> Tls | None:
    """In whatever role the certificate has; nodes let no observer ask. Raises SettingsError."""
    if not settings.tls:
        return None
    from shoal.certificates.credentials import Credentials

    return Tls(Credentials(Path(settings.tls)))


def show(found: list[Finding]) -> None:
    """A line a finding, and its remedy below it."""
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.check) for finding in found)
    for finding in found:
        line = Text(f"{finding.state:8}", style=STYLES[finding.state])
        console.print(line.append(f" {finding.check:{width}}  {printable(finding.words, 500)}", style="default"))
        if finding.remedy:
            console.print(Text(f"{'':{width + 11}}-> {printable(finding.remedy, 500)}"))
    counts = Counter(finding.state for finding in found)
    console.print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
