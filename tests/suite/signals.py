"""Signal handling of the session: inherited dispositions, and an orderly end on SIGTERM."""

import signal
from types import FrameType
from typing import Final

_INHERITED: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def restore() -> None:
    """Give programs started by tests the default actions, and end the session in order on SIGTERM.

    A shell without job control starts a background command with SIGINT ignored, `nohup` one with SIGHUP
    ignored, and a child inherits that through exec. A handler that does nothing is not inherited: this
    session still ignores the signal, its children do not. On SIGTERM pytest would end at once without
    tearing down fixtures, so it is treated as an interrupt.
    """
    for number in _INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_INHERITED, signal.SIGTERM})


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt("SIGTERM")
