"""Ctrl-C at any moment, without leaving anything behind.

An exception out of a signal handler can strike between the creation of a thing and the note that it must be
removed. So the work runs in a thread which no signal reaches; the main thread only takes the signals and
tells the work, which stops at its next safe point and unwinds as usual.
"""

import signal
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
    with _signals(interruption), ThreadPoolExecutor(max_workers=1, thread_name_prefix="demo") as executor:
        try:
            return executor.submit(work, interruption).result()
        except BaseException as error:
            if interruption.number is None or isinstance(error, Interrupted):
                raise
            raise Interrupted(interruption.number) from error


@contextmanager
def _signals(interruption: Interruption) -> Iterator[None]:
    def handle(number: int, _frame: FrameType | None) -> None:
        interruption.request(number)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
