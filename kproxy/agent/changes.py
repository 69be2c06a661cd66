"""The last changes that came to this node, each with its times: arrived, planned, in the kernel.

It answers "did this node get it, and when", also where Events and logs are not at hand. The ring has a fixed
length, and one change costs a few microseconds.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice

import msgspec

from kproxy.addresses import Family, join_host_port
from kproxy.agent.family_sync import SyncOutcome
from kproxy.inspect.changes import Change, ChangeList
from kproxy.plan.model import ServicePlan
from kproxy.state.store import Arrival

KEPT = 4096
"""Changes in the ring, of a few hundred bytes each."""

SHOWN = 20
"""Endpoints of a change that are named, in each direction."""


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """A Change, with times in seconds since the epoch."""

    number: int
    service: str
    family: Family
    arrived: float | None
    taken: float
    planned: float
    applied: float | None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    more: int = 0
    trigger: str = ""
    refused: str = ""
    version: str = ""

    def public(self, flows: int, forgotten: float | None) -> Change:
        """The change as it is sent; `flows` were forgotten, the last at a time."""
        return Change(
            self.number,
            self.service,
            self.family,
            moment(self.arrived),
            datetime.fromtimestamp(self.taken, UTC),
            datetime.fromtimestamp(self.planned, UTC),
            moment(self.applied),
            self.added,
            self.removed,
            self.more,
            self.trigger,
            self.refused,
            self.version,
            flows,
            moment(forgotten),
        )


class Changes:
    """The ring. The run loop's thread adds changes, that of conntrack what was forgotten; any may read it."""

    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[_Entry] = deque(maxlen=kept)
        self._forgotten: dict[int, tuple[int, float | None]] = {}
        self._number = 0
        self._kept = kept

    def note(
        self, outcomes: Mapping[Family, SyncOutcome], arrivals: Mapping[str, Arrival]
    ) -> dict[Family, dict[str, int]]:
        """Add what a sync did. `arrivals` are those of the services whose objects changed.

        Return the number of each change that was added, by family and service.
        """
        noted: dict[Family, dict[str, int]] = {}
        epoch = time.time() - time.monotonic()
        applied = {family: each for family, each in outcomes.items() if each.report.error is None}
        changed = {
            key
            for outcome in applied.values()
            for key in arrivals
            if key in outcome.plans and outcome.before.get(key) != outcome.plans[key]
        }
        for family, outcome in applied.items():
            for key in self._kept_of(outcome):
                # A change of one family is none of the other, but one without any effect is noted.
                if key in changed and outcome.before.get(key) == outcome.plans[key]:
                    continue
                if self._note(key, outcome.plans[key], family, outcome, arrivals.get(key), epoch):
                    noted.setdefault(family, {})[key] = self._number
        return noted

    def forgot(self, flows: Mapping[int, int]) -> None:
        """Add the number of flows that were forgotten for changes, by the changes' numbers."""
        now = time.time()
        for number, count in flows.items():
            self._forgotten[number] = (self._forgotten.get(number, (0, None))[0] + count, now)
        oldest = self._number - self._kept
        if len(self._forgotten) > self._kept:
            self._forgotten = {n: each for n, each in self._forgotten.items() if n > oldest}

    def services(self, outcomes: Mapping[Family, SyncOutcome]) -> set[str]:
        """The services of which `note` needs the arrival: the ring does not keep more."""
        return {key for outcome in outcomes.values() for key in self._kept_of(outcome)}

    def _kept_of(self, outcome: SyncOutcome) -> Iterable[str]:
        return islice(outcome.plans, max(0, len(outcome.plans) - self._kept), None)

    def after(self, number: int, service: str | None = None) -> ChangeList:
        """The changes with a greater number; with `service`, only of that one."""
        found = [
            self._public(each)
            for each in self._copy()
            if each.number > number and service in {None, each.service}
        ]
        return ChangeList(self._number, tuple(found))

    def latest(self, service: str, family: Family) -> Change | None:
        """The last change of a service in a family, if the ring still has it."""
        found = (each for each in reversed(self._copy()) if each.service == service and each.family is family)
        last = next(found, None)
        return None if last is None else self._public(last)

    def _public(self, entry: _Entry) -> Change:
        return entry.public(*self._forgotten.get(entry.number, (0, None)))

    def _copy(self) -> list[_Entry]:
        while True:
            try:
                return list(self._ring)
            except RuntimeError:  # the ring changed meanwhile
                continue

    def _note(
        self,
        key: str,
        plan: ServicePlan,
        family: Family,
        outcome: SyncOutcome,
        arrival: Arrival | None,
        epoch: float,
    ) -> bool:
        """Add one change, unless it only repeats what is known."""
        before = outcome.before.get(key, plan)
        if before is None and not plan.ports:
            return False
        added, removed, more = _difference(before, plan)
        refused = outcome.report.failed.get(key, "")
        is_retry = refused and key not in outcome.before
        if is_retry or (arrival is None and not added and not removed):
            return False
        self._number += 1
        change = _Entry(
            self._number,
            key,
            family,
            None if arrival is None else round(arrival.at + epoch, 6),
            round(outcome.began + epoch, 6),
            round(outcome.planned + epoch, 6),
            None if refused else round(outcome.ended + epoch, 6),
            added,
            removed,
            more,
            "" if arrival is None else arrival.triggers.get(family.value, ""),
            refused,
            "" if arrival is None else arrival.versions.get(family.value, ""),
        )
        self._ring.append(change)
        return True


def _difference(
    before: ServicePlan | None, after: ServicePlan
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Endpoints added and removed, and the number of those that are not named."""
    if before is after:
        return (), (), 0
    old, new = set(_endpoints(before)), set(_endpoints(after))
    if old == new:
        return (), (), 0
    added, removed = sorted(new - old), sorted(old - new)
    more = max(0, len(added) - SHOWN) + max(0, len(removed) - SHOWN)
    return _texts(added[:SHOWN]), _texts(removed[:SHOWN]), more


def _endpoints(plan: ServicePlan | None) -> Iterator[tuple[str, int]]:
    for port in plan.ports if plan is not None else ():
        for endpoint in port.reachable:
            yield endpoint.ip, endpoint.port


def _texts(endpoints: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(join_host_port(ip, port) for ip, port in endpoints)


def moment(seconds: float | None) -> datetime | None:
    """A time in seconds since the epoch as a time of UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
