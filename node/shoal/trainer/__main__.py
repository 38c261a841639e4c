"""`python -m shoal.trainer CONTROL_FD MEMORY_FD`: started by the daemon, and of no use to anybody else."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from typing import NoReturn

import torch

from shoal.heap import keep_freed_memory
from shoal.link import Channel
from shoal.settings import Settings
from shoal.trainer.host import TrainerHost, report_failure

LEVELS = ("debug", "info", "warning", "error")
TEXT_LIMIT = 4000
"""Characters of a line, or of a traceback, that the user's code logs."""


class ToDaemon(logging.Handler):
    """What the trainer's code logs becomes a line of the node's log."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel, self._loop = channel, asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """At once on the loop's own thread, also while that loads; from others by way of the loop."""
        level = "error" if record.levelno >= logging.ERROR else logging.getLevelName(record.levelno).lower()
        text = self.format(record)[:TEXT_LIMIT]
        if threading.current_thread() is threading.main_thread():
            self._send(level, text)
        else:
            self._loop.call_soon_threadsafe(self._send, level, text)

    def _send(self, level: str, text: str) -> None:
        self._channel.send("event", level=level if level in LEVELS else "info", text=text)


LINGER_S = 2.0


async def main(control_fd: int, memory_fd: int) -> None:
    """Until the daemon says stop, or its end of the socket closes."""
    channel = await Channel.open(socket.socket(fileno=control_fd))
    logging.basicConfig(level=logging.INFO, handlers=[ToDaemon(channel)], format="%(message)s")
    first = await channel.receive()
    if first is None:
        return
    settings = Settings(**first.fields["settings"])
    torch.set_num_threads(settings.threads)
    try:
        host = TrainerHost(channel, memory_fd, settings, first.fields["me"], first.fields["incarnation"])
        host.ready()
        await host.serve()
    except Exception as error:
        report_failure(channel, error)
    finally:
        await linger(channel)
        channel.close()


async def linger(channel: Channel) -> None:
    """Keep this end open until the daemon has read the last word and closed its own, or asks to stop: what it still
    writes to a closed socket would cost it that word."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (packet := await channel.receive()) is not None and packet.kind != "stop":
                pass


def run(control_fd: int, memory_fd: int) -> NoReturn:
    """The process, to its end."""
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):  # service managers send it to every process; the daemon decides
        signal.signal(number, signal.SIG_IGN)
    code = 1
    try:
        asyncio.run(main(control_fd, memory_fd))
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # a gradient that is still being computed must not keep the process


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
