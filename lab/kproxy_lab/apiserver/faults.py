"""Faults on demand between a client and an API server.

A :class:`Fault` says what happens and to which requests. The :class:`FaultBook` applies it to each matching
request (or running watch) up to its number of times, and counts the hits so that tests can wait for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Self

import msgspec


class Action(StrEnum):
    """What a fault does."""

    CLOSE = "close"
    STALL = "stall"
    STATUS = "status"
    GATEWAY = "gateway"
    WATCH_ERROR = "watch-error"
    SLOW = "slow"
    TRUNCATE = "truncate"
    GARBAGE = "garbage"
    REFUSE = "refuse"


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault. Build it with a named constructor.

    ``resource`` (plural, such as ``services``), ``verb`` (get, list, watch, create, update, patch, delete)
    and ``user_agent`` (a part of it) select requests; None matches all. The first ``skip`` requests pass; the
    next ``times`` are hit (None: until the fault is removed). Byte counts start at the hit. A fault that
    matches watches also hits running ones, at once.
    """

    action: Action
    resource: str | None = None
    verb: str | None = None
    user_agent: str | None = None
    times: int | None = 1
    skip: int = 0
    after_bytes: int = 0
    code: int = 500
    retry_after: int | None = None
    chunk_bytes: int = 1
    interval: float = 0.01

    @classmethod
    def close(
        cls, *, resource: str | None = None, verb: str | None = None, times: int | None = 1, skip: int = 0,
        after_bytes: int = 0,
    ) -> Self:  # fmt: skip
        """Drop the TCP connection: before the answer, or after some bytes of its body."""
        return cls(action=Action.CLOSE, resource=resource, verb=verb, times=times, skip=skip,
                   after_bytes=after_bytes)  # fmt: skip

    @classmethod
    def stall(
        cls, *, resource: str | None = None, verb: str | None = None, times: int | None = 1, skip: int = 0,
        after_bytes: int = 0,
    ) -> Self:  # fmt: skip
        """Send nothing more and keep the connection open, until the fault is removed."""
        return cls(action=Action.STALL, resource=resource, verb=verb, times=times, skip=skip,
                   after_bytes=after_bytes)  # fmt: skip

    @classmethod
    def status(
        cls, code: int, *, resource: str | None = None, verb: str | None = None, times: int | None = 1,
        skip: int = 0, retry_after: int | None = None,
    ) -> Self:  # fmt: skip
        """Answer with a Status of this code; ``retry_after`` seconds go into the Retry-After header."""
        return cls(action=Action.STATUS, code=code, resource=resource, verb=verb, times=times, skip=skip,
                   retry_after=retry_after)  # fmt: skip

    @classmethod
    def gateway(cls, code: int = 503, *, times: int | None = None) -> Self:
        """Answer with an HTML page and no Status, as a load balancer without a server does."""
        return cls(action=Action.GATEWAY, code=code, times=times)

    @classmethod
    def watch_error(
        cls, code: int = 410, *, resource: str | None = None, times: int | None = 1, skip: int = 0
    ) -> Self:
        """Send an ERROR event with a Status of this code into a watch, then end it."""
        return cls(action=Action.WATCH_ERROR, code=code, resource=resource, verb="watch", times=times,
                   skip=skip)  # fmt: skip

    @classmethod
    def slow(
        cls, chunk_bytes: int, interval: float, *, resource: str | None = None, verb: str | None = None,
        times: int | None = 1, skip: int = 0,
    ) -> Self:  # fmt: skip
        """Send ``chunk_bytes`` every ``interval`` seconds for the rest of the answer."""
        return cls(action=Action.SLOW, chunk_bytes=chunk_bytes, interval=interval, resource=resource,
                   verb=verb, times=times, skip=skip)  # fmt: skip

    @classmethod
    def truncate(
        cls, after_bytes: int, *, resource: str | None = None, verb: str | None = None,
        times: int | None = 1, skip: int = 0,
    ) -> Self:  # fmt: skip
        """End the answer cleanly after some bytes: HTTP is intact, the JSON inside is cut."""
        return cls(action=Action.TRUNCATE, after_bytes=after_bytes, resource=resource, verb=verb,
                   times=times, skip=skip)  # fmt: skip

    @classmethod
    def garbage(
        cls, *, resource: str | None = None, verb: str | None = None, times: int | None = 1, skip: int = 0
    ) -> Self:
        """Send a line that is no JSON: as the whole answer, or between the events of a watch."""
        return cls(action=Action.GARBAGE, resource=resource, verb=verb, times=times, skip=skip)

    @classmethod
    def refuse(cls) -> Self:
        """Close the listener and every connection, until the fault is removed."""
        return cls(action=Action.REFUSE, times=None)

    def matches(self, resource: str, verb: str, user_agent: str) -> bool:
        """Return whether a request is one this fault is meant for."""
        return (
            (self.resource is None or self.resource == resource)
            and (self.verb is None or self.verb == verb)
            and (self.user_agent is None or self.user_agent in user_agent)
        )


class Armed:
    """A fault that was added to a book: its hits so far and whether it was removed."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.hits = 0
        self.removed = False

    @property
    def spent(self) -> bool:
        """Return whether all its hits are used."""
        return self.fault.times is not None and self.hits >= self.fault.times


class FaultBook:
    """The faults in force. Safe to use from any thread."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._armed: list[Armed] = []
        self._changed = threading.Condition()
        self._on_change = on_change

    def add(self, fault: Fault) -> Armed:
        """Put a fault in force; the result is what :meth:`remove` and :meth:`wait` take."""
        armed = Armed(fault)
        with self._changed:
            self._armed.append(armed)
        self._on_change()
        return armed

    def remove(self, armed: Armed) -> None:
        """Remove a fault; stalled answers continue. Removing it twice does nothing."""
        with self._changed:
            armed.removed = True
            if armed in self._armed:
                self._armed.remove(armed)
        self._on_change()

    def clear(self) -> None:
        """Remove every fault."""
        for armed in self.active():
            self.remove(armed)

    def active(self) -> list[Armed]:
        """Return the faults that were added and not removed, spent ones too."""
        with self._changed:
            return list(self._armed)

    @contextmanager
    def during(self, fault: Fault) -> Iterator[Armed]:
        """Keep a fault in force for the length of a with-block."""
        armed = self.add(fault)
        try:
            yield armed
        finally:
            self.remove(armed)

    def wait(self, armed: Armed, *, hits: int = 1, timeout: float = 10.0) -> bool:
        """Block until a fault has ``hits`` hits; False when ``timeout`` seconds pass first."""
        with self._changed:
            return self._changed.wait_for(lambda: armed.hits >= hits, timeout)

    @property
    def refusing(self) -> bool:
        """Return whether the listener is to be closed."""
        return any(armed.fault.action is Action.REFUSE for armed in self.active())

    def take(self, resource: str, verb: str, user_agent: str = "", *, running: bool = False) -> Armed | None:
        """Return the first fault that applies to this request, and count the hit.

        ``running``: the request is a watch whose answer has begun. It is too late for a status, and faults
        with ``skip`` apply to new requests only.
        """
        with self._changed:
            for armed in self._armed:
                fault = armed.fault
                if fault.action is Action.REFUSE or armed.spent:
                    continue
                if not fault.matches(resource, verb, user_agent):
                    continue
                if running and (fault.action in (Action.STATUS, Action.GATEWAY) or fault.skip):
                    continue
                armed.seen += 1
                if armed.seen <= fault.skip:
                    continue
                armed.hits += 1
                self._changed.notify_all()
                return armed
        return None
