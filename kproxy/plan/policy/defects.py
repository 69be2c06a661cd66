"""Collect what is wrong with one policy, as texts that name field and value."""

from kproxy.plan.policy import limits
from kproxy.state.problems import show
from kproxy.text import clean


class Defects:
    """The defects of one policy, in order; beyond `limits.DEFECTS` they are counted only."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._left_out = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, value: object, reason: str) -> None:
        """Add `FIELD=VALUE: REASON`."""
        if len(self._found) >= limits.DEFECTS:
            self._left_out += 1
        else:
            self._found[clean(f"{field}={show(value)}: {reason}")] = None

    def within(self, field: str, number: int, limit: int, what: str) -> bool:
        """Whether a number is within its limit; if it is not, that is a defect."""
        if number > limit:
            self.add(field, number, f"more than {limit} {what}")
        return number <= limit

    def result(self) -> tuple[str, ...]:
        """All of them; the last one counts those that are not named."""
        found = tuple(self._found)
        return (
            (*found, f"(others)={self._left_out}: further defects are not listed")
            if self._left_out
            else found
        )
