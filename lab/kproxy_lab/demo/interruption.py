"""Ctrl-C at any moment, without leaving anything behind.

An exception out of a signal handler can strike between the creation of a thing and the note that it must be
removed. So the work runs in a thread which no signal reaches; the main thread only takes the signals and
tells the work, which stops at its next safe point and unwinds as usual.
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
    """The work was told to stop by signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """Whether a signal has come, and the one condition on which the work waits for anything at all."""

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

    The kernel gives a signal to any thread of the process. One that does not fall to the main thread does not
    wake it from a lock, and only there Python runs handlers: it would go unnoticed until the work has ended.
    The wakeup descriptor is written to in whatever thread it is, and a read of its other end does wake.
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
        """Its presence alone matters: without a handler nothing is written to the descriptor."""

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
