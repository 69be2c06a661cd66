"""The state of the watch of one kind, for the status and for health."""

from dataclasses import dataclass
from enum import Enum

from kproxy.state.kinds import Kind


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """The state of the watch of one kind. Times are seconds since the epoch."""

    kind: Kind
    synced: bool
    """Whether a complete list was delivered at least once."""
    connected_since: float | None
    """None while there is no watch."""
    consecutive_failures: int
    """0 while connected."""
    last_error: str | None
    resource_version: str | None
    down_since: float | None = None
    """The time since which there is no steady watch; None while there is one."""


class Phase(Enum):
    """The state of the connection that was last logged."""

    NEW = "new"
    UP = "up"
    DOWN = "down"
