"""Find the holder of the xtables lock.

Legacy iptables programs serialise on an advisory lock of one file (iptables/xshared.c: XT_LOCK_NAME, or the
file that XTABLES_LOCKFILE names).  An operator needs the name of the program that holds it, which is found
through /proc/locks.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_LOCK_FILE = "/run/xtables.lock"


def lock_file_in_use() -> Path:
    """Return the lock file of iptables programs that kproxy starts."""
    return Path(os.environ.get("XTABLES_LOCKFILE", "") or DEFAULT_LOCK_FILE)


def describe() -> str:
    """Return the lock file's path and, if /proc has them, the id and command of the holding process."""
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
    """Return the process id of the lock's holder; None if it is free or held in another PID namespace."""
    try:
        status = lock_file.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in locks.splitlines():
        # "1: FLOCK  ADVISORY  WRITE 8531 fe:00:16637955 0 EOF"; waiters have "->" as second field
        fields = line.split()
        if len(fields) >= 6 and fields[1] != "->" and fields[5] == inode:
            pid = int(fields[4])
            return pid if pid > 0 else None
    return None
