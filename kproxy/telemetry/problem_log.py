"""Log the problems of objects once: when they are found, and when they are fixed."""

from collections.abc import Mapping

import structlog

from kproxy.state.problems import Problem

log = structlog.stdlib.get_logger(__name__)

LINES = 20
"""The maximum number of lines about one service at a time."""


class ProblemLog:
    """Holds the logged problems of each service."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Problem, ...]] = {}

    def update(self, found: Mapping[str, tuple[Problem, ...]]) -> None:
        """Log the new problems of these services; an empty tuple: the service has none."""
        for key, problems in found.items():
            known = self._known.get(key, ())
            seen = set(known)
            new = [problem for problem in problems if problem not in seen]
            for problem in new[:LINES]:
                log.warning(
                    "object_problem",
                    object=problem.object,
                    field=problem.field,
                    value=problem.value,
                    reason=problem.reason,
                )
            if len(new) > LINES:
                log.warning("object_problems_left_out", object=new[0].object, number=len(new) - LINES)
            if known and not problems:
                log.info("object_valid_again", service=key)
            if problems:
                self._known[key] = problems
            else:
                self._known.pop(key, None)
