"""Xtables by running iptables-restore and iptables-save.

Built for latency: input and dump pass through memory files, so neither side waits for the other to drain a
pipe, and the end of the program is seen as the end of its stderr, not by polling for its exit.
"""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import time
from dataclasses import dataclass

from kproxy.addresses import Family
from kproxy.kernel.xtables import failures, lock, stamps
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Stamp, Variant

_WAIT_SINCE = (1, 6, 2)  # iptables-restore -w
_RANDOM_FULLY_SINCE = (1, 6, 2)
_TIMEOUT = 300.0  # kube-proxy allows an iptables command five minutes
_REAP_SECONDS = 5.0
_COUNTERS = re.compile(rb"^(:\S+ [A-Z]+) \[\d+:\d+\]$", re.MULTILINE)
_TABLE_NAME = re.compile(r"[a-z]+\Z")


@dataclass(frozen=True, slots=True)
class XtablesTools:
    """The programs of one family and variant.

    `restore` and `save` are absolute paths; `version` is the programs' own, e.g. (1, 8, 9).
    """

    restore: str
    save: str
    variant: Variant
    version: tuple[int, int, int]


class SubprocessXtables:
    """The tables of one family, through the programs of `tools`.

    `lock_wait` is how many seconds to wait for another program to let go of the xtables lock (legacy only;
    nft has none); `timeout` is how many seconds a program may run.
    """

    def __init__(
        self, family: Family, tools: XtablesTools, *, lock_wait: int = 5, timeout: float = _TIMEOUT
    ) -> None:
        self.family = family
        self.tools = tools
        self.variant = tools.variant
        self.random_fully = tools.version >= _RANDOM_FULLY_SINCE
        self._timeout = timeout
        self._restore_argv = [tools.restore, "--noflush"]
        if tools.variant is Variant.LEGACY and tools.version >= _WAIT_SINCE:
            self._restore_argv += ["-w", str(lock_wait)]

    def restore(self, text: bytes) -> None:
        """Apply a restore input; see Xtables.restore.  Raises RestoreError."""
        status, _, stderr = run(self._restore_argv, text, self._timeout)
        if status:
            error = failures.from_exit(status, stderr)
            if error.kind is FailureKind.LOCKED:
                error = RestoreError(error.kind, f"{error.message} [{lock.describe()}]", error.line)
            raise error

    def save(self, table: str | None = None) -> bytes:
        """The dump of one table or of all that exist; see Xtables.save.  Raises RestoreError.

        Naming a table that does not exist makes legacy create it.
        """
        argv = [self.tools.save]
        if table is not None:
            argv += _in_table(table)
        return without_noise(self._dump(argv))

    def counters(self, table: str) -> bytes:
        """The rules of one table with their counters; see Xtables.counters.  Raises RestoreError."""
        return self._dump([self.tools.save, "-c", *_in_table(table)])

    def stamp(self) -> Stamp | None:
        """See Xtables.stamp."""
        return stamps.stamp(self.family, self.variant)

    def _dump(self, argv: list[str]) -> bytes:
        status, dump, stderr = run(argv, b"", self._timeout)
        if status:
            raise failures.from_exit(status, stderr)
        return dump


def _in_table(table: str) -> list[str]:
    if not _TABLE_NAME.match(table):
        msg = f"not a table name: {table!r}"
        raise ValueError(msg)
    return ["-t", table]


def without_noise(dump: bytes) -> bytes:
    """A dump without its comment lines and with the counters of built-in chains at [0:0]."""
    parts: list[bytes] = []
    start = dump.find(b"*") if not dump.startswith(b"*") else 0
    while start >= 0:
        end = dump.find(b"\nCOMMIT\n", start)
        if end < 0:
            break
        end += len(b"\nCOMMIT\n")
        rules = dump.find(b"\n-A ", start, end)
        rules = rules if rules >= 0 else end
        parts += (_COUNTERS.sub(rb"\1 [0:0]", dump[start:rules]), dump[rules:end])
        start = dump.find(b"\n*", end - 1)
        start = start + 1 if start >= 0 else start
    return b"".join(parts)


def run(argv: list[str], stdin: bytes, timeout: float = _TIMEOUT) -> tuple[int, bytes, bytes]:
    """Run a program to its end: (exit status, negative for a signal; stdout; stderr).

    Raises RestoreError: MISSING if it cannot be executed, INTERRUPTED if it outlives `timeout` seconds.
    """
    with _memory_file("stdin", stdin) as given, _memory_file("stdout", b"") as printed:
        try:
            process = subprocess.Popen(
                argv, stdin=given, stdout=printed, stderr=subprocess.PIPE, env=_environment(), bufsize=0
            )
        except OSError as error:
            raise RestoreError(FailureKind.MISSING, f"cannot run {argv[0]}: {error.strerror}") from error
        with process:
            stderr = _read_to_end(process, time.monotonic() + timeout)
            try:
                status = process.wait(_REAP_SECONDS if stderr is not None else 0)
            except subprocess.TimeoutExpired as error:
                process.kill()
                message = f"{argv[0]} did not finish in {timeout:g} s"
                raise RestoreError(FailureKind.INTERRUPTED, message) from error
        printed.seek(0)
        return status, printed.read(), stderr or b""


def _read_to_end(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    assert process.stderr is not None  # noqa: S101  (it is a pipe, by the arguments above)
    descriptor = process.stderr.fileno()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    chunks: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(left * 1000):
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
    return None


def _memory_file(name: str, content: bytes) -> io.FileIO:
    file = io.FileIO(os.memfd_create(f"xtables-{name}", os.MFD_CLOEXEC), "r+")
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]
    file.seek(0)
    return file


def _environment() -> dict[str, str]:
    # XTABLES_LOCKFILE and XTABLES_LIBDIR must be those every other iptables program on the node gets.
    passed = {name: value for name, value in os.environ.items() if name.startswith("XTABLES_")}
    return {**passed, "LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
