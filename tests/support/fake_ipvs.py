"""The product's models in memory of IPVS, ipset and the dummy device, with faults that a test injects.

Thousands of tests of the IPVS mode's core run against them. All three share one `Faults`, so that a test can
let the n-th change fail, whatever it is, or lose its acknowledgement.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.ipvs.memory import MemoryDevice, MemoryIpset, MemoryIpvs
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.ipset.types import Entry, EntryChange, IpsetError, IpsetUnavailable, SetHeader, SetSpec
from kproxy.kernel.ipvs.types import (
    DestinationId,
    DestinationState,
    IpvsError,
    IpvsUnavailable,
    Request,
    ServerId,
    Statistics,
    Timeouts,
    VirtualServer,
)
from kproxy.plan.schedulers import SCHEDULERS


class Faults:
    """Injected faults; changes are counted over all three fakes.

    `after` is called after every change. `refuse` returns whether the kernel refuses a change, by its text.
    While `unavailable` is not empty, every read and change fails with that reason.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.lose_at: int | None = None
        self.refuse: Callable[[str], bool] = lambda _: False
        self.after: Callable[[], None] = lambda: None
        self.unavailable = ""
        self._failing: dict[int, int] = {}

    def lost(self) -> bool:
        """Count one change before it is made; return whether its reply is lost."""
        self.changes += 1
        if self.lose_at is not None and self.changes >= self.lose_at:
            self.lose_at = None
            return True
        return False

    def lose_soon(self, changes: int) -> None:
        """Lose the reply to the change after the next `changes`."""
        self.lose_at = self.changes + changes + 1

    def fail_soon(self, changes: int, code: int) -> None:
        """Refuse the change after the next `changes`, with this errno."""
        self._failing[self.changes + changes + 1] = code

    def refusal(self, change: object) -> int:
        """Return the injected errno for the change counted last; 0: none, the fake's own rules apply."""
        return self._failing.pop(self.changes, 0) or (errno.EINVAL if self.refuse(str(change)) else 0)


class FakeIpvs(MemoryIpvs):
    """Virtual servers of both families. `sent` holds every request.

    Tests fill `connections` (open ones), `closing`, and `counters`.
    """

    def __init__(self, faults: Faults | None = None, schedulers: Iterable[str] = SCHEDULERS) -> None:
        super().__init__()
        self.connections: dict[tuple[ServerId, DestinationId], int] = {}
        self.closing: dict[tuple[ServerId, DestinationId], int] = {}
        self.counters: dict[ServerId, Statistics] = {}
        self.schedulers = set(schedulers)
        self.sent: list[Request] = []
        self.reads = 0
        self.timeouts = Timeouts()
        self._faults = faults or Faults()

    def apply(self, requests: Sequence[Request]) -> Mapping[int, int]:
        """Carry out each request, or refuse it with the kernel's errno."""
        self._available()
        failures: dict[int, int] = {}
        for index, request in enumerate(requests):
            lost = self._faults.lost()
            self.sent.append(request)
            code = self._faults.refusal(request) or self._do(request)
            if code:
                failures[index] = code
            self._faults.after()
            if lost:
                raise IpvsError("an acknowledgement was lost")
        return failures

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """The virtual servers of a family."""
        self._available()
        self.reads += 1
        return super().servers(family)

    def statistics(self, family: Family) -> dict[ServerId, Statistics]:
        """The counters of a family's virtual servers: whatever a test has put into `counters`."""
        return {server: self.counters.get(server, Statistics()) for server in self.servers(family)}

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of a virtual server."""
        self._available()
        self.reads += 1
        return super().destinations(server)

    def has_scheduler(self, name: str) -> bool:
        """Return whether the scheduler is in `schedulers`."""
        self._available()
        return self._offers(name)

    def add_local_mark(self, family: Family, mark: int, scheduler: str) -> bool:
        """Remember a mark, unless the scheduler is missing."""
        self._available()
        if not self._offers(scheduler):
            raise IpvsError(f"cannot make the virtual server of mark {mark:#x}: no scheduler {scheduler}")
        return super().add_local_mark(family, mark, scheduler)

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Forget a mark."""
        self._available()
        super().remove_local_mark(family, mark)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Store the timeouts."""
        self._available()
        self.timeouts = timeouts

    def _available(self) -> None:
        if self._faults.unavailable:
            raise IpvsUnavailable(self._faults.unavailable)

    def _offers(self, scheduler: str) -> bool:
        return scheduler in self.schedulers

    def _state(self, server: ServerId, destination: DestinationId, weight: int) -> DestinationState:
        at = server, destination
        return DestinationState(weight, active=self.connections.get(at, 0), inactive=self.closing.get(at, 0))


class FakeIpset(MemoryIpset):
    """Sets. `held` names those that a rule refers to; `limit` is how many entries fit."""

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__()
        self.held: set[str] = set()
        self.sent: list[EntryChange] = []
        self.reads = 0
        self._faults = faults or Faults()

    def headers(self) -> dict[str, SetHeader]:
        """Every set."""
        self._available()
        self.reads += 1
        return {
            name: SetHeader(name, each.type, each.family, self.limit, each.entries, int(name in self.held))
            for name, each in super().headers().items()
        }

    def create(self, spec: SetSpec) -> None:
        """Create a set if it does not exist."""
        self._available()
        super().create(spec)

    def destroy(self, name: str) -> None:
        """Destroy a set that no rule holds."""
        self._available()
        if name in self.held and name in self.sets:
            raise IpsetError(f"ipset: cannot destroy set {name}: it is in use by a rule")
        super().destroy(name)

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """The entries of a set."""
        self._available()
        self.reads += 1
        return super().entries(spec)

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Carry out each change, or refuse it."""
        self._available()
        failures: dict[int, int] = {}
        for index, change in enumerate(changes):
            lost = self._faults.lost()
            self.sent.append(change)
            code = self._faults.refusal(change) or self._do(change)
            if code:
                failures[index] = code
            self._faults.after()
            if lost:
                raise IpsetError("an acknowledgement was lost")
        return failures

    def _available(self) -> None:
        if self._faults.unavailable:
            raise IpsetUnavailable(self._faults.unavailable)


class FakeDevice(MemoryDevice):
    """The device and its addresses."""

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__("kube-ipvs0")
        self.changes = 0
        self.reads = 0
        self._faults = faults or Faults()

    def ensure(self) -> bool:
        """Create the device if it does not exist; return whether it was created."""
        self._available()
        return super().ensure()

    def delete(self) -> None:
        """Delete it with its addresses."""
        self._available()
        super().delete()

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family."""
        self._available()
        self.reads += 1
        return super().addresses(family)

    def _each(self, addresses: Iterable[str], change: Callable[[str], None]) -> Mapping[str, int]:
        self._available()
        failures: dict[str, int] = {}
        for ip in addresses:
            lost = self._faults.lost()
            self.changes += 1
            if code := self._faults.refusal(ip):
                failures[ip] = code
            else:
                change(ip)
            self._faults.after()
            if lost:
                raise DeviceError("an acknowledgement was lost")
        return failures

    def _available(self) -> None:
        if self._faults.unavailable:
            raise DeviceError(self._faults.unavailable)
