"""Bound the log lines about one service: an object that changes all the time must not fill the disk.

The limit is a processor of structlog, so it holds for every event, whichever module logs it. The first lines
are logged at once. What is left out is counted, and one line says so when the minute is over.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

WINDOW = 60.0
"""Seconds in which lines are counted, from the first line about an object."""

_KEYS = ("service", "object")
"""Fields that name the subject of a line: `ns/name`, or kind and key such as `Service ns/name`."""

_KIND = "Service "

_LEFT_OUT = "log_lines_left_out"

log = structlog.stdlib.get_logger(__name__)


class _Window:
    """The lines about one subject since `began`."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.lines = 0
        self.left_out = 0


class LineLimit:
    """Lets `lines` lines about each service or object pass in a minute. Any thread may log."""

    def __init__(self, lines: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str, _Window] = {}
        """In the order in which they began."""

    def __call__(
        self, _logger: Any, _method: str, fields: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Return the fields. Raises DropEvent if there were enough lines about their subject."""
        self.report()
        subject = next((str(fields[key]) for key in _KEYS if key in fields), None)
        if subject is None or fields.get("event") == _LEFT_OUT:
            return fields
        subject = subject.removeprefix(_KIND)
        with self._lock:
            window = self._windows.get(subject)
            if window is None:
                window = self._windows[subject] = _Window(self._clock())
            window.lines += 1
            if window.lines <= self._lines:
                return fields
            window.left_out += 1
        raise structlog.DropEvent

    def report(self) -> None:
        """Log the number of lines that were left out of each window that is over."""
        now = self._clock()
        over: list[tuple[str, int]] = []
        with self._lock:
            while self._windows:
                subject, window = next(iter(self._windows.items()))
                if now - window.began < WINDOW:
                    break
                del self._windows[subject]
                if window.left_out:
                    over.append((subject, window.left_out))
        for subject, left_out in over:
            log.warning(_LEFT_OUT, object=subject, lines=left_out, seconds=round(WINDOW))
