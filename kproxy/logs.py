"""One way to log: structured key=value lines on stderr.

kube-proxy's `-v` is kept as the switch: 0 shows what an operator must know, 2 adds each change of state,
4 and above adds the detail of every sync. Below 0, only what went wrong is left.
"""

import logging
import sys

import structlog


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
