"""Who holds the xtables lock.

Legacy iptables programs serialise on an advisory lock of one file (iptables/xshared.c: XT_LOCK_NAME, or what
XTABLES_LOCKFILE names).  "Locked" is of little use to an operator without the name of the program that has
it, and the kernel tells: /proc/locks.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_LOCK_FILE = "/run/xtables.lock"


def lock_file_in_use() -> Path:
    """The file that iptables programs started from here lock."""
    return Path(os.environ.get("XTABLES_LOCKFILE", "") or DEFAULT_LOCK_FILE)


def describe() -> str:
    """The lock file's path and, if /proc tells, the id and command of the process that holds it."""
    lock_file = lock_file_in_use()
    pid = holder(lock_file)
    if pid is None:
        return str(lock_file)
    try:
        command = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"{lock_file} held by process {pid}"
    return f"{lock_file} held by process {pid} ({command})"


def holder(lock_file: Path) -> int | None:
    """The process id of the lock's holder; None if nobody has it or it is in another PID namespace."""
    try:
        status = lock_file.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in locks.splitlines():
        # "1: FLOCK  ADVISORY  WRITE 8531 fe:00:16637955 0 EOF"; those who wait have "->" in second place
        fields = line.split()
        if len(fields) >= 6 and fields[1] != "->" and fields[5] == inode:
            pid = int(fields[4])
            return pid if pid > 0 else None
    return None
