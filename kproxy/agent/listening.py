"""Bind a server's address now, or keep trying: a port in use is no reason to leave a node without rules.

As with kube-proxy, `bindAddressHardFail` makes it one.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

log = structlog.stdlib.get_logger(__name__)

RETRY_PERIOD = 5.0
"""Seconds between attempts, as kube-proxy has it."""


class Server(Protocol):
    """Something that binds an address when it is made, and serves between start and stop."""

    def start(self) -> None:
        """Begin to answer."""

    def stop(self) -> None:
        """Stop answering and free the port."""


@contextmanager
def serving(
    name: str, address: str, make: Callable[[], Server], *, hard_fail: bool, retry: float = RETRY_PERIOD
) -> Iterator[None]:
    """Serve inside the block. Raises OSError if the address cannot be bound and `hard_fail` is set."""
    stop = threading.Event()
    try:
        server = make()
    except OSError as error:
        if hard_fail:
            raise
        log.warning("bind_failed", server=name, address=address, reason=error.strerror or str(error))
        thread = threading.Thread(
            target=_keep_trying, args=(name, address, make, retry, stop), name=f"bind-{name}", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        return
    server.start()
    try:
        yield
    finally:
        server.stop()


def _keep_trying(
    name: str, address: str, make: Callable[[], Server], retry: float, stop: threading.Event
) -> None:
    while not stop.wait(retry):
        try:
            server = make()
        except OSError as error:
            log.debug("bind_failed", server=name, address=address, reason=error.strerror or str(error))
            continue
        log.info("bound", server=name, address=address)
        server.start()
        stop.wait()
        server.stop()
