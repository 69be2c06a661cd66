"""A kproxy that runs beside a test, in the network namespace of the test's thread, and what it logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.cli.nodes import FLAGS, PATIENCE
from tests.suite import mounts

NO_SERVERS = ("--healthz-bind-address", "", "--metrics-bind-address", "127.0.0.1:10249")


class Running:
    """`kproxy run` with the examples' objects; killed at the end of the block if it still runs."""

    def __init__(
        self,
        *flags: str,
        through: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        objects: tuple[str, ...] = tuple(FLAGS),
    ) -> None:
        if through:
            mounts.needed()
        command = [*through, sys.executable, "-m", "kproxy", "run", *objects, *NO_SERVERS, *flags]
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self, event: str, *words: str, times: int = 1) -> str:
        """The line of an event with these words, of its `times`th occurrence."""

        def found() -> list[str]:
            return [
                line
                for line in self.lines
                if f"event={event} " in line + " " and all(word in line for word in words)
            ]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= times or not self._reader.is_alive(), PATIENCE)
            assert len(found()) >= times, f"no {event} {words}:\n" + "\n".join(self.lines)
            return found()[times - 1]

    def ready(self) -> Self:
        """Wait until every family is synced."""
        self.wait("synced", "IPv4")
        self.wait("synced", "IPv6")
        return self

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.send(number)
        return self.status()

    def status(self) -> int:
        """Wait for the end; the exit status."""
        status = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
