"""Log changes of the agent's health, and write Events at the Node for reasons that last.

The verdict depends on time as well as on events, and the run loop may hang. So a thread computes it every few
seconds, which takes some microseconds.
"""

import threading
from collections.abc import Callable

import structlog

from kproxy import logs
from kproxy.telemetry.events import Notice, Reason
from kproxy.telemetry.verdict import Cause, Condition, State, Verdict
from kproxy.text import Joined

log = structlog.stdlib.get_logger(__name__)

PERIOD = 2.0
"""Seconds between two checks. A condition that holds in two consecutive checks becomes an Event."""

_REASONS = {
    Cause.CONFIGURATION_REJECTED: Reason.CONFIGURATION,
    Cause.SOCKET_TABLE: Reason.DEGRADED,
}
"""Reasons of Events; all other causes share one."""

_SILENT = frozenset({Cause.MODE_REFUSED, Cause.WATCH_DOWN, Cause.LISTS_INCOMPLETE})
"""Causes without an Event here: one has its own, and others mean that the API server does not answer."""

_SHOWN = 300


class HealthMonitor:
    """Compares each verdict with the one before. `notify` takes notices for Events and returns at once."""

    def __init__(self, verdict: Callable[[], Verdict], notify: Callable[[Notice], None]) -> None:
        self._verdict = verdict
        self._notify = notify
        self._known = Verdict(State.STARTING, live=True)
        self._seen: set[tuple[Cause, str]] = set()
        self._noticed: set[tuple[Cause, str]] = set()

    def run(self, stop: threading.Event) -> None:
        """Check until `stop` is set."""
        self.check()
        while not stop.wait(PERIOD):
            self.check()

    def check(self) -> None:
        """Check once; report lines that were left out of the log."""
        logs.report_left_out()
        verdict = self._verdict()
        known, self._known = self._known, verdict
        if (verdict.state, verdict.causes, verdict.live) != (known.state, known.causes, known.live):
            self._log(verdict, known)
        holding = {_key(each) for each in verdict.conditions}
        self._noticed &= holding
        if verdict.state is not State.STARTING:
            for each in verdict.conditions:
                key = _key(each)
                if key in self._seen and key not in self._noticed and each.cause not in _SILENT:
                    self._noticed.add(key)
                    self._notify(Notice(_REASONS.get(each.cause, Reason.UNHEALTHY), "", each.message))
        self._seen = holding

    def _log(self, verdict: Verdict, known: Verdict) -> None:
        said = {
            "state": verdict.state.value,
            "was": known.state.value,
            "livez": "200" if verdict.live else "503",
            "reasons": Joined(each.value for each in verdict.causes),
        }
        if verdict.state in (State.HEALTHY, State.STARTING):
            log.info("health_changed", **said)
        else:
            log.warning("health_changed", **said, first=verdict.conditions[0].message[:_SHOWN])


def _key(condition: Condition) -> tuple[Cause, str]:
    return condition.cause, condition.subject
