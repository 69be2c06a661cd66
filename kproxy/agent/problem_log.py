"""What is wrong with objects, logged once: when it is found, and when it is mended."""

from collections.abc import Mapping

import structlog

from kproxy.state.problems import Problem

log = structlog.stdlib.get_logger(__name__)


class ProblemLog:
    """Knows what was said of each service."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Problem, ...]] = {}

    def tell(self, found: Mapping[str, tuple[Problem, ...]]) -> None:
        """Log what is new about these services; an empty tuple: nothing is wrong with one."""
        for key, problems in found.items():
            known = self._known.get(key, ())
            for problem in problems:
                if problem not in known:
                    log.warning(
                        "object_problem",
                        object=problem.object,
                        field=problem.field,
                        value=problem.value,
                        reason=problem.reason,
                    )
            if known and not problems:
                log.info("object_mended", service=key)
            if problems:
                self._known[key] = problems
            else:
                self._known.pop(key, None)
