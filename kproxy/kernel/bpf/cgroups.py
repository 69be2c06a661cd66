"""Find the root of cgroup2, so that programs there see the sockets of every process.

In a container the mounted hierarchy may begin below the root: by a cgroup namespace, or by a mount of a part.
A program there sees that container only, without any error. The true root has inode 1 (fs/kernfs).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kproxy.kernel.bpf.pins import CGROUP2, file_system
from kproxy.kernel.bpf.types import BpfError, BpfFailure

_ROOT_INODE = 1
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_ADVICE = "mount the node's /sys/fs/cgroup (hostPath)"


class CgroupMount(msgspec.Struct, frozen=True):
    """A mount of cgroup2: it shows the cgroup `root`, as this process's namespace names it, at `path`."""

    root: str
    path: Path


def find_root(configured: str = "", mounts: Path = _MOUNTS) -> Path:
    """The directory of the root of cgroup2, or `configured` if that is a cgroup.

    Raises BpfError, MISSING, whose message says what is there instead.
    """
    if configured:
        return _configured(Path(configured))
    found = list(cgroup2_mounts(mounts))
    if not found:
        raise BpfError(BpfFailure.MISSING, "no cgroup2 is mounted (a node with cgroup v1 only?)")
    reasons = []
    for mount in found:
        try:
            inode = mount.path.stat().st_ino
        except OSError as error:
            reasons.append(f"{mount.path}: {error.strerror}")
            continue
        if inode == _ROOT_INODE:
            return mount.path
        reasons.append(_below(mount))
    raise BpfError(BpfFailure.MISSING, f"the root of cgroup2 is not to be seen: {'; '.join(reasons)}")


def cgroup2_mounts(mounts: Path = _MOUNTS) -> Iterator[CgroupMount]:
    """The mounts of cgroup2 that this process sees (proc_pid_mountinfo(5)). Raises BpfError."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise BpfError(BpfFailure.MISSING, f"{mounts}: {error.strerror}") from error
    for line in lines:
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if rest.startswith("cgroup2 ") and len(parts) > 4:
            yield CgroupMount(_plain(parts[3]), Path(_plain(parts[4])))


def _configured(path: Path) -> Path:
    try:
        is_cgroup = file_system(path) == CGROUP2
    except OSError as error:
        raise BpfError(
            BpfFailure.MISSING, f"cgroupRoot {path}: {error.strerror}", error.errno or 0
        ) from error
    if not is_cgroup:
        raise BpfError(BpfFailure.MISSING, f"cgroupRoot {path}: not a directory of cgroup2")
    return path


def _below(mount: CgroupMount) -> str:
    if mount.root == "/":
        return f"{mount.path} is the root of a private cgroup namespace, not of the node; {_ADVICE}"
    return f"{mount.path} shows the cgroup {mount.root}, not the root; {_ADVICE}"


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
