"""Start a program in a room of its own, where some things are not as they are elsewhere.

`python room.py JSON -- COMMAND` makes the room and becomes the command: the process id stays the same. Only
the standard library is used, so that it starts quickly.
"""

import ctypes
import json
import os
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

TOOLS_DIR = "/usr/local/sbin"
"""The first directory in which kproxy looks for iptables programs."""

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_CLONE_NEWTIME = 0x00000080
_MS_REC, _MS_BIND, _MS_PRIVATE = 0x4000, 0x1000, 0x40000  # linux/mount.h
_FULL_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Room:
    """What is different inside.

    `tools`: a directory that hides TOOLS_DIR. `full`: an existing directory that is a full disk, TMPDIR and
    the working directory. `stderr`: a file to write to instead. `mute`: standard error is closed altogether.
    `sockets`: a directory of BrokenSockets, or `wall`: one of BrokenClock; not both at once. `clock`: seconds
    by which CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of the machine's (time_namespaces(7)).
    `descriptors`: the hard limit of open files; half of it is the soft one.
    """

    tools: Path | None = None
    full: Path | None = None
    stderr: Path | None = None
    mute: bool = False
    sockets: Path | None = None
    wall: Path | None = None
    clock: int = 0
    descriptors: int = 0

    def command(self) -> list[str]:
        """What to put in front of a command line; it needs root."""
        settings = {name: str(value) for name, value in asdict(self).items() if value}
        return [sys.executable, "-IS", __file__, json.dumps(settings), "--"]


def _check(result: int, doing: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{doing}: {os.strerror(code)}")


def _make(libc: ctypes.CDLL, settings: dict[str, str]) -> None:
    _check(libc.unshare(_CLONE_NEWNS), "unshare")
    _check(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount / private")
    if tools := settings.get("tools"):
        _check(libc.mount(tools.encode(), TOOLS_DIR.encode(), None, _MS_BIND, None), f"mount {tools}")
    if full := settings.get("full"):
        options = f"size={_FULL_SIZE}".encode()
        _check(libc.mount(b"tmpfs", full.encode(), b"tmpfs", 0, options), f"mount {full}")
        Path(full, "ballast").write_bytes(bytes(_FULL_SIZE))
        os.chdir(full)
        os.environ["TMPDIR"] = full
    if stderr := settings.get("stderr"):
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), 2)
    if settings.get("mute"):
        os.close(2)
    if customised := settings.get("sockets") or settings.get("wall"):
        os.environ["PYTHONPATH"] = customised
    if clock := int(settings.get("clock", 0)):
        _check(libc.unshare(_CLONE_NEWTIME), "unshare time")
        Path("/proc/self/timens_offsets").write_text(f"monotonic {clock} 0\nboottime {clock} 0\n")
        place = os.open("/proc/self/ns/time_for_children", os.O_RDONLY)
        _check(libc.setns(place, _CLONE_NEWTIME), "setns time")
        os.close(place)
    if descriptors := int(settings.get("descriptors", 0)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors // 2, descriptors))


def main() -> None:
    """Make the room and become the command."""
    _, settings, dashes, *argv = sys.argv
    if dashes != "--" or not argv:
        sys.exit("usage: room.py JSON -- COMMAND...")
    _make(ctypes.CDLL(None, use_errno=True), json.loads(settings))
    os.execvp(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    main()
