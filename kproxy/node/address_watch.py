"""Addresses of this host and their changes; the watch survives a lack of descriptors or memory.

If a read fails, the last known addresses stay in force and the read is tried again; if the netlink socket
fails, it is opened again. Changes in between count as missed.
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
    """Addresses of every interface except `device`, and changes of all. Raises OSError if it cannot be made.

    Tests replace the kernel by `read` and `listen`.
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
            with contextlib.suppress(OSError):  # full: a retry is already due; closed: the watch has ended
                self._control.send(b"\0", socket.MSG_DONTWAIT)
        return self._known

    def run(self, notify: Callable[[AddressNews], None]) -> None:
        """Pass changes to `notify` until `stop` is called. The first one means that all may have changed."""
        with self._follower:
            while not self._follow(notify):
                if self._wait(RETRY_SECONDS):
                    return

    def stop(self) -> None:
        """End `run`."""
        self._control.close()

    def _follow(self, notify: Callable[[AddressNews], None]) -> bool:
        """Pass changes from one socket to `notify`; True after `stop`, False if the socket failed."""
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
        """Wait that long; return True at once if `stop` is called."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if _ready((self._follower.fileno(),), left) and not self._follower.recv(16):
                return True
        return False


def _ready(numbers: Sequence[int], seconds: float | None) -> set[int]:
    """Return the readable descriptors; unlike select(2), poll(2) accepts any descriptor number."""
    poller = select.poll()
    for number in numbers:
        poller.register(number, select.POLLIN)
    return {number for number, _ in poller.poll(None if seconds is None else seconds * 1000)}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
