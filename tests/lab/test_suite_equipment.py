"""The suite's own equipment: inherited signals, lost kernels, the list of skips."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kproxy_lab import uml
from tests.suite import kernels, signals
from tests.suite.kernels import Guest, losses
from tests.suite.skips import reasons

PROGRAM = """
import signal, subprocess
from tests.suite import signals
signals.restore()
print(subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout)
"""


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_programs_get_the_default_action_of_a_signal_that_was_inherited_as_ignored(
    ignored: signal.Signals,
) -> None:
    """As `sh -c 'make test &'` and `nohup make test` start it."""
    number = int(ignored)
    argv = ["sh", "-c", f'trap "" {number}; exec "$@"', "sh", sys.executable, "-c", PROGRAM]
    root = Path(__file__).parents[2]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    mask = int(done.stdout.split()[1], 16)
    assert not mask & 1 << number - 1


def test_a_session_that_is_terminated_ends_in_good_order() -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        signals.restore()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)


class Boot:
    """Stands in for a kernel: collects tests, reports some, and ends as it shall."""

    def __init__(self, collected: Sequence[str] | None, end: int | Exception = 0) -> None:
        self._collected = collected
        self._end = end

    def __call__(self, _argv: Sequence[str], *, environment: Mapping[str, str], **_: Any) -> int:
        path = Path(environment[kernels.REPORTS])
        if self._collected is not None:
            path.with_suffix(".collected").write_text(json.dumps(self._collected))
        if isinstance(self._end, Exception):
            raise self._end
        return self._end


@pytest.mark.parametrize(
    ("boots", "ended", "told"),
    [
        ([Boot(["a", "b"]), Boot(["a", "b"])], {"a", "b"}, None),
        ([Boot(["a"], 1)], {"a"}, None),
        ([Boot([], 5)], set(), None),
        ([Boot(["a"]), Boot(["a"], uml.UmlDied("early"))], {"a"}, "early"),
        ([Boot(None, uml.UmlUnavailable("no kernel"))], set(), "no kernel"),
        ([Boot(None, TimeoutError("too long"))], set(), "too long"),
        ([Boot(None, 4)], set(), "status 4"),
        ([Boot(["a", "b"])], {"a"}, "1 tests without a report of an IPVS kernel: b"),
        ([Boot(["a", "b"]), Boot(["b", "a"])], {"a", "b"}, "collected different tests"),
    ],
)
def test_what_a_kernel_loses_is_reported(
    tmp_path: Path, boots: Sequence[Boot], ended: set[str], told: str | None
) -> None:
    guests = [Guest(n, [], tmp_path / f"{n}.jsonl", tmp_path, boot) for n, boot in enumerate(boots)]
    for guest in guests:
        guest.join()
    found = losses(guests, ended)
    assert (told is None and found == []) or any(told is not None and told in each for each in found)


def skipped(nodeid: str, reason: str) -> pytest.TestReport:
    longrepr = ("a.py", 1, f"Skipped: {reason}")
    return pytest.TestReport(nodeid, ("a.py", 1, "a"), {}, "skipped", longrepr, "setup")


def test_skips_are_summed_up_by_reason_and_part() -> None:
    reports = [
        skipped("tests/kernel/test_a.py::test_a", "not root"),
        skipped("tests/packets/test_b.py::test_b[x/y]", "not root"),
        skipped("tests/packets/test_c.py::test_c", "not root"),
        skipped("tests/test_d.py::test_d", "no kubectl\nanywhere"),
    ]
    assert reasons(reports) == [
        "    3 not root (tests/kernel 1, tests/packets 2)",
        "    1 no kubectl (tests/test_d.py)",
    ]


def test_a_session_prints_its_skips_and_leaves_no_kernel_unasked(tmp_path: Path) -> None:
    """Whatever is asked of pytest, the reasons are in what it prints."""
    argv = [sys.executable, "-m", "pytest", "-n", "0", "-q", "tests/kernel/test_ipvs_kernel.py"]
    done = subprocess.run(
        [*argv, "--ipvs-kernels", "0"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )
    if Path("/proc/net/ip_vs").exists():
        assert done.returncode == 0, done.stdout
    else:
        assert "skipped: " in done.stdout
        assert "--ipvs-kernels is 0 (tests/kernel)" in done.stdout or "user-mode-linux" in done.stdout
