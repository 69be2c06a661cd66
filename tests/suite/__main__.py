"""Run pytest, rerun the few tests that failed by themselves, and report the outcome of both runs.

Thousands of tests with real packets and time limits run on a machine that may be overloaded. A test that
fails beside others and passes alone counts as passed, but is named with its output at the end and in a file.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.suite.outcome import Outcome, read

CACHE: Final = Path(".cache")
SECOND: Final = CACHE / "passed-the-second-time.txt"
MANY: Final = 20
"""Limit of failures to rerun: more are caused by the code or the machine, not by chance."""

OK: Final = 0
FAILED: Final = 1
"""pytest's exit status where every test was run and some failed (pytest.ExitCode.TESTS_FAILED)."""

Run = Callable[[Sequence[str], Path], int]
"""Runs pytest with arguments, has it write its Outcome to a file, and returns its exit status."""


def main(arguments: Sequence[str], run: Run, cache: Path = CACHE) -> int:
    """Return the exit status: 0 only if no work was lost and every test passed, maybe in the rerun."""
    report = cache / SECOND.name
    report.unlink(missing_ok=True)
    status = run(arguments, cache / "outcome.json")
    first = read(cache / "outcome.json")
    if status == OK and not first.lost and not first.failed:
        return OK
    for lost in first.lost:
        print(f"\nLOST: {lost}", file=sys.stderr)  # noqa: T201
    if status != FAILED or first.lost or not 0 < len(first.failed) <= MANY:
        return status or FAILED
    print(f"\nOnce more, by themselves: {len(first.failed)}")  # noqa: T201
    listed = cache / "failed-tests"
    listed.write_text("".join(f"{nodeid}\n" for nodeid in first.failed), encoding="utf-8")
    status = run(["-n", "0", "--ipvs-kernels", "1", f"@{listed}"], cache / "outcome-again.json")
    return _judge(first, status, read(cache / "outcome-again.json"), report)


def _judge(first: Outcome, status: int, second: Outcome, report: Path) -> int:
    acquitted = [nodeid for nodeid in first.failed if nodeid in second.passed]
    if acquitted:
        text = "\n\n".join(f"=== {nodeid}\n{first.failed[nodeid]}" for nodeid in acquitted)
        report.write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n\nPASSED ONLY THE SECOND TIME: {len(acquitted)} (output above and in {report})")  # noqa: T201
        for nodeid in acquitted:
            print(f"  {nodeid}")  # noqa: T201
    remaining = [nodeid for nodeid in first.failed if nodeid not in second.passed]
    for nodeid in remaining:
        print(f"FAILED TWICE: {nodeid}", file=sys.stderr)  # noqa: T201
    for lost in second.lost:
        print(f"\nLOST: {lost}", file=sys.stderr)  # noqa: T201
    return OK if status == OK and not remaining and not second.lost else status or FAILED


def _pytest(arguments: Sequence[str], outcome: Path) -> int:
    """Run pytest in a process of its own, which gets the signals that this one gets.

    The option and its value are one argument: pytest reads its arguments first without the options of
    conftest, and would look for conftest beside the file of an earlier run.
    """
    argv = [sys.executable, "-m", "pytest", f"--outcome-to={outcome}", *arguments]
    with subprocess.Popen(argv) as process:

        def pass_on(number: int, _frame: object) -> None:
            process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, pass_on)
        # The terminal sends SIGINT to both; pytest ends in good order, and this process after it.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: None)
        status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], _pytest))
