"""One way to log: structured key=value lines on stderr.

kube-proxy's `-v` is kept as the switch: 0 shows what an operator must know, 2 adds each change of state,
4 and above adds the detail of every sync. Below 0, only what went wrong is left.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Let what is imported meanwhile find that a package is not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# For tracebacks in colour, which nobody asks for here, structlog loads all of rich: a third of a start.
with _without("rich"):
    import structlog

_STDERR = 2


class _Lossy:
    """A stream that drops what it cannot write: a full disk or a reader that is gone stops no proxy."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or lose the text."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, or lose what was to be written."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def keep_descriptors() -> None:
    """Have 0, 1 and 2 lead to /dev/null where they are closed.

    Otherwise the next file or socket that is opened would get the number, and what is meant for stderr.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(opened, True)  # noqa: FBT003
    os.close(opened)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def configure(verbosity: int = 0) -> None:
    """Send structlog events to stderr as logfmt; `verbosity` is klog's level (>= 4 shows debug events)."""
    level = logging.DEBUG if verbosity >= 4 else logging.INFO if verbosity >= 0 else logging.ERROR
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lossy(sys.stderr))),
        cache_logger_on_first_use=False,
    )
