"""What became of the drift of one family: found, repaired, not repaired, or back after each repair."""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from kproxy.backends.core.base import Drift
from kproxy.telemetry.status import Repair
from kproxy.telemetry.verdict import RETURNS

SHOWN_DRIFTS = 20
"""The maximum number of drifted objects that the status names."""

COUNTED_DRIFTS = 1000
"""The maximum number of drifted objects stored, to detect those that return."""


class DriftRecord:
    """Not thread-safe: the owner locks."""

    def __init__(self) -> None:
        self._found = 0
        self._repaired = 0
        self._outstanding = 0
        self._repair_due = False
        self._unrepaired: set[str] = set()
        self._finds: dict[str, int] = {}
        self._last: datetime | None = None
        self._shown: tuple[str, ...] = ()

    def found(self, drifts: Sequence[Drift]) -> None:
        """Note drift, which the next sync repairs."""
        self._found += len(drifts)
        self._outstanding += len(drifts)
        self._repair_due = True
        self._last = datetime.now(UTC)
        self._shown = tuple(str(drift) for drift in drifts[:SHOWN_DRIFTS])
        names = [drift.object for drift in drifts[:COUNTED_DRIFTS]]
        self._finds = {name: self._finds.get(name, 0) + 1 for name in names}

    def clean(self) -> None:
        """Note that a comparison found no drift."""
        self._finds = {}

    def synced(self, refused: Iterable[str], quarantined: Collection[str]) -> int:
        """Note a sync that worked, what it refused newly and all that is refused; return what it repaired."""
        if self._repair_due:
            self._unrepaired.update(refused)  # refused when they were written again
        self._repair_due = False
        self._unrepaired.intersection_update(quarantined)
        if self._unrepaired:
            return 0
        repaired, self._outstanding = self._outstanding, 0
        self._repaired += repaired
        return repaired

    def status(self) -> Repair:
        """All of it, as the status has it."""
        returning = tuple(name for name, times in self._finds.items() if times >= RETURNS)
        return Repair(
            self._found,
            self._repaired,
            self._last,
            self._shown,
            self._outstanding,
            returning[:SHOWN_DRIFTS],
        )
