"""The trainer as its daemon sees it: a process, a channel, and shared memory. Imports no torch."""

import asyncio
import dataclasses
import os
import socket
import sys
from asyncio.subprocess import Process

from shoal.link import RECEIVE, TRANSMIT, Channel, Segment, Slots
from shoal.settings import Settings

TRAINER = "shoal.trainer"
GLIBC_TUNABLES = "glibc.cpu.x86_non_temporal_threshold=0x1000000"
"""Copies of 16 MiB and more do not read what they overwrite: a third of their traffic, where memory is the limit."""
END_WITHIN_S = 1.0
"""A trainer that has closed its channel, or whose daemon has, is killed if it lives on."""


class Child:
    """One trainer process. It lives and dies with the daemon: its end of the socket closes with ours."""

    def __init__(self, process: Process, channel: Channel, segment: Segment) -> None:
        self.process, self.channel, self.segment = process, channel, segment
        self.receiving = Slots(range(TRANSMIT, TRANSMIT + RECEIVE))

    @classmethod
    async def start(cls, settings: Settings, me: str, incarnation: int) -> "Child":
        """Spawns it (never forks: grpc is imported here) and hands it its settings."""
        ours, theirs = socket.socketpair()
        segment = Segment.create()
        fds = (theirs.fileno(), segment.fd)
        argv = (sys.executable, "-m", TRAINER, *map(str, fds))
        environment = {"GLIBC_TUNABLES": GLIBC_TUNABLES, **os.environ, "OMP_NUM_THREADS": str(settings.threads)}
        # In a process group of its own: Ctrl-C at a terminal goes to a whole group, and the daemon decides.
        process = await asyncio.create_subprocess_exec(*argv, pass_fds=fds, env=environment, process_group=0)
        theirs.close()
        channel = await Channel.open(ours)
        channel.send("settings", settings=dataclasses.asdict(settings), me=me, incarnation=incarnation)
        return cls(process, channel, segment)

    def map(self, slot_bytes: int) -> None:
        """Map the shared memory once the trainer has sized it."""
        descriptor = self.segment.fd
        self.segment = Segment.attach(descriptor, slot_bytes, TRANSMIT + RECEIVE)
        os.close(descriptor)

    def kill(self) -> None:
        """At once, with nothing saved."""
        if self.process.returncode is None:
            self.process.kill()

    async def end(self) -> int:
        """Close the channel, wait a moment, kill if need be; returns the exit status."""
        self.channel.close()
        try:
            return await asyncio.wait_for(self.process.wait(), END_WITHIN_S)
        except TimeoutError:
            self.process.kill()
            return await self.process.wait()
