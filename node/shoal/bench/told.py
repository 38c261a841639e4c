"""Processes that are told what to do in lines over stdin, and answer each in a line on stdout."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from shoal.bench.processes import cpu_seconds, family


class Told:
    """One of them."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def tell(self, command: str) -> None:
        """Begin that."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        """The next line of its answers. Raises RuntimeError when it has ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with exit code {self.process.wait()}, expected an answer")
        return line.strip()

    def expect(self, word: str) -> None:
        """Waits for that answer. Raises RuntimeError for another."""
        if (said := self.heard()) != word:
            raise RuntimeError(f"{self.process.args!r} says {said[:200]!r}, expected {word!r}")

    def close(self) -> None:
        """Ends it, with all that it has started."""
        for pid in reversed(family(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Pair:
    """Two of one program that average with each other. The first says where it is and the second is told, as its last
    argument; both say `ready`. Whatever processes they have started by then count as theirs."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._ends = [Told(argv)]
        try:
            self._ends.append(Told([*argv, self._ends[0].heard()]))
            for end in self._ends:
                end.expect("ready")
        except RuntimeError:
            self.close()
            raise
        self.pids = [pid for end in self._ends for pid in family(end.pid)]

    def both(self, command: str, answer: str) -> tuple[float, float]:
        """(wall seconds, CPU seconds of all) until both have answered so."""
        cpu, began = cpu_seconds(self.pids), time.perf_counter()
        for end in self._ends:
            end.tell(command)
        for end in self._ends:
            end.expect(answer)
        return time.perf_counter() - began, cpu_seconds(self.pids) - cpu

    def swap(self) -> tuple[float, float]:
        """(wall seconds, CPU seconds of all) until both hold the mean."""
        return self.both("swap", "done")

    def close(self) -> None:
        """Both end."""
        for end in self._ends:
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
