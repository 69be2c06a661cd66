"""The real kproxy as a child process inside the lab's node, and its log."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from kproxy_lab import uml
from kproxy_lab.lab import Namespace

DEADLINE = 120.0 if uml.inside() else 60.0
"""Seconds after which a test gives up waiting: a bound for failures, never something that is measured.

In the user-mode kernel, to start kproxy alone takes ten seconds, and many more on a busy machine.
"""

T = TypeVar("T")

_EVENT = re.compile(r"\bevent=(\S+)")


class Kproxy:
    """One running process; its log lines are kept, and each wakes all waiting threads.

    `prefix` is a command that execs the command after it, such as a `Sandbox`.
    """

    def __init__(self, node: Namespace, arguments: Sequence[str], prefix: Sequence[str] = ()) -> None:
        argv = [*prefix, sys.executable, "-m", "kproxy", *arguments]
        self._process = node.popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="kproxy-log", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> list[str]:
        """Every line so far."""
        with self._changed:
            return list(self._lines)

    def mark(self) -> int:
        """Return the current position in the log, for `since` of `wait_log`."""
        with self._changed:
            return len(self._lines)

    def wait_log(self, event: str, *words: str, since: int = 0) -> str:
        """The first line at or after `since` of this event that contains all words.

        Raises AssertionError when there is none in time.
        """

        def find() -> str | None:
            for line in self._lines[since:]:
                found = _EVENT.search(line)
                if found and found[1] == event and all(word in line for word in words):
                    return line
            return None

        with self._changed:
            self._changed.wait_for(lambda: find() or not self._reader.is_alive(), DEADLINE)
            line = find()
        assert line is not None, f"no event={event} with {words} in the log:\n" + "\n".join(self.log[since:])
        return line

    def until(self, observe: Callable[[], T], expected: T) -> None:
        """Repeat an observation, also at every log line, until it returns the expected value.

        Packets cannot report a change of rules, so this polls. Raises AssertionError after DEADLINE.
        """
        deadline = time.monotonic() + DEADLINE
        while (last := observe()) != expected:
            assert time.monotonic() < deadline, f"expected {expected!r}, but it stays {last!r}"
            with self._changed:
                self._changed.wait(0.02)

    def send(self, number: signal.Signals) -> None:
        """Send a signal that does not end it."""
        self._process.send_signal(number)

    def close_log(self) -> None:
        """Close the reading end of its log: from now on its writes fail with EPIPE."""
        assert self._process.stderr is not None
        os.dup2(os.open(os.devnull, os.O_RDONLY), self._process.stderr.fileno())

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        status = self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return status

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
