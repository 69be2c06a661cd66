"""The limit of this process's open descriptors (RLIMIT_NOFILE, setrlimit(2)).

Service managers start processes with a soft limit of 1024, for programs that call select(2); the hard limit
is what a process may use. kproxy uses only poll and epoll, so it raises the soft limit to the hard limit.
"""

import resource

import structlog

log = structlog.stdlib.get_logger(__name__)

DESCRIPTORS_MAX = 1 << 20
"""The greatest soft limit that is set (the default of fs.nr_open).

Child processes inherit the limit, and some programs close every number below it when they start; if a
container runtime sets no hard limit, that would take minutes.
"""


def raise_descriptor_limit(most: int = DESCRIPTORS_MAX) -> int:
    """Raise the soft limit to the hard one, at most to `most`; return the soft limit in force.

    A higher limit stays. A refusal is logged as a warning.
    """
    soft, hard = (_count(each) for each in resource.getrlimit(resource.RLIMIT_NOFILE))
    wanted = min(hard, most)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    except (OSError, ValueError) as error:
        log.warning("descriptor_limit_failed", soft=soft, hard=hard, wanted=wanted, reason=str(error))
        return soft
    log.debug("descriptor_limit_raised", soft=soft, now=wanted)
    return wanted


def _count(limit: int) -> int:
    return DESCRIPTORS_MAX if limit == resource.RLIM_INFINITY else limit
