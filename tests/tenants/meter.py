"""What kproxy spends while a block runs: processor time, memory, log, and its answers to health probes."""

import contextlib
import os
import threading
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import Final, Self

from tests.packets.cluster import Cluster
from tests.packets.pages import get
from tests.packets.program import Kproxy

PROBES: Final = ("/livez", "/healthz")
_HEALTH_PORT: Final = 10256
_PERIOD: Final = 0.1
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Meter:
    """Use as a context; the figures are final at its end.

    `health` counts the answers by path and status (0: no answer), `slowest` is the longest time until one, in
    seconds. `peak_mb` is the most resident memory, `before_mb` that at the start.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._program = cluster.running
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)
        self.health: Counter[tuple[str, int]] = Counter()
        self.slowest = 0.0
        self.cpu_seconds = 0.0
        self.seconds = 0.0
        self.before_mb = 0.0
        self.peak_mb = 0.0
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._mark = self._program.mark()
        self._cpu = _cpu_seconds(self._program)
        self._resets_peak = _reset_peak(self._program)
        self.before_mb = self.peak_mb = _memory_mb(self._program, "VmRSS")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._began
        self.log = self._program.log[self._mark :]
        with contextlib.suppress(OSError):  # it ended
            self.cpu_seconds = _cpu_seconds(self._program) - self._cpu
            if self._resets_peak:
                self.peak_mb = max(self.peak_mb, _memory_mb(self._program, "VmHWM"))

    @property
    def log_bytes(self) -> int:
        return sum(len(line) + 1 for line in self.log)

    @property
    def unwell(self) -> dict[tuple[str, int], int]:
        """The answers other than 200."""
        return {key: count for key, count in self.health.items() if key[1] != 200}

    def _sample(self) -> None:
        while not self._done.wait(_PERIOD):
            with contextlib.suppress(OSError):
                self.peak_mb = max(self.peak_mb, _memory_mb(self._program, "VmRSS"))
            for path in PROBES:
                began = time.monotonic()
                try:
                    status, _ = get(self._cluster, path, _HEALTH_PORT)
                except (OSError, HTTPException):
                    status = 0
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.health[path, status] += 1


def _cpu_seconds(program: Kproxy) -> float:
    """User and system time of the process and of the programs it ran (proc_pid_stat(5), fields 14 to 17)."""
    fields = Path(f"/proc/{program.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _memory_mb(program: Kproxy, field: str) -> float:
    text = Path(f"/proc/{program.pid}/status").read_text(encoding="ascii")
    return int(text.partition(f"{field}:")[2].split()[0]) / 1024


def _reset_peak(program: Kproxy) -> bool:
    """Begin a new VmHWM (proc_pid_clear_refs(5)); some kernels cannot."""
    try:
        Path(f"/proc/{program.pid}/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
