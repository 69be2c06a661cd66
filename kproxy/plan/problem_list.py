"""Collect the problems of one service, bounded: a long list of defects must not become a long report.

Equal problems, such as 25,000 addresses that another service has, are named by a few examples and a number.
The list as a whole is bounded too, and says how many problems it leaves out. Every consumer (log, status,
Events, metrics) takes problems from here.
"""

from collections.abc import Hashable

from kproxy.plan.limits import EXAMPLES, PROBLEMS_PER_SERVICE
from kproxy.state.problems import Problem, show


class ProblemList:
    """The problems that one step finds about `owner`, such as "Service ns/name"."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._found: dict[Problem, None] = {}
        self._similar: dict[Hashable, tuple[int, Problem]] = {}
        """By group: the number of problems, and the last example."""
        self._left_out = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(
        self,
        field: str,
        value: object,
        reason: str,
        *,
        owner: str = "",
        refused: bool = False,
        conflict: bool = False,
    ) -> Problem | None:
        """Add one problem, of another object if `owner` names it; None if it is only counted."""
        if len(self._found) >= PROBLEMS_PER_SERVICE:
            self._left_out += 1
            return None
        problem = Problem(owner or self.owner, field, show(value), reason, conflict=conflict, refused=refused)
        self._found[problem] = None
        return problem

    def add_similar(
        self,
        group: Hashable,
        field: str,
        value: object,
        reason: str,
        *,
        refused: bool = False,
        conflict: bool = False,
    ) -> None:
        """Add a problem of a group whose problems differ in details only; after a few it is only counted."""
        known = self._similar.get(group)
        if known is not None and known[0] >= EXAMPLES:
            self._similar[group] = (known[0] + 1, known[1])
            return
        problem = self.add(field, value, reason, refused=refused, conflict=conflict)
        if problem is not None:
            self._similar[group] = (1 if known is None else known[0] + 1, problem)

    def result(self) -> tuple[Problem, ...]:
        """The problems, with one for each group and one for the list that count those not named."""
        found = list(self._found)
        for number, example in self._similar.values():
            if number > EXAMPLES:
                found.append(
                    Problem(
                        example.object,
                        example.field,
                        f"({number - EXAMPLES} more)",
                        f"as with {example.value}: {example.reason}",
                        conflict=example.conflict,
                        refused=example.refused,
                    )
                )
        if self._left_out:
            found.append(
                Problem(self.owner, "(others)", show(self._left_out), "further problems are not listed")
            )
        return tuple(found)
