"""The settings that the run loop works towards, and what it reports about them.

The side that reads the file writes desired settings and reads the report; the run loop does the reverse.
Neither calls the other.
"""

import threading

import msgspec

from kproxy.config.model import ProxyConfig


class Desired(msgspec.Struct, frozen=True):
    """The requested settings; each `revision` is greater than the one before."""

    revision: int
    config: ProxyConfig


class Refusal(msgspec.Struct, frozen=True):
    """The mode of the desired settings of this revision could not start; `kept` stay in force."""

    revision: int
    kept: ProxyConfig
    reason: str


class ReportedStatus:
    """The latest refusal. Any thread may use it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._refusal: Refusal | None = None

    @property
    def refusal(self) -> Refusal | None:
        """The latest refusal; its revision says whether newer settings have been requested since."""
        return self._refusal

    def report(self, refusal: Refusal) -> None:
        """Replace the latest refusal."""
        with self._changed:
            self._refusal = refusal
            self._changed.notify_all()

    def wake(self) -> None:
        """End every `wait`."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seen: Refusal | None, stop: threading.Event) -> Refusal | None:
        """Block until there is another refusal than `seen`, or `stop` is set and `wake` called."""
        with self._changed:
            self._changed.wait_for(lambda: self._refusal is not seen or stop.is_set())
            return self._refusal
