"""Lists skipped tests at the end: each reason, with the number of tests of each part of the suite."""

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.suite.matrix import EVERYTHING, SEED


def reasons(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line for each reason, the most frequent first: count, reason, and the parts of the suite."""
    counted: dict[str, Counter[str]] = {}
    for report in reports:
        longrepr = report.longrepr
        reason = (
            str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
            .removeprefix("Skipped: ")
            .splitlines()
        )
        counted.setdefault(reason[0] if reason else "no reason", Counter())[_part(report.nodeid)] += 1
    ordered = sorted(counted.items(), key=lambda each: (-each[1].total(), each[0]))
    return [f"{parts.total():5} {reason} ({_listed(parts)})" for reason, parts in ordered]


def _part(nodeid: str) -> str:
    return "/".join(nodeid.partition("::")[0].split("/")[:2])


def _listed(parts: Counter[str]) -> str:
    if len(parts) == 1:
        return next(iter(parts))
    return ", ".join(f"{part} {count}" for part, count in sorted(parts.items()))


class Skips:
    """Prints the list, independent of pytest's options."""

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        skipped = terminalreporter.stats.get("skipped", [])
        if not EVERYTHING:
            terminalreporter.line("every second family or case in each mode; `make test-all` runs them all")
        if SEED:
            terminalreporter.line(f"random histories: KPROXY_SEED={SEED}")
        if skipped:
            terminalreporter.section(f"skipped: {len(skipped)}")
            for line in reasons(skipped):
                terminalreporter.line(line)
