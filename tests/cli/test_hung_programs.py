"""A signal while a program hangs: kproxy ends, the program with it, and nothing is committed later."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.nodes import FLAGS, LIMIT_AS_IT_IS, rules
from tests.kernel.namespace import fresh_network
from tests.suite import mounts
from tests.support.faultinjection import NAMES, Sandbox

PATIENCE = 45.0
"""Seconds: less than any time limit of a program, so that nothing but the signal ends the wait for it."""

RUN = ["run", "--healthz-bind-address", "", "--metrics-bind-address", "", *FLAGS]

guarded = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")


class Programs:
    """Stand-ins that become the real programs, or hang while the file `hang` is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "programs"
        self.directory.mkdir()
        self.hang = directory / "hang"
        self._hung = directory / "hung"
        os.mkfifo(self._hung)
        for name in NAMES:
            path = self.directory / name
            path.write_text(
                "#!/bin/sh\n"
                f'case "$*" in --version) exec /usr/sbin/{name} "$@";; esac\n'
                f"[ -e {self.hang} ] && {{ trap '' TERM INT; echo $$ > {self._hung}; sleep 600; }}\n"
                f'exec /usr/sbin/{name} "$@"\n'
            )
            path.chmod(0o755)

    def first_hung(self) -> int:
        """Wait until a program hangs; a descriptor that is readable once it has ended."""
        return os.pidfd_open(int(self._hung.read_text()))


@contextmanager
def started(programs: Programs, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run kproxy with these programs in this thread's network namespace."""
    mounts.needed()
    command = [*Sandbox(tools=programs.directory).command(), sys.executable, "-m", "kproxy", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(pidfd: int) -> bool:
    """Wait for the end of a process; False if it does not come."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        return bool(poller.poll(PATIENCE * 1000))
    finally:
        os.close(pidfd)


@pytest.mark.parametrize(
    "flags",
    [["--iptables-variant", "nft"], ["--iptables-variant", "legacy"], ["--proxy-mode", "nftables"], []],
    ids=["nft", "legacy", "nftables", "auto"],
)
@fresh_network
def test_run_ends_while_a_program_hangs_at_the_start(tmp_path: Path, flags: list[str]) -> None:
    programs = Programs(tmp_path)
    before = rules()
    programs.hang.touch()
    with started(programs, *RUN, *flags) as process:
        program = programs.first_hung()
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "event=stopped" in log) == (0, True), log
    assert ended(program)
    assert rules() == before


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=guarded)])
@fresh_network
def test_run_ends_while_a_program_hangs_later(tmp_path: Path, variant: str, number: signal.Signals) -> None:
    programs = Programs(tmp_path)
    with started(programs, *RUN, "--iptables-variant", variant) as process:
        assert process.stderr is not None
        synced = [line for _, line in zip(range(2), _synced(process.stderr), strict=False)]
        assert len(synced) == 2
        programs.hang.touch()
        subprocess.run([f"iptables-{variant}", "-t", "nat", "-F", "KUBE-SERVICES"], check=True)
        damaged = rules()
        program = programs.first_hung()
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == (0 if number is signal.SIGTERM else -number)
    assert ended(program)
    assert rules() == damaged


def _synced(log: Iterator[str]) -> Iterator[str]:
    return (line for line in log if "event=synced" in line)


@guarded
@pytest.mark.parametrize(
    "arguments",
    [["cleanup"], ["diff", *FLAGS], ["check", LIMIT_AS_IT_IS], [*RUN, "--once"]],
    ids=["cleanup", "diff", "check", "run --once"],
)
@fresh_network
def test_commands_end_while_a_program_hangs(tmp_path: Path, arguments: list[str]) -> None:
    programs = Programs(tmp_path)
    before = rules()
    programs.hang.touch()
    with started(programs, *arguments) as process:
        program = programs.first_hung()
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert ended(program)
    assert rules() == before
