"""The services that the kernel refused, grouped by cause, and when each cause is tried again.

Hundreds of services may be refused for one cause, such as a match that this kernel lacks. Trying each of them
would delay others, so services with the same kind of rules and of error share one retry: the one that was
tried least recently is tried, and the others only if it is accepted.

A cause is assumed for services that were never tried only once it is proven: the kernel refused two services,
each by itself, and holds no service with rules of the same kind.
"""

import itertools
from collections.abc import Callable, Iterable, KeysView

import msgspec

from kproxy.backends.core.retries import retry_interval
from kproxy.backends.core.shapes import Shape

PROVEN = 2
"""The number of services that must have been refused before the cause is assumed for a third."""


class Cause(msgspec.Struct, frozen=True):
    """Why services are refused: the kind of the error, and of their rules (None: it is not shared)."""

    error: str
    shape: Shape | None = None


class _Group:
    """The services of one cause, the least recently tried first; a retry takes `width` of them."""

    def __init__(self, now: float) -> None:
        self.members: dict[str, None] = {}
        self.refusals = 0
        self.due = now
        self.width = 1


class Quarantine:
    """Refused services with the reason; `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reasons: dict[str, str] = {}
        self._causes: dict[str, Cause] = {}
        self._groups: dict[Cause, _Group] = {}
        self._proven: dict[Shape, Cause] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def keys(self) -> KeysView[str]:
        """The quarantined services."""
        return self._reasons.keys()

    @property
    def reasons(self) -> dict[str, str]:
        """The quarantined services with the reason."""
        return dict(self._reasons)

    def add(self, key: str, reason: str, cause: Cause) -> None:
        """Quarantine a service that the kernel refused."""
        self.discard(key)
        group = self._groups.get(cause)
        if group is None:
            group = self._groups[cause] = _Group(self._clock())
            self._postpone(cause, group)
        self._reasons[key] = reason
        self._causes[key] = cause
        group.members[key] = None

    def discard(self, key: str) -> bool:
        """Release a service, because its plan changed; return whether it was quarantined."""
        cause = self._causes.pop(key, None)
        if cause is None:
            return False
        del self._reasons[key]
        del self._groups[cause].members[key]
        self._forget_if_empty(cause)
        return True

    def clear(self) -> None:
        """Release all services."""
        for each in (self._reasons, self._causes, self._groups, self._proven):
            each.clear()

    def prove(self, cause: Cause, disproved: Callable[[Shape], bool]) -> None:
        """Assume `cause` for other services from now on, if it is proven and not `disproved`."""
        shape, group = cause.shape, self._groups.get(cause)
        if shape is None or shape in self._proven or group is None or len(group.members) != PROVEN:
            return  # it is examined once, when there are enough
        if not disproved(shape):
            self._proven[shape] = cause

    @property
    def assumes(self) -> bool:
        """Whether any cause is assumed for services that were not tried."""
        return bool(self._proven)

    def assume(self, key: str, shape: Shape) -> bool:
        """Quarantine a service without trying it if a cause is proven for rules of its kind."""
        cause = self._proven.get(shape)
        if cause is None:
            return False
        witness = next(iter(self._groups[cause].members))
        self.add(key, self._reasons[witness], cause)
        return True

    def due(self) -> Cause | None:
        """The cause whose retry is due for the longest time, or None."""
        due = self.next_due()
        if due is None or due > self._clock():
            return None
        return min(self._groups, key=lambda cause: self._groups[cause].due)

    def next_due(self) -> float | None:
        """The time of the next retry, or None."""
        return min((group.due for group in self._groups.values()), default=None)

    def take(self, cause: Cause) -> dict[str, str]:
        """Take out the services of a cause that are to be tried now, with their reasons."""
        group = self._groups[cause]
        taken = {key: self._reasons.pop(key) for key in itertools.islice(group.members, group.width)}
        for key in taken:
            del group.members[key], self._causes[key]
        return taken

    def restore(self, cause: Cause, taken: Iterable[tuple[str, str]]) -> None:
        """Put back services that were taken out and could not be tried."""
        for key, reason in taken:
            self.add(key, reason, cause)

    def tried(self, cause: Cause, *, accepted: bool, refused: bool) -> None:
        """Note the outcome of a retry: take more services at once, or postpone the others."""
        group = self._groups.get(cause)
        if group is None:
            return
        if accepted:
            group.refusals = 0
            self._disprove(cause)
        if refused:
            group.width = 1
            self._postpone(cause, group)
        else:
            group.width *= 2
        self._forget_if_empty(cause)

    def _postpone(self, cause: Cause, group: _Group) -> None:
        group.refusals += 1
        group.due = self._clock() + retry_interval(cause.error, group.refusals)

    def _disprove(self, cause: Cause) -> None:
        if cause.shape is not None and self._proven.get(cause.shape) == cause:
            del self._proven[cause.shape]

    def _forget_if_empty(self, cause: Cause) -> None:
        if not self._groups[cause].members:
            del self._groups[cause]
            self._disprove(cause)
