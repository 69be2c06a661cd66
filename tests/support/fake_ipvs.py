"""In-memory fakes of IPVS, ipset and the dummy device, which refuse what the kernel refuses.

Thousands of tests of the IPVS mode's core run against them. All three share one `Faults`, so that a test can
let the n-th change fail, whatever it is, or lose its acknowledgement.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address

from kproxy.addresses import Family
from kproxy.kernel.addresses import DeviceError, DeviceMissing
from kproxy.kernel.ipset.types import (
    Entry,
    EntryChange,
    IpsetError,
    IpsetUnavailable,
    SetHeader,
    SetKind,
    SetSpec,
)
from kproxy.kernel.ipvs.types import (
    Command,
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


class FakeIpvs:
    """Virtual servers of both families. `sent` holds every request.

    Tests fill `connections` (open ones) and `closing`.
    """

    def __init__(self, faults: Faults | None = None, schedulers: Iterable[str] = SCHEDULERS) -> None:
        self.table: dict[ServerId, tuple[VirtualServer, dict[DestinationId, int]]] = {}
        self.connections: dict[tuple[ServerId, DestinationId], int] = {}
        self.closing: dict[tuple[ServerId, DestinationId], int] = {}
        self.counters: dict[ServerId, Statistics] = {}
        self.schedulers = set(schedulers)
        self.sent: list[Request] = []
        self.reads = 0
        self.timeouts = Timeouts()
        self.local_marks: set[tuple[Family, int]] = set()
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
        return {server: settings for server, (settings, _) in self.table.items() if server.family is family}

    def statistics(self, family: Family) -> dict[ServerId, Statistics]:
        """The counters of a family's virtual servers: whatever a test has put into `counters`."""
        return {server: self.counters.get(server, Statistics()) for server in self.servers(family)}

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of a virtual server."""
        self._available()
        self.reads += 1
        _, destinations = self.table.get(server, (None, {}))
        return {
            destination: DestinationState(
                weight,
                active=self.connections.get((server, destination), 0),
                inactive=self.closing.get((server, destination), 0),
            )
            for destination, weight in destinations.items()
        }

    def has_scheduler(self, name: str) -> bool:
        """Return whether the scheduler is in `schedulers`."""
        self._available()
        return name in self.schedulers

    def marks(self, family: Family) -> frozenset[int]:
        """The firewall marks that lead to the node itself."""
        return frozenset(mark for of, mark in self.local_marks if of is family)

    def add_local_mark(self, family: Family, mark: int, scheduler: str) -> bool:
        """Remember a mark, unless the scheduler is missing."""
        self._available()
        if scheduler not in self.schedulers:
            raise IpvsError(f"cannot make the virtual server of mark {mark:#x}: no scheduler {scheduler}")
        is_new = (family, mark) not in self.local_marks
        self.local_marks.add((family, mark))
        return is_new

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Forget a mark."""
        self._available()
        self.local_marks.discard((family, mark))

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Store the timeouts."""
        self._available()
        self.timeouts = timeouts

    def _available(self) -> None:
        if self._faults.unavailable:
            raise IpvsUnavailable(self._faults.unavailable)

    def _do(self, request: Request) -> int:
        """Execute a request as ip_vs_ctl.c does, and return its errno."""
        command, settings = request.command, request.settings
        if command in _SETTING and (settings is None or len(settings.scheduler) > _SCHEDULER_NAME_MAX):
            return errno.EINVAL
        found = self.table.get(request.server)
        if command is Command.NEW_SERVICE and found is not None:
            return errno.EEXIST
        if command is not Command.NEW_SERVICE and found is None:
            return errno.ESRCH
        standing = found[1] if found is not None else {}
        if command is Command.DEL_SERVICE:
            del self.table[request.server]
            return 0
        if command not in _SETTING:
            return _do_destination(command, request.destination, request.weight, standing)
        if settings is None or settings.scheduler not in self.schedulers:
            return errno.ENOENT
        self.table[request.server] = (settings, standing)
        return 0


_SETTING = frozenset({Command.NEW_SERVICE, Command.SET_SERVICE})
_SCHEDULER_NAME_MAX = 15  # IP_VS_SCHEDNAME_MAXLEN less the terminating NUL
_WEIGHT_MAX = (1 << 31) - 1  # the kernel takes a weight for an int


def _do_destination(
    command: Command, destination: DestinationId | None, weight: int, standing: dict[DestinationId, int]
) -> int:
    if destination is None:
        return errno.EINVAL
    if command is not Command.DEL_DEST and weight > _WEIGHT_MAX:
        return errno.ERANGE
    if command is Command.NEW_DEST and destination in standing:
        return errno.EEXIST
    if command is not Command.NEW_DEST and destination not in standing:
        return errno.ENOENT
    if command is Command.NEW_DEST and not _is_unicast(destination.ip):
        return errno.EINVAL
    if command is Command.DEL_DEST:
        del standing[destination]
    else:
        standing[destination] = weight
    return 0


def _is_unicast(text: str) -> bool:
    """Return whether the kernel accepts an address as a destination (ip_vs_new_dest)."""
    ip = ip_address(text)
    if ip.version == 6 and ip.is_link_local:
        return False
    return not (ip.is_multicast or ip.is_unspecified or text == "255.255.255.255")


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
        self._available()
        self.reads += 1
        return {
            name: SetHeader(name, spec.kind, spec.family, self.limit, len(entries), int(name in self.held))
            for name, (spec, entries) in self.sets.items()
        }

    def create(self, spec: SetSpec) -> None:
        """Create a set if it does not exist."""
        self._available()
        found = self.sets.setdefault(spec.name, (spec, set()))
        self._check("create", spec, found[0])

    def destroy(self, name: str) -> None:
        """Destroy a set that no rule holds."""
        self._available()
        if name in self.held and name in self.sets:
            raise IpsetError(f"ipset: cannot destroy set {name}: it is in use by a rule")
        self.sets.pop(name, None)

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """The entries of a set."""
        self._available()
        self.reads += 1
        if spec.name not in self.sets:
            return frozenset()
        found, entries = self.sets[spec.name]
        self._check("list", spec, found)
        return frozenset(entries)

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

    @staticmethod
    def _check(what: str, spec: SetSpec, found: SetSpec) -> None:
        if found != spec:
            raise IpsetError(
                f"ipset: cannot {what} set {spec.name}: it exists as {found.kind} of {found.family}"
            )

    def _do(self, change: EntryChange) -> int:
        """Apply a change as ip_set_hash_*.c do, and return their error code."""
        if change.set.name not in self.sets:
            return errno.ENOENT
        spec, entries = self.sets[change.set.name]
        entry = change.entry
        if change.set != spec:
            return _ERR_PROTOCOL
        if spec.kind is SetKind.IP and entry.ip in {"0.0.0.0", "::"}:
            return _ERR_HASH_ELEM
        if spec.kind is SetKind.IP_PORT_NET and entry.other.endswith("/0"):
            return _ERR_INVALID_CIDR
        if not change.add:
            entries.discard(entry)
        elif entry not in entries and len(entries) >= self.limit:
            return _ERR_HASH_FULL
        else:
            entries.add(entry)
        return 0


_ERR_PROTOCOL, _ERR_INVALID_CIDR, _ERR_HASH_FULL, _ERR_HASH_ELEM = 4097, 4104, 4352, 4353
"""Of enum ipset_errno of include/uapi/linux/netfilter/ipset/ip_set.h and ip_set_hash.h."""


class FakeDevice:
    """The device and its addresses."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.name = "kube-ipvs0"
        self.held: set[str] | None = None
        self.changes = 0
        self.reads = 0
        self._faults = faults or Faults()

    def ensure(self) -> bool:
        """Create the device if it does not exist; return whether it was created."""
        self._available()
        if self.held is not None:
            return False
        self.held = set()
        return True

    def delete(self) -> None:
        """Delete it with its addresses."""
        self._available()
        self.held = None

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family."""
        self._available()
        self.reads += 1
        return frozenset(ip for ip in self.held or () if (":" in ip) == (family is Family.IPV6))

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Add each address, or refuse it."""
        adding = list(wanted)
        if not adding:
            return {}
        if self.held is None:
            raise DeviceMissing(f"there is no interface {self.name}")
        return self._each(adding, self.held.add)

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Remove each address, or refuse it."""
        return self._each(wanted, (self.held or set()).discard)

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
