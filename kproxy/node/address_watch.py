"""Addresses of this host and their changes, read so that a lack of descriptors or memory ends nothing.

A read that fails leaves the last known addresses in force and is tried again; a socket for news that fails
is opened again. What happened in between counts as missed.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import structlog

from kproxy.kernel import links
from kproxy.kernel.links import AddressEvents, AddressNews

log = structlog.stdlib.get_logger(__name__)

RETRY_SECONDS = 5.0


class AddressWatch:
    """Addresses of every interface but `device`, and news of all. Raises OSError if it cannot be made.

    `read` and `listen` stand for the kernel's in tests.
    """

    def __init__(
        self,
        device: str,
        read: Callable[[], Sequence[str]] | None = None,
        listen: Callable[[], AbstractContextManager[AddressEvents]] | None = None,
    ) -> None:
        self._read = read or partial(links.local_addresses, exclude={device})
        self._listen = listen or partial(links.address_events, device)
        self._known: Sequence[str] | None = None
        self._follower, self._control = socket.socketpair()

    def addresses(self) -> Sequence[str]:
        """The addresses now, or the last known if they cannot be read. Raises OSError if none are known."""
        try:
            self._known = self._read()
        except OSError as error:
            if self._known is None:
                raise
            log.warning("addresses_not_read", reason=_reason(error), effect="the last known stay in force")
            with contextlib.suppress(OSError):  # full: a retry is due anyway; closed: it is the end
                self._control.send(b"\0", socket.MSG_DONTWAIT)
        return self._known

    def run(self, notify: Callable[[AddressNews], None]) -> None:
        """Pass on news until `stop` is called. All may have changed before the first."""
        with self._follower:
            while not self._follow(notify):
                if self._wait(RETRY_SECONDS):
                    return

    def stop(self) -> None:
        """End `run`."""
        self._control.close()

    def _follow(self, notify: Callable[[AddressNews], None]) -> bool:
        """Pass on news from one socket; True at the end, False if the socket failed."""
        try:
            with self._listen() as events:
                notify(links.MISSED)
                retry: float | None = None
                while True:
                    wait = None if retry is None else max(0.0, retry - time.monotonic())
                    ready = _ready((self._follower.fileno(), events.fileno()), wait)
                    if self._follower.fileno() in ready:
                        if not self._follower.recv(16):
                            return True
                        retry = retry or time.monotonic() + RETRY_SECONDS
                    if events.fileno() in ready:
                        notify(events.drain())
                    if retry is not None and time.monotonic() >= retry:
                        retry = None
                        notify(AddressNews(elsewhere=True))
        except OSError as error:
            log.warning("address_news_failed", reason=_reason(error), retry_seconds=RETRY_SECONDS)
            return False

    def _wait(self, seconds: float) -> bool:
        """Wait so long, or until the end: True."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if _ready((self._follower.fileno(),), left) and not self._follower.recv(16):
                return True
        return False


def _ready(numbers: Sequence[int], seconds: float | None) -> set[int]:
    """Which descriptors are readable; unlike select(2), poll(2) takes any number."""
    poller = select.poll()
    for number in numbers:
        poller.register(number, select.POLLIN)
    return {number for number, _ in poller.poll(None if seconds is None else seconds * 1000)}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
