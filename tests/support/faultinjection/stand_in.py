"""What runs in place of iptables-restore, iptables-save and nft, and does what the order beside it says.

A script of its own: it is copied to a directory under the names of the programs, and runs as isolated Python
that imports little (no pathlib, say) to start quickly. Without an order it becomes the real program. The file
`order` holds one line of fields with tabs between,

    DEED CHANCE PROGRAMS WORDS

which are a `Deed`, a probability, the end of the names of the programs meant, and texts with commas between,
one of which must be in the input. Every order that is carried out appends a line, `PROGRAM DEED`, to the file
`done`.
"""

import enum
import os
import signal
import subprocess
import sys

REAL = "/usr/sbin"
"""Where Debian has the programs."""


class Deed(enum.StrEnum):
    """What to do to a program's run."""

    FAIL = "fail"
    """Do nothing, and report a failure of the kernel."""
    REFUSE = "refuse"
    """Do nothing, and report the line of the input that contains a word as refused."""
    HALF = "half"
    """Start the real program, give it half of its input, kill it, and die as it did."""
    LATE = "late"
    """Run the real program to its end, and be killed before that could be told."""
    HANG = "hang"
    """Wait until the order is withdrawn, then run."""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Carry out the order, or become the real program."""
    own, name = os.path.split(os.path.abspath(sys.argv[0]))
    real = os.path.join(REAL, name)
    argv = [name, *sys.argv[1:]]
    path = os.path.join(own, "order")
    order = _read(path)
    if not order:
        os.execv(real, argv)  # noqa: S606
    deed, chance, programs, words = order.split("\t")
    lucky = int.from_bytes(os.urandom(4), "big") >= float(chance) * (1 << 32)
    if lucky or "--version" in argv or not name.endswith(programs):
        os.execv(real, argv)  # noqa: S606
    text = b"" if name.endswith("save") else sys.stdin.buffer.read()
    meant = [word.encode() for word in words.split(",")]
    if not any(word in text for word in meant):
        sys.exit(subprocess.run([real, *argv[1:]], input=text, check=False).returncode)
    with open(os.path.join(own, "done"), "a", encoding="utf-8") as journal:
        journal.write(f"{name} {deed}\n")
    lines = text.splitlines(keepends=True)
    match deed:
        case Deed.FAIL:
            sys.exit(f"{name}: the kernel is in no mood for this")
        case Deed.REFUSE:
            number = next(n for n, line in enumerate(lines, 1) if any(word in line for word in meant))
            sys.stderr.write(f"{name}: line {number} failed\n")
            sys.exit(1)
        case Deed.HALF:
            with subprocess.Popen([real, *argv[1:]], stdin=subprocess.PIPE) as process:
                assert process.stdin is not None
                process.stdin.write(b"".join(lines[: len(lines) // 2]))
                process.stdin.flush()
                process.kill()
            _die()
        case Deed.LATE:
            subprocess.run([real, *argv[1:]], input=text, check=False)
            _die()
        case Deed.HANG:
            while _read(path) == order:
                signal.sigtimedwait((), 0.02)
            sys.exit(subprocess.run([real, *argv[1:]], input=text, check=False).returncode)


if __name__ == "__main__":
    main()
