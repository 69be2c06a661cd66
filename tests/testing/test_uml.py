"""The user-mode kernel: what runs in it, what comes back, and how its end is told."""

import sys
from pathlib import Path

import pytest

from kproxy.testing import uml

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(uml.missing()), reason=uml.missing() or "it can be booted"),
    pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="a user-mode kernel in one is one too many"),
    pytest.mark.xdist_group("uml"),
]


def test_it_has_ipvs_and_passes_on_status_output_and_environment() -> None:
    lines: list[str] = []
    script = (
        "import os; print(open('/proc/net/ip_vs').readline(), os.environ['GREETING']); raise SystemExit(7)"
    )
    status = uml.run(
        [sys.executable, "-c", script], timeout=120, environment={"GREETING": "it's me"}, tell=lines.append
    )
    assert status == 7
    assert any("IP Virtual Server version" in line for line in lines)
    assert any("it's me" in line for line in lines)


def test_a_command_that_does_not_end_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="had not ended"):
        uml.run(["sleep", "1000"], timeout=10)


def test_a_kernel_that_ends_early_is_told_from_a_command_that_failed() -> None:
    with pytest.raises(uml.UmlDied, match="before the command did"):
        uml.run(["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"], timeout=120)
