"""A bounded record of requests, for assertions about what a client sent and when."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

DEFAULT_RECORDS = 10_000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request. ``status`` is 0 when the connection was cut before an answer.

    ``at`` is time.monotonic() in seconds when it arrived; ``resource`` is the plural, empty for
    paths that name none; ``verb`` is Kubernetes' own (list, watch, get, create, ...).
    """

    method: str
    path: str
    query: Mapping[str, str]
    user_agent: str
    status: int
    verb: str
    resource: str
    at: float
    headers: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """The latest requests, oldest first. Safe to use from any thread."""

    def __init__(self, limit: int = DEFAULT_RECORDS) -> None:
        self._records: deque[RequestRecord] = deque(maxlen=limit)
        self._added = threading.Condition()

    def add(self, record: RequestRecord) -> None:
        """Remember a request, forgetting the oldest when full."""
        with self._added:
            self._records.append(record)
            self._added.notify_all()

    def all(self) -> list[RequestRecord]:
        """Return every remembered request."""
        with self._added:
            return list(self._records)

    def matching(
        self, *, resource: str | None = None, verb: str | None = None, status: int | None = None
    ) -> list[RequestRecord]:
        """Return the requests with these properties."""
        return [one for one in self.all() if _is(one, resource, verb, status)]

    def wait(
        self, *, resource: str | None = None, verb: str | None = None, status: int | None = None,
        where: Callable[[RequestRecord], bool] = lambda _: True, count: int = 1, timeout: float = 10.0,
    ) -> bool:  # fmt: skip
        """Block until ``count`` such requests are remembered; False after ``timeout`` seconds."""

        def enough() -> bool:
            return sum(_is(one, resource, verb, status) and where(one) for one in self._records) >= count

        with self._added:
            return self._added.wait_for(enough, timeout)

    def clear(self) -> None:
        """Forget every request."""
        with self._added:
            self._records.clear()


def _is(record: RequestRecord, resource: str | None, verb: str | None, status: int | None) -> bool:
    return (
        (resource is None or record.resource == resource)
        and (verb is None or record.verb == verb)
        and (status is None or record.status == status)
    )
