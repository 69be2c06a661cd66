"""Starts a program in a sandbox with faults: other tools, a full disk, another clock, few descriptors.

`python sandbox.py JSON -- COMMAND` sets up the sandbox and execs the command, which keeps the process id.
Only the standard library is imported, so that it starts quickly.
"""

import ctypes
import json
import os
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

TOOLS_DIR = "/usr/local/sbin"
"""Directory in which kproxy looks first for iptables programs."""

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_CLONE_NEWTIME = 0x00000080
_MS_REC, _MS_BIND, _MS_PRIVATE = 0x4000, 0x1000, 0x40000  # linux/mount.h
_FULL_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Settings of the sandbox; an empty one changes nothing.

    `tools`: directory mounted over TOOLS_DIR. `full`: existing directory that becomes a full disk, TMPDIR and
    the working directory. `stderr`: file that standard error is appended to. `mute`: close standard error.
    `sockets`: directory of BrokenSockets, or `wall_clock`: directory of BrokenClock; not both. `clock`:
    seconds by which CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of the machine's (time_namespaces(7)).
    `descriptors`: hard limit of open files; the soft limit is half of it.
    """

    tools: Path | None = None
    full: Path | None = None
    stderr: Path | None = None
    mute: bool = False
    sockets: Path | None = None
    wall_clock: Path | None = None
    clock: int = 0
    descriptors: int = 0

    def command(self) -> list[str]:
        """Return the prefix of a command line that runs it in the sandbox. Needs root."""
        settings = {name: str(value) for name, value in asdict(self).items() if value}
        return [sys.executable, "-IS", __file__, json.dumps(settings), "--"]


def _check(result: int, doing: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{doing}: {os.strerror(code)}")


def _enter(libc: ctypes.CDLL, settings: dict[str, str]) -> None:
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
    if customised := settings.get("sockets") or settings.get("wall_clock"):
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
    """Set up the sandbox and exec the command."""
    _, settings, dashes, *argv = sys.argv
    if dashes != "--" or not argv:
        sys.exit("usage: sandbox.py JSON -- COMMAND...")
    _enter(ctypes.CDLL(None, use_errno=True), json.loads(settings))
    os.execvp(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    main()
