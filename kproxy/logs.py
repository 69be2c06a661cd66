"""Structured logs on stderr, one event per line: key=value (logfmt) or JSON; kproxy.text cleans values.

kube-proxy's `-v` is kept as the switch: 0 shows what an operator must know, 2 adds each change of state,
4 and above adds the detail of every sync. Below 0, only what went wrong is left.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from kproxy.text import LONGEST, clean


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Make imports within the block behave as if `package` were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# structlog loads all of rich for coloured tracebacks, which kproxy does not use: a third of the start time.
with _without("rich"):
    import structlog

    from kproxy.line_limit import LineLimit

_FIRST = ("timestamp", "level", "event")
"""Keys that begin every line."""
_LONGEST_TRACEBACK = 16384

_PLUGIN_FAILED = "exec: process returned "
"""How the kubernetes package reports a failed credential plugin; the plugin's output follows."""


class _Lossy:
    """A stream that drops text it cannot write: a full disk or a closed pipe must not stop the proxy."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write the text, or drop it if that fails."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream, or drop the buffered text if that fails."""
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Forwarding(logging.Handler):
    """Logs records of libraries that use `logging`, which prints them raw without a handler."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        said = record.getMessage()
        if said.startswith(_PLUGIN_FAILED):
            said = said.partition(". ")[0]
        log = structlog.stdlib.get_logger("kproxy.logs")
        log.warning("library_message", library=record.name, message=said)


def clean_values(
    _logger: Any, _method: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Clean every value for one line (a processor of structlog); its renderer escapes line breaks."""
    for key, value in fields.items():
        if value is not None and not isinstance(value, (bool, int, float)):
            limit = _LONGEST_TRACEBACK if key == "exception" else LONGEST
            fields[key] = clean(str(value), limit, keep="\n")
    return fields


def report_left_out() -> None:
    """Log how many lines about single objects were left out, once their minute is over."""
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, LineLimit):
            processor.report()


def configure(verbosity: int = 0, form: str = "text", lines_per_minute: int = 0) -> None:
    """Send structlog events to stderr, one per line.

    `verbosity` is klog's level: 4 and above shows debug events. `form` is `logging.format`: "text" is logfmt,
    "json" is one JSON object per line with the same keys and values; both are ASCII only. At most
    `lines_per_minute` lines about one service or object are logged; 0: all.
    """
    level = logging.DEBUG if verbosity >= 4 else logging.INFO if verbosity >= 0 else logging.ERROR
    structlog.configure(
        processors=[
            *([LineLimit(lines_per_minute)] if lines_per_minute else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            clean_values,
            *_renderer(form),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lossy(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Forwarding) for handler in root.handlers):
        root.addHandler(_Forwarding(logging.WARNING))


def _renderer(form: str) -> tuple[structlog.typing.Processor, ...]:
    if form != "json":
        return (structlog.processors.LogfmtRenderer(key_order=list(_FIRST), bool_as_flag=False),)
    return (_finite_values, structlog.processors.JSONRenderer())


def _finite_values(
    _logger: Any, _method: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Order the keys as in text, and write infinities as text: JSON has none (RFC 8259, 6)."""
    ordered = {**{key: fields[key] for key in _FIRST if key in fields}, **fields}
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in ordered.items()
    }
