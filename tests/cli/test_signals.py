"""Signals that arrive before a command handles them, and those of a container's first process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.nodes import FLAGS, PATIENCE
from tests.cli.test_hung_programs import Programs
from tests.kernel.namespace import fresh_network
from tests.suite import mounts
from tests.support.faultinjection import Sandbox

FIRST_PROCESS = ("unshare", "--pid", "--fork", "--kill-child")
KPROXY = (sys.executable, "-m", "kproxy")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("command", ["check", "diff"])
@fresh_network
def test_the_first_process_of_a_container_obeys_sigterm(tmp_path: Path, command: str) -> None:
    file = tmp_path / "config.conf"
    os.mkfifo(file)
    process = subprocess.Popen(
        [*FIRST_PROCESS, *KPROXY, command, "--config", str(file), *FLAGS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, file.open("w"):  # opened once the command reads it
        (first,) = children(process.pid)
        os.kill(first, signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in errors) == (128 + signal.SIGTERM, False), errors


@fresh_network
def test_a_cleanup_that_is_the_first_process_obeys_sigterm(tmp_path: Path) -> None:
    mounts.needed()
    programs = Programs(tmp_path)
    programs.hang.touch()
    sandbox = Sandbox(tools=programs.directory).command()
    process = subprocess.Popen(
        [*FIRST_PROCESS, *sandbox, *KPROXY, "cleanup"], stderr=subprocess.PIPE, text=True
    )
    with process:
        os.close(hung(programs))
        (first,) = children(process.pid)
        os.kill(first, signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in errors) == (128 + signal.SIGTERM, False), errors


def hung(programs: Programs) -> int:
    """Wait until a program hangs; its number is that of another PID namespace."""
    return os.open(programs.directory.parent / "hung", os.O_RDONLY)


def test_an_interrupt_during_the_imports_prints_no_traceback() -> None:
    script = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "kproxy.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from kproxy.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "status"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")
