"""Ctrl-C and SIGTERM as an event, for commands that then end with what they have."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process as usual.

    The main thread may wait for the event, and a handler that sets it would need the lock of that wait. So
    the handler only restores the usual ones, and a thread sets the event when the interpreter writes the
    signal's number to the wakeup descriptor. For the main thread.
    """
    asked = threading.Event()
    reader, writer = socket.socketpair()
    os.set_blocking(writer.fileno(), False)

    def follow() -> None:
        if reader.recv(1):
            asked.set()

    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(*_: object) -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    thread = threading.Thread(target=follow, name="signals", daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(writer.fileno())
    for number in usual:
        signal.signal(number, restore)
    try:
        yield asked
    finally:
        restore()
        signal.set_wakeup_fd(descriptor)
        writer.close()
        thread.join()
        reader.close()
