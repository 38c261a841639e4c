"""`python -m shoal.trainer CONTROL_FD MEMORY_FD`: started by the daemon, and of no use to anybody else."""

import asyncio
import os
import signal
import socket
import sys

import torch

from shoal.link import Channel
from shoal.settings import Settings
from shoal.trainer.host import TrainerHost, report_failure


async def main(control_fd: int, memory_fd: int) -> None:
    """Until the daemon says stop, or its end of the socket closes."""
    channel = await Channel.open(socket.socket(fileno=control_fd))
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
        channel.close()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # service managers send it to every process; the daemon decides
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
    sys.stderr.flush()
    os._exit(0)  # a gradient that is still being computed must not keep the process
