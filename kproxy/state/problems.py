"""One structure for all defects of objects: every report names object, field and value."""

import json

import msgspec

from kproxy.text import clean

_SHOWN = 120
_LONGEST_NAME, _LONGEST_REASON = 400, 600


class Problem(msgspec.Struct, frozen=True, gc=False, order=True):
    """A defect of an object: "Kind namespace/name", a path such as `spec.externalIPs[0]`, value, reason.

    `conflict`: the value is valid, but another object has it already. `refused`: the value is valid, but this
    node does not serve it.
    """

    object: str
    field: str
    value: str
    reason: str
    conflict: bool = False
    refused: bool = False

    def __post_init__(self) -> None:
        """Bound and escape every text: a field may be an annotation's name, a reason may quote the value."""
        for name in ("object", "field", "value", "reason"):
            limit = _LONGEST_REASON if name == "reason" else _LONGEST_NAME
            text: str = getattr(self, name)
            if (fit := clean(text, limit)) != text:
                msgspec.structs.force_setattr(self, name, fit)

    def __str__(self) -> str:
        return f"{self.object}: {self.field}={self.value}: {self.reason}"


def show(value: object) -> str:
    """Print an untrusted value on one line, quoted and escaped, cut after 120 characters."""
    if isinstance(value, str) and len(value) > _SHOWN:
        value = value[: _SHOWN + 1]
    try:
        text = json.dumps(value, default=str)
    except RecursionError:
        text = f"({type(value).__name__}, nested too deep to show)"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


class ObjectRejected(ValueError):
    """An object that cannot be used at all. `key` is "namespace/name" as far as it could be read."""

    def __init__(self, problem: Problem, key: str | None) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.key = key
