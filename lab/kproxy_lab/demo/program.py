"""The real `kproxy run` as a process in the node's namespace, with its log read line by line."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import kproxy
from kproxy_lab.demo.interruption import Interruption
from kproxy_lab.lab import Namespace

STOP_SECONDS: Final = 5.0
TAIL_LINES: Final = 15

_FIELD: Final = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


class ProgramDiedError(RuntimeError):
    """kproxy ended unexpectedly; `tail` is the end of its log."""

    def __init__(self, status: int, tail: Sequence[str]) -> None:
        super().__init__(f"kproxy ended by itself with status {status}")
        self.tail = tuple(tail)


class ProgramSilentError(RuntimeError):
    """kproxy did not log the awaited event; `tail` is the end of its log."""

    def __init__(self, awaited: str, seconds: float, tail: Sequence[str]) -> None:
        super().__init__(f"kproxy logged no {awaited} within {seconds:g} s")
        self.tail = tuple(tail)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of logfmt. `at` is its own timestamp in seconds since the epoch, 0 for a line that has none."""

    at: float
    fields: dict[str, str]
    text: str

    @classmethod
    def parse(cls, text: str) -> "LogLine":
        """Read a line; one that is no logfmt has no fields."""
        fields = {name: value.strip('"') for name, value in _FIELD.findall(text)}
        try:
            at = datetime.fromisoformat(fields.get("timestamp", "")).timestamp()
        except ValueError:
            at = 0.0
        return cls(at, fields, text)


class Program:
    """kproxy, running from construction to `stop()`; `ended` as soon as its log ends."""

    def __init__(self, node: Namespace, arguments: Sequence[str], interruption: Interruption) -> None:
        self.arguments = tuple(arguments)
        self._interruption = interruption
        self._lines: list[LogLine] = []
        self.ended = False
        self._stopping = False
        self._process = start_module(node, "kproxy", "run", *arguments)
        self._reader = threading.Thread(target=self._read, name="kproxy-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def check(self) -> None:
        """Raise ProgramDiedError if kproxy is gone, Interrupted if the demo should end."""
        self._interruption.check()
        if self.ended and not self._stopping:
            status = self._process.wait()
            raise ProgramDiedError(status, self.tail())

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines of the log."""
        with self._interruption.changed:
            return [line.text for line in self._lines[-lines:]]

    def find(self, event: str, *, since: float = 0.0, **fields: str) -> LogLine | None:
        """The first line of an event with these fields, logged at or after `since` (epoch seconds)."""
        wanted = {"event": event, **fields}
        with self._interruption.changed:
            for line in self._lines:
                if line.at >= since and wanted.items() <= line.fields.items():
                    return line
        return None

    def wait_for(self, event: str, seconds: float, *, since: float = 0.0, **fields: str) -> LogLine:
        """Wait for such a line. Raises ProgramDiedError, ProgramSilentError, Interrupted."""
        self._interruption.wait_for(
            lambda: self.ended or self.find(event, since=since, **fields) is not None, seconds
        )
        line = self.find(event, since=since, **fields)
        if line is None:
            self.check()
            raise ProgramSilentError(" ".join((event, *fields.values())), seconds, self.tail())
        return line

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if that does not help; again is harmless."""
        self._stopping = True
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        with output(self._process) as stream:
            for text in stream:
                line = LogLine.parse(text.rstrip())
                with self._interruption.changed:
                    self._lines.append(line)
                    self._interruption.changed.notify_all()
        with self._interruption.changed:
            self.ended = True
            self._interruption.changed.notify_all()


def start_module(namespace: Namespace, module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a module of this package in a namespace; the caller ends it, and reads its `output()`.

    It gets a process group of its own: Ctrl-C at a terminal reaches the demo, and the demo ends the program.
    """
    return subprocess.Popen(
        namespace.command([sys.executable, "-m", module, *arguments]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(),
        process_group=0,
    )


def output(process: subprocess.Popen[str]) -> IO[str]:
    """What a program started with `start_module` writes, stdout and stderr alike."""
    if process.stdout is None:
        raise ValueError("its output is not captured")
    return process.stdout


def _environment() -> dict[str, str]:
    """Return this process's environment without KPROXY_* settings and with this package importable."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KPROXY_")}
    home = Path(kproxy.__file__).parents[1]
    if home.name not in {"site-packages", "dist-packages"}:
        own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home), own.get("PYTHONPATH"))))
    return own
