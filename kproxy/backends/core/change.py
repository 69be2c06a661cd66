"""What a sync would change, as values: one object of the kernel each, told as a line that people can read."""

import enum

import msgspec


class Sign(enum.StrEnum):
    """What would happen to the object."""

    ADD = "+"
    CHANGE = "~"
    REMOVE = "-"


class Change(msgspec.Struct, frozen=True, order=True):
    """One object that a sync would make, change or remove: its kind and name, and in what it differs."""

    object: str
    sign: Sign
    detail: str = ""

    def __str__(self) -> str:
        told = f" ({self.detail})" if self.detail else ""
        return f"{self.sign} {self.object}{told}"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 rule`, `2 rules`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
