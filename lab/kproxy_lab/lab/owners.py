"""Names that tell which process owns an object in the kernel, so that others can remove what it left."""

import os
import re
from pathlib import Path
from typing import Final

_OWNED_NAME: Final = re.compile(r"^kplab-(?P<pid>\d+)-(?P<started>\d+)-")


def process_started(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot (proc_pid_stat(5), field 22).

    None when there is no such process or only its zombie. Pid and start time together name a process
    even after the kernel has given the pid to another.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def owned_prefix(serial: str) -> str:
    """The prefix of names that this process alone uses: `kplab-<pid>-<start time>-<serial>-`."""
    pid = os.getpid()
    return f"kplab-{pid}-{process_started(pid)}-{serial}-"


def is_orphan(name: str) -> bool:
    """Return whether this is the name of a lab's object whose process is gone."""
    match = _OWNED_NAME.match(name)
    return match is not None and process_started(int(match["pid"])) != int(match["started"])


def orphaned(directory: Path) -> list[str]:
    """The names in a directory that are those of orphans."""
    return sorted(each.name for each in directory.iterdir() if is_orphan(each.name))
