"""One process of a shoal, a node's daemon or a coordinator: its named tasks, its signals, and how it ends."""

import asyncio
import ipaddress
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal import logs
from shoal.errors import SettingsError
from shoal.fields import parse_address
from shoal.heap import keep_freed_memory
from shoal.settings import Settings

if TYPE_CHECKING:
    from shoal.transport.tls import Tls

log = logging.getLogger("shoal")

AGAIN = -1
"""The exit code of a life that another one follows (`lives.py`); no process ends with it."""


class Process:
    """Made on the event loop. `ended` gets the exit code and why, from whoever is first to say."""

    def __init__(self) -> None:
        keep_freed_memory()
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[tuple[int, str]] = loop.create_future()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def own(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """One background task, one name; one that ends with an error ends the process."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks[name] = task
        task.add_done_callback(lambda done: self._task_ended(name, done))

    async def cancel_tasks(self) -> None:
        """None is left when this returns."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end(self, code: int, reason: str) -> None:
        """With that exit code."""
        if not self.ended.done():
            self.ended.set_result((code, reason))

    def fail(self, code: int, message: str) -> None:
        """Say at once what went wrong, in one or two lines; then end."""
        if not self.ended.done():
            print("error:", "\n".join(map(logs.printable, message.splitlines())), file=sys.stderr, flush=True)
            self.end(code, message)

    def _task_ended(self, name: str, task: "asyncio.Task[None]") -> None:
        self.tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None and not self.ended.done():
            self.ended.set_exception(error)

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        log.info("%s: stopping%s", name, " already" if self.ended.done() else "")
        self.end(128 + number, f"stopped by {name}")


def tls_of(settings: Settings, role: str | None = None) -> "Tls | None":
    """What `--tls` names, for a process of that role, or of any; None without. Raises SettingsError when it cannot be
    used."""
    if not settings.tls:
        return None
    from shoal.certificates.credentials import Credentials
    from shoal.transport.tls import Tls

    credentials = Credentials(Path(settings.tls))
    credentials.fits(shoal=settings.shoal, name=settings.name, role=role)
    return Tls(credentials)


def say_exposure(settings: Settings, tls: "Tls | None", bound: str) -> None:
    """At every start: who may be at the other end."""
    if tls is not None:
        mine = tls.credentials.member
        log.info("TLS with members of shoal %s alone, as %s until %s", mine.shoal, mine.name, f"{mine.ends:%Y-%m-%d}")
        if settings.insecure:
            log.warning("--insecure: HTTP is in plain text, and shows status and metrics to whoever reaches it")
    elif settings.insecure:
        log.warning("--insecure: no TLS, so whoever reaches %s can join and read every model", bound)


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError for an address beyond loopback without TLS or an explicit word. HTTP has no TLS."""
    for name, address in (("listen", settings.listen), ("http", settings.http)):
        host, _ = parse_address(address)
        try:
            loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        allowed = settings.insecure or (name == "listen" and bool(settings.tls))
        if not loopback and not allowed:
            remedy = "--tls DIR (`shoal certs` makes one), or --insecure" if name == "listen" else "--insecure"
            raise SettingsError(
                f"{name} = {address} is beyond loopback, where anyone could join, or read what this node "
                f"shows and sends; give {remedy} if that is meant"
            )
