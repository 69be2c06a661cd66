"""Clean shutdown on Ctrl-C at any moment.

An exception raised by a signal handler can occur between the creation of a resource and the registration of
its cleanup. So the work runs in a thread that no signal reaches; the main thread receives signals and
notifies the work, which stops at its next safe point and unwinds.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Signal `number` stopped the work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """Whether a signal has arrived, and the one condition variable on which the work waits."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.number: int | None = None

    def request(self, number: int) -> None:
        """Ask the work to stop; only the first request counts."""
        if self.number is None:
            self.number = number
            with self.changed:
                self.changed.notify_all()

    def check(self) -> None:
        """Raise Interrupted if the work has been asked to stop: a safe point."""
        if self.number is not None:
            raise Interrupted(self.number)

    def wait_for(self, predicate: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `predicate` holds, looked at whenever `changed` is notified; False after `seconds`.

        Raises Interrupted.
        """
        with self.changed:
            held = self.changed.wait_for(lambda: self.number is not None or predicate(), seconds)
        self.check()
        return held


def run(work: Callable[[Interruption], T]) -> T:
    """Run `work` in a thread and return what it returns; call this in the main thread.

    Raises what it raises, and Interrupted when a signal ended it, whatever else failed on the way out.
    """
    interruption = Interruption()
    with _signals() as arrivals, ThreadPoolExecutor(max_workers=1, thread_name_prefix="demo") as executor:
        future = executor.submit(work, interruption)
        future.add_done_callback(lambda _: arrivals.done())
        for number in arrivals:
            interruption.request(number)
        try:
            return future.result()
        except BaseException as error:
            if interruption.number is None or isinstance(error, Interrupted):
                raise
            raise Interrupted(interruption.number) from error


class _Arrivals:
    """Signal numbers as they come, until `done()`.

    The kernel delivers a signal to any thread of the process. Python runs handlers in the main thread only,
    and a signal delivered to another thread does not wake it from a lock: it would be noticed after the work
    has ended. The wakeup descriptor is written in whichever thread gets the signal, and wakes a read of its
    other end.
    """

    def __init__(self) -> None:
        self._reader, self.writer = socket.socketpair()
        self.writer.settimeout(0)

    def __iter__(self) -> Iterator[int]:
        while True:
            for number in self._reader.recv(64):
                if number == 0:
                    return
                if number in SIGNALS:
                    yield number

    def done(self) -> None:
        """End the iteration; from any thread."""
        self.writer.send(b"\0")

    def close(self) -> None:
        """Close both ends."""
        self._reader.close()
        self.writer.close()


@contextmanager
def _signals() -> Iterator[_Arrivals]:
    def ignore(_number: int, _frame: FrameType | None) -> None:
        """Do nothing: without a handler nothing would be written to the descriptor."""

    arrivals = _Arrivals()
    before = signal.set_wakeup_fd(arrivals.writer.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, ignore) for number in SIGNALS}
    try:
        yield arrivals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        arrivals.close()
