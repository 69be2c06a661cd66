"""Wraps iptables-restore, iptables-save and nft, and injects the fault that the file `fault` names.

A script of its own: it is copied to a directory under each program's name, and runs as isolated Python with
few imports (no pathlib, for instance) to start quickly. Without the file `fault` it execs the real program.
That file holds one line of tab-separated fields:

    FAULT CHANCE PROGRAMS WORDS

a `ToolFault`, a probability, a suffix of the names of the affected programs, and comma-separated texts of
which the input must contain one. Each injected fault appends the line `PROGRAM FAULT` to the file `injected`.
"""

import enum
import os
import signal
import subprocess
import sys

REAL = "/usr/sbin"
"""Directory of the real programs on Debian."""


class ToolFault(enum.StrEnum):
    """What happens to a run of a program."""

    FAIL = "fail"
    """Change nothing and report a failure of the kernel."""
    REFUSE = "refuse"
    """Change nothing and report the input line that contains a word as refused."""
    KILL_HALFWAY = "kill-halfway"
    """Kill the real program after half of its input, then this process."""
    KILL_AFTER = "kill-after"
    """Run the real program to its end, then kill this process: the caller sees a failure."""
    HANG = "hang"
    """Wait until the fault is disabled, then run the real program."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Inject the fault, or exec the real program."""
    own, name = os.path.split(os.path.abspath(sys.argv[0]))
    real = os.path.join(REAL, name)
    argv = [name, *sys.argv[1:]]
    path = os.path.join(own, "fault")
    setting = _read(path)
    if not setting:
        os.execv(real, argv)  # noqa: S606
    fault, chance, programs, words = setting.split("\t")
    skipped = int.from_bytes(os.urandom(4), "big") >= float(chance) * (1 << 32)
    if skipped or "--version" in argv or not name.endswith(programs):
        os.execv(real, argv)  # noqa: S606
    text = b"" if name.endswith("save") else sys.stdin.buffer.read()
    wanted = [word.encode() for word in words.split(",")]
    if not any(word in text for word in wanted):
        sys.exit(subprocess.run([real, *argv[1:]], input=text, check=False).returncode)
    with open(os.path.join(own, "injected"), "a", encoding="utf-8") as journal:
        journal.write(f"{name} {fault}\n")
    lines = text.splitlines(keepends=True)
    match fault:
        case ToolFault.FAIL:
            sys.exit(f"{name}: injected failure of the kernel")
        case ToolFault.REFUSE:
            number = next(n for n, line in enumerate(lines, 1) if any(word in line for word in wanted))
            sys.stderr.write(f"{name}: line {number} failed\n")
            sys.exit(1)
        case ToolFault.KILL_HALFWAY:
            with subprocess.Popen([real, *argv[1:]], stdin=subprocess.PIPE) as process:
                assert process.stdin is not None
                process.stdin.write(b"".join(lines[: len(lines) // 2]))
                process.stdin.flush()
                process.kill()
            _die()
        case ToolFault.KILL_AFTER:
            subprocess.run([real, *argv[1:]], input=text, check=False)
            _die()
        case ToolFault.HANG:
            while _read(path) == setting:
                signal.sigtimedwait((), 0.02)
            sys.exit(subprocess.run([real, *argv[1:]], input=text, check=False).returncode)


if __name__ == "__main__":
    main()
