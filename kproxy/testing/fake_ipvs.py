"""In-memory stand-ins for IPVS, ipset and the dummy device, which refuse what the kernel refuses.

Tests of the IPVS mode's core run against them by the thousand. All three share one order book of faults, so
that a test can let the n-th change fail, whatever it is, or lose its acknowledgement.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.ipset.types import Entry, EntryChange, IpsetError, SetHeader, SetSpec
from kproxy.kernel.ipvs.types import (
    Command,
    DestinationId,
    DestinationState,
    IpvsError,
    Request,
    ServerId,
    Timeouts,
    VirtualServer,
)
from kproxy.plan.schedulers import SCHEDULERS


class Faults:
    """What is to go wrong: counted over all changes of the three kernels.

    `after` is called whenever something may have changed. `refuse` says of a change, by its text, whether the
    kernel refuses it.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.lose_at: int | None = None
        self.refuse: Callable[[str], bool] = lambda _: False
        self.after: Callable[[], None] = lambda: None

    def lost(self) -> bool:
        """Count one change that is about to be made; whether the answer to it gets lost."""
        self.changes += 1
        if self.lose_at is not None and self.changes >= self.lose_at:
            self.lose_at = None
            return True
        return False

    def lose_soon(self, changes: int) -> None:
        """Lose the answer to the change after so many more."""
        self.lose_at = self.changes + changes + 1


class FakeIpvs:
    """Virtual servers of both families. `sent` holds every request, `connections` is for the test to fill."""

    def __init__(self, faults: Faults | None = None, schedulers: Iterable[str] = SCHEDULERS) -> None:
        self.table: dict[ServerId, tuple[VirtualServer, dict[DestinationId, int]]] = {}
        self.connections: dict[tuple[ServerId, DestinationId], int] = {}
        self.schedulers = set(schedulers)
        self.sent: list[Request] = []
        self.reads = 0
        self.timeouts = Timeouts()
        self._faults = faults or Faults()

    def apply(self, requests: Sequence[Request]) -> Mapping[int, int]:
        """Carry out each request, or refuse it with the kernel's errno."""
        failures: dict[int, int] = {}
        for index, request in enumerate(requests):
            lost = self._faults.lost()
            self.sent.append(request)
            code = errno.EINVAL if self._faults.refuse(str(request)) else self._do(request)
            if code:
                failures[index] = code
            self._faults.after()
            if lost:
                raise IpvsError("an acknowledgement was lost")
        return failures

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """The virtual servers of a family."""
        self.reads += 1
        return {server: settings for server, (settings, _) in self.table.items() if server.family is family}

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of a virtual server."""
        self.reads += 1
        _, destinations = self.table.get(server, (None, {}))
        return {
            destination: DestinationState(weight, active=self.connections.get((server, destination), 0))
            for destination, weight in destinations.items()
        }

    def has_scheduler(self, name: str) -> bool:
        """Whether the test let it have one."""
        return name in self.schedulers

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Remember."""
        self.timeouts = timeouts

    def _do(self, request: Request) -> int:
        """What ip_vs_ctl.c does with a request, and the errno it answers with."""
        found = self.table.get(request.server)
        if request.command is Command.NEW_SERVICE and found is not None:
            return errno.EEXIST
        if request.command is not Command.NEW_SERVICE and found is None:
            return errno.ESRCH
        settings = request.settings
        if request.destination is not None:
            assert found is not None  # noqa: S101 - see above
            return self._do_destination(request.command, request.destination, request.weight, found[1])
        if request.command is Command.DEL_SERVICE:
            del self.table[request.server]
            return 0
        if settings is None:
            return errno.EINVAL
        if settings.scheduler not in self.schedulers:
            return errno.ENOENT
        self.table[request.server] = (settings, found[1] if found is not None else {})
        return 0

    @staticmethod
    def _do_destination(
        command: Command, destination: DestinationId, weight: int, standing: dict[DestinationId, int]
    ) -> int:
        if command is Command.NEW_DEST and destination in standing:
            return errno.EEXIST
        if command is not Command.NEW_DEST and destination not in standing:
            return errno.ENOENT
        if command is Command.DEL_DEST:
            del standing[destination]
        else:
            standing[destination] = weight
        return 0


class FakeIpset:
    """Sets. `held` names those that a rule refers to; `limit` is how many entries fit."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.sets: dict[str, tuple[SetSpec, set[Entry]]] = {}
        self.held: set[str] = set()
        self.sent: list[EntryChange] = []
        self.reads = 0
        self.limit = 1 << 24
        self._faults = faults or Faults()

    def headers(self) -> dict[str, SetHeader]:
        """Every set."""
        self.reads += 1
        return {
            name: SetHeader(name, spec.kind, spec.family, self.limit, len(entries), int(name in self.held))
            for name, (spec, entries) in self.sets.items()
        }

    def create(self, spec: SetSpec) -> None:
        """Create a set, or find it."""
        found = self.sets.setdefault(spec.name, (spec, set()))
        if found[0] != spec:
            raise IpsetError(f"ipset: cannot create set {spec.name}: it exists with another type")

    def destroy(self, name: str) -> None:
        """Destroy a set that no rule holds."""
        if name in self.held:
            raise IpsetError(f"ipset: cannot destroy set {name}: it is in use by a rule")
        self.sets.pop(name, None)

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """The entries of a set."""
        self.reads += 1
        return frozenset(self.sets[spec.name][1]) if spec.name in self.sets else frozenset()

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Carry out each change, or refuse it."""
        failures: dict[int, int] = {}
        for index, change in enumerate(changes):
            lost = self._faults.lost()
            self.sent.append(change)
            code = errno.EINVAL if self._faults.refuse(str(change)) else self._do(change)
            if code:
                failures[index] = code
            self._faults.after()
            if lost:
                raise IpsetError("an acknowledgement was lost")
        return failures

    def _do(self, change: EntryChange) -> int:
        if change.set.name not in self.sets:
            return errno.ENOENT
        entries = self.sets[change.set.name][1]
        if not change.add:
            entries.discard(change.entry)
        elif len(entries) >= self.limit:
            return 4352
        else:
            entries.add(change.entry)
        return 0


class FakeDevice:
    """The device and its addresses."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.name = "kube-ipvs0"
        self.held: set[str] | None = None
        self.changes = 0
        self.reads = 0
        self._faults = faults or Faults()

    def ensure(self) -> bool:
        """Create the device, or find it."""
        if self.held is not None:
            return False
        self.held = set()
        return True

    def delete(self) -> None:
        """Delete it with its addresses."""
        self.held = None

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family."""
        self.reads += 1
        return frozenset(ip for ip in self.held or () if (":" in ip) == (family is Family.IPV6))

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Add each address, or refuse it."""
        if self.held is None:
            raise DeviceError(f"there is no interface {self.name}")
        return self._each(wanted, self.held.add)

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Remove each address, or refuse it."""
        return self._each(wanted, (self.held or set()).discard)

    def _each(self, addresses: Iterable[str], change: Callable[[str], None]) -> Mapping[str, int]:
        failures: dict[str, int] = {}
        for ip in addresses:
            lost = self._faults.lost()
            self.changes += 1
            if self._faults.refuse(ip):
                failures[ip] = errno.EINVAL
            else:
                change(ip)
            self._faults.after()
            if lost:
                raise DeviceError("an acknowledgement was lost")
        return failures
