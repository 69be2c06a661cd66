"""Signal handling of a running kproxy, and the decision to remove its rules at exit."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

import structlog

from kproxy.node.instance import CLEAN_UP_NOW, CLEAN_UP_ON_EXIT

log = structlog.stdlib.get_logger(__name__)

_ENDS = frozenset({signal.SIGTERM, signal.SIGINT, CLEAN_UP_NOW})
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, CLEAN_UP_ON_EXIT, CLEAN_UP_NOW)


class Interrupted(BaseException):
    """A signal that ends the process came while the main thread was `interruptible`."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Leaving:
    """Whether this process removes its rules when it ends: by its settings, or on request.

    Any thread may read and change it; `changed` is called with the new value.
    """

    def __init__(self, *, configured: bool) -> None:
        self.changed: Callable[[bool], None] = lambda _: None
        self._configured = configured
        self._asked = False

    @property
    def cleans_up(self) -> bool:
        """Whether the rules are removed at the end."""
        return self._configured or self._asked

    def configure(self, *, cleanup_on_exit: bool) -> None:
        """Apply a new setting."""
        self._configured = cleanup_on_exit
        self.changed(self.cleans_up)

    def ask(self) -> None:
        """Request the removal of the rules at the end, independent of the settings."""
        self._asked = True
        self.changed(self.cleans_up)


class Signals:
    """Handles signals on a thread of its own, as long as the block lasts.

    SIGTERM and SIGINT call `stop`, SIGHUP calls the function passed to `follow_reloads`; SIGUSR1 requests the
    removal of the rules at the end, SIGUSR2 requests it and ends the process. A handler may run while the
    main thread holds the lock that setting an Event takes. So the handler does almost nothing, and a thread
    reads the signal numbers that the interpreter writes to the wakeup descriptor (signal.set_wakeup_fd).
    Made and used by the main thread.
    """

    def __init__(self, stop: Callable[[], None], leaving: Leaving) -> None:
        self._stop = stop
        self._leaving = leaving
        self._reload: Callable[[str], None] | None = None
        self._missed_reload = False
        self._ends: list[signal.Signals] = []
        self._raises = False
        self._passed_on: signal.Signals | None = None
        self._lock = threading.Lock()
        self._reader, self._writer = socket.socketpair()
        os.set_blocking(self._writer.fileno(), False)
        self._thread = threading.Thread(target=self._follow, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._previous = {number: signal.signal(number, self._interrupt) for number in _SIGNALS}
        self._descriptor = signal.set_wakeup_fd(self._writer.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._descriptor)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    @property
    def ended(self) -> bool:
        """Whether a signal requested the end."""
        return bool(self._ends)

    def follow_reloads(self, reload: Callable[[str], None]) -> None:
        """Call `reload` with the signal's name at each SIGHUP, and now if one arrived before."""
        with self._lock:
            self._reload, missed = reload, self._missed_reload
        if missed:
            reload(signal.SIGHUP.name)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block, a signal that requests the end raises Interrupted.

        A second such signal that arrived before the block raises it too; the first one led to this block.
        """
        self._raises = True
        try:
            repeated = [number for number in self._ends[1:] if number is not CLEAN_UP_NOW]
            if repeated:
                raise Interrupted(repeated[0])
            yield
        finally:
            self._raises = False

    def _interrupt(self, received: int, frame: FrameType | None) -> None:
        del frame
        number = signal.Signals(received)
        if self._raises and number in _ENDS and not (self._ends and number is CLEAN_UP_NOW):
            self._raises = False
            raise Interrupted(number)

    def _follow(self) -> None:
        while received := self._reader.recv(1):
            number = signal.Signals(received[0])
            if number is signal.SIGHUP:
                self._reloaded()
                continue
            if number in {CLEAN_UP_ON_EXIT, CLEAN_UP_NOW}:
                self._leaving.ask()
                log.info("cleanup_on_exit", signal=number.name, effect="the rules are removed at the end")
            if number in _ENDS and not self._was_passed_on(number):
                log.info("stopping", signal=number.name)
                self._ends.append(number)
                self._stop()
                if self._raises:
                    # The kernel may deliver it to any thread, and two simultaneous signals call one handler.
                    self._passed_on = number
                    signal.pthread_kill(threading.main_thread().ident or 0, number)

    def _was_passed_on(self, number: signal.Signals) -> bool:
        was, self._passed_on = self._passed_on is number, None
        return was

    def _reloaded(self) -> None:
        with self._lock:
            reload = self._reload
            self._missed_reload = reload is None
        if reload is not None:
            reload(signal.SIGHUP.name)
