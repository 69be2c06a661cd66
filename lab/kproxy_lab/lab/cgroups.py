"""The cgroup of a lab's node, and a bpffs of its own: programs there see the sockets of that node alone.

A socket belongs for good to the cgroup of the thread that made it, and a cgroup may hold single threads if
it is a threaded one below the cgroup of their process (cgroup-v2.rst, "Threads"). So each pod has a thread
that makes its sockets and starts its processes, in a cgroup of its own below that of the node. The outside
client and the pods of other nodes stay outside.

Names begin as those of namespaces do, so that `sweep` finds what a killed process left.
"""

import contextlib
import errno
import os
import re
import secrets
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from kproxy_lab.lab.bpffs import Bpffs
from kproxy_lab.lab.owners import orphaned, owned_prefix

HOST: Final = "host"
"""Name of the cgroup for the processes of the node itself."""

_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_REMOVAL_SECONDS: Final = 10.0
_ORPHAN_SECONDS: Final = 2.0


class CgroupUnavailableError(RuntimeError):
    """The machine lacks what a node's cgroup needs; `str()` names it."""


class NodeCgroup:
    """A cgroup for one node, with a child for each pod, and a bpffs; both exist until `close`.

    `path` is the node's cgroup and `bpffs` the path of the file system for pins. Raises
    CgroupUnavailableError.
    """

    def __init__(self, name: str) -> None:
        """`name` is that of a lab's object: `owned_prefix(...)` and a role."""
        self._home = home()
        self.path = self._home / name
        try:
            self._bpffs = Bpffs()
        except OSError as error:
            raise CgroupUnavailableError(str(error)) from error
        self.bpffs = self._bpffs.path
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            _make(self.path)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def child(self, name: str) -> Path:
        """Make a cgroup for one pod, or for the node's own processes. Raises CgroupUnavailableError."""
        path = self.path / name
        _make(path)
        return path

    def close(self) -> None:
        """Remove the cgroups, when the threads and processes in them have ended, and the bpffs.

        Programs attached there end with them. Raises OSError if a process stays.
        """
        self._bpffs.close()
        _remove(self.path, _REMOVAL_SECONDS)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse writes to the bpffs for the length of the block. Raises OSError."""
        self._bpffs.set_read_only(on=True)
        try:
            yield
        finally:
            self._bpffs.set_read_only(on=False)


def join(cgroup: Path) -> None:
    """Move the calling thread to a threaded cgroup; its sockets and child processes will be there."""
    (cgroup / "cgroup.threads").write_text("0", encoding="ascii")


@contextlib.contextmanager
def visiting(cgroup: Path | None) -> Iterator[None]:
    """Have the calling thread in a cgroup for the length of the block; None: where it is."""
    if cgroup is None:
        yield
        return
    before = home()
    join(cgroup)
    try:
        yield
    finally:
        join(before)


def missing() -> list[str]:
    """The reasons why no node's cgroup can be made here; empty when one can. Tries it."""
    if os.geteuid() != 0:
        return ["not root"]
    try:
        with NodeCgroup(owned_prefix(secrets.token_hex(3)) + "probe"):
            return []
    except (CgroupUnavailableError, OSError) as error:
        return [str(error)]


def sweep() -> None:
    """Remove cgroups of labs whose process is gone; what is busy stays for a later sweep."""
    with contextlib.suppress(CgroupUnavailableError):
        own = home()
        for name in orphaned(own):
            with contextlib.suppress(OSError):
                _remove(own / name, _ORPHAN_SECONDS)


def home() -> Path:
    """The directory of the process's own cgroup in cgroup2. Raises CgroupUnavailableError."""
    own = ""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        if line.startswith("0::"):
            own = line.removeprefix("0::").strip("/")
    for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            parts = fields.split(" ")
            below = os.path.relpath("/" + own, _plain(parts[3]))
            found = Path(os.path.normpath(Path(_plain(parts[4])) / below))
            if (found / "cgroup.threads").exists():
                return found
    raise CgroupUnavailableError("no cgroup2 is mounted that shows this process's cgroup")


def _make(path: Path) -> None:
    try:
        path.mkdir()
        (path / "cgroup.type").write_text("threaded", encoding="ascii")
    except OSError as error:
        raise CgroupUnavailableError(f"no threaded cgroup can be made: {error}") from error


def _remove(path: Path, patience: float) -> None:
    """Remove a cgroup with those below it. A thread leaves its cgroup some moments after its end."""
    if not path.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):
        for each in path.iterdir():
            if each.is_dir():
                _remove(each, patience)
        while True:
            try:
                path.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY or not _emptied(path, patience):
                    raise
            else:
                return


def _emptied(path: Path, patience: float) -> bool:
    """Wait until no thread is in a cgroup; the kernel reports that as an exceptional condition."""
    with (path / "cgroup.events").open(encoding="ascii") as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 0" not in events.read():
            if not poll.poll(patience * 1000):
                return False
            events.seek(0)
        return True


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
