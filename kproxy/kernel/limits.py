"""The limit of this process's open descriptors (RLIMIT_NOFILE, setrlimit(2)).

Service managers start processes with a soft limit of 1024, for the sake of programs that call select(2); the
hard limit is what a process may use. kproxy waits with poll and epoll alone, so it takes the hard limit.
"""

import resource

import structlog

log = structlog.stdlib.get_logger(__name__)

DESCRIPTORS_MAX = 1 << 20
"""The most that is asked for (fs.nr_open by default).

Child processes inherit the limit, and some programs close every number below it when they start; where a
container runtime sets no hard limit, that would take them minutes.
"""


def raise_descriptor_limit(most: int = DESCRIPTORS_MAX) -> int:
    """Raise the soft limit to the hard one, at most to `most`; return the soft limit in force.

    A limit that is already higher stays. A refusal is a warning.
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
