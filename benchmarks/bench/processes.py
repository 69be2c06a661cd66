"""Processor time and memory of a program and its children, read from /proc.

A child counts as long as it is in the program's session. Between fork and exec it still has its parent's
memory (shared with vfork, copy on write with fork), so each address space counts once: otherwise the sum
would sometimes be doubled, with Python's subprocess as with Go's os/exec.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20


class _Stat(NamedTuple):
    """Of one line of /proc/PID/stat, proc(5): processor time in ticks, resident memory in pages."""

    session: int
    ticks: int
    pages: int
    space: tuple[str, ...]
    """Where code begins and ends and the stack begins: random at each exec, so equal only in copies."""


def cpu_seconds(program: int) -> float:
    """User and system time of a program, of its children and of those that were waited for."""
    return sum(stat.ticks for _, stat in _family(program)) / _TICKS


def share_priority(program: int) -> None:
    """Give the session of a program this process's nice value.

    Linux schedules sessions as groups (sched(7), autogroup): between them, a process's nice value does not
    count, but that of its group.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{program}/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))


def resident_mb(program: int) -> float:
    """Resident memory of a program and its children now, each address space once."""
    spaces = {stat.space: stat.pages for _, stat in _family(program)}
    return sum(spaces.values()) * _PAGE_MB


def peak_mb(program: int) -> float:
    """The most memory that any one of the processes has held: the program's own, also below a shell."""
    peaks = [0]
    for pid, _ in _family(program):
        with contextlib.suppress(OSError, IndexError):
            peaks.append(int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]))
    return max(peaks) / 1024


def _family(program: int) -> Iterator[tuple[int, _Stat]]:
    pending = [program]
    while pending:
        pid = pending.pop()
        try:
            stat = _stat(pid)
        except OSError:
            continue
        if stat.session != program:
            continue
        yield pid, stat
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    pending += map(int, (task / "children").read_text().split())


def _stat(pid: int) -> _Stat:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return _Stat(int(fields[3]), sum(map(int, fields[11:15])), int(fields[21]), tuple(fields[23:26]))
