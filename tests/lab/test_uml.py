"""The user-mode kernel: what runs in it, what comes back, and how its end is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tenacity import Retrying, stop_after_delay, wait_fixed

from kproxy_lab import uml
from tests.suite.kernels import NONE

CANNOT = uml.missing() or os.environ.get(NONE, "")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(CANNOT), reason=CANNOT or "it can be booted"),
    pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="a user-mode kernel in one is one too many"),
    pytest.mark.xdist_group("uml"),
]


def test_it_has_ipvs_and_passes_on_status_output_and_environment() -> None:
    lines: list[str] = []
    script = (
        "import os; print(open('/proc/net/ip_vs').readline(), os.environ['GREETING']); raise SystemExit(7)"
    )
    status = uml.run(
        [sys.executable, "-c", script], timeout=120, environment={"GREETING": "it's me"}, on_line=lines.append
    )
    assert status == 7
    assert any("IP Virtual Server version" in line for line in lines)
    assert any("it's me" in line for line in lines)


def test_a_command_that_does_not_end_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="had not ended"):
        uml.run(["sleep", "1000"], timeout=10)


def test_a_kernel_that_ends_early_differs_from_a_command_that_failed() -> None:
    with pytest.raises(uml.UmlDied, match="before the command did"):
        uml.run(["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"], timeout=120)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_kernel_ends_with_the_process_that_booted_it(end: signal.Signals) -> None:
    """No process of the kernel's, among them those that it holds by ptrace, is left."""
    argv = [sys.executable, "-m", "kproxy_lab.uml", "--", "sh", "-c", "echo up; sleep 600 & wait"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as booted:
        assert booted.stdout is not None
        assert "up\n" in iter(booted.stdout.readline, "")
        kernel = kernel_of(booted.pid)
        assert len(kernel) > 1
        booted.send_signal(end)
        booted.wait()
    gone = Retrying(stop=stop_after_delay(20), wait=wait_fixed(0.05), reraise=True)
    for attempt in gone:
        with attempt:
            assert [pid for pid in kernel if Path(f"/proc/{pid}").exists()] == []


def kernel_of(pid: int) -> list[int]:
    """The processes that descend from this one and run the kernel's program."""
    found, todo = [], [pid]
    while todo:
        at = Path(f"/proc/{todo.pop()}")
        children = [
            int(n) for task in (at / "task").iterdir() for n in (task / "children").read_text().split()
        ]
        found += [child for child in children if uml.KERNEL in Path(f"/proc/{child}/cmdline").read_text()]
        todo += children
    return found
