"""Changes that a sync would make: one value per kernel object, printed as one line."""

import enum

import msgspec


class Sign(enum.StrEnum):
    """The kind of change."""

    ADD = "+"
    CHANGE = "~"
    REMOVE = "-"


class Change(msgspec.Struct, frozen=True, order=True):
    """A kernel object that a sync would add, change or remove: kind and name, sign, and the difference."""

    object: str
    sign: Sign
    detail: str = ""

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.sign} {self.object}{detail}"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 rule`, `2 rules`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
