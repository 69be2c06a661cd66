"""Dry run: virtual servers, sets and the device in memory, read from the kernel once.

The backend itself runs against these, as with the rules. Reads return the state that the kernel would have by
then, and changes are recorded and not sent.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.ipvs.record import describe
from kproxy.kernel.addresses import AddressDevice
from kproxy.kernel.ipset.types import MAX_ELEMENTS, Entry, EntryChange, Ipset, SetHeader, SetSpec
from kproxy.kernel.ipvs.types import (
    MASQUERADE,
    PERSISTENT,
    Command,
    DestinationId,
    DestinationState,
    Ipvs,
    Request,
    ServerId,
    Statistics,
    Timeouts,
    VirtualServer,
)


class DryRunIpvs:
    """Virtual servers (implements Ipvs). `offers` says whether the kernel has a scheduler."""

    def __init__(self, kernel: Ipvs, offers: Callable[[str], bool]) -> None:
        self._kernel = kernel
        self._offers = offers
        self._before: dict[ServerId, VirtualServer] = {}
        self._servers: dict[ServerId, VirtualServer] = {}
        self._read: set[Family] = set()
        self._stood: dict[ServerId, dict[DestinationId, DestinationState]] = {}
        self._destinations: dict[ServerId, dict[DestinationId, DestinationState]] = {}
        self._marks: set[tuple[Family, int]] = set()

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """All virtual servers of a family. Raises IpvsError."""
        if family not in self._read:
            found = self._kernel.servers(family)
            self._read.add(family)
            self._before |= found
            self._servers |= found
        return {server: settings for server, settings in self._servers.items() if server.family is family}

    def statistics(self, family: Family) -> dict[ServerId, Statistics]:
        """The counters of the kernel's virtual servers. Raises IpvsError."""
        return self._kernel.statistics(family)

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of one virtual server. Raises IpvsError."""
        return dict(self._destinations_of(server)) if server in self.servers(server.family) else {}

    def has_scheduler(self, name: str) -> bool:
        """Whether the kernel has a scheduler."""
        return self._offers(name)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Do nothing."""

    def marks(self, family: Family) -> frozenset[int]:
        """The firewall marks of virtual servers."""
        return self._kernel.marks(family) | {mark for of, mark in self._marks if of is family}

    def add_local_mark(self, family: Family, mark: int, scheduler: str) -> bool:  # noqa: ARG002
        """Record a virtual server of a mark; False if it exists."""
        if mark in self.marks(family):
            return False
        self._marks.add((family, mark))
        return True

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Do nothing: a first sync removes no mark."""

    def apply(self, requests: Sequence[Request]) -> Mapping[int, int]:
        """Record the requests; return the errno of each that the kernel would refuse, by its index."""
        failures = {}
        for index, request in enumerate(requests):
            code = self._take(request)
            if code:
                failures[index] = code
        return failures

    def changes(self) -> Iterator[Change]:
        """The changes: virtual servers, and destinations of those that exist before and after."""
        for server in self._before.keys() | self._servers.keys():
            old, new = self._before.get(server), self._servers.get(server)
            name = f"virtual server {describe(server)}"
            if new is None:
                yield Change(name, Sign.REMOVE)
            elif old is None:
                count = len(self._destinations[server])
                yield Change(name, Sign.ADD, f"{_words(new)}, {counted(count, 'destination')}")
            else:
                if old != new:
                    yield Change(name, Sign.CHANGE, f"{_words(old)} -> {_words(new)}")
                yield from self._destination_changes(server)
        for family, mark in self._marks:
            yield Change(f"virtual server {family.value} mark {mark:#x}", Sign.ADD, "the node itself")

    def _destination_changes(self, server: ServerId) -> Iterator[Change]:
        before, now = self._stood.get(server, {}), self._destinations.get(server, {})
        for destination in before.keys() | now.keys():
            old, new = before.get(destination), now.get(destination)
            name = f"destination {describe(server)} -> {destination.ip} port {destination.port}"
            if new is None:
                yield Change(name, Sign.REMOVE)
            elif old is None:
                yield Change(name, Sign.ADD, f"weight {new.weight}")
            elif old != new:
                forwarding = "masqueraded, " if old.forwarding != new.forwarding else ""
                drains = "" if new.weight else ", to drain"
                yield Change(name, Sign.CHANGE, f"{forwarding}weight {old.weight} -> {new.weight}{drains}")

    def _take(self, request: Request) -> int:
        server, settings, destination = request.server, request.settings, request.destination
        known = server in self.servers(server.family)
        if request.command is Command.NEW_SERVICE and settings is not None:
            if known:
                return errno.EEXIST
            self._servers[server] = settings
            self._destinations[server] = {}
            return 0
        if not known:
            return errno.ESRCH
        if request.command is Command.SET_SERVICE and settings is not None:
            self._servers[server] = settings
        elif request.command is Command.DEL_SERVICE:
            del self._servers[server]
            self._destinations.pop(server, None)
        elif destination is not None:
            return self._take_destination(request, destination)
        return 0

    def _take_destination(self, request: Request, destination: DestinationId) -> int:
        known = self._destinations_of(request.server)
        old = known.get(destination)
        if request.command is Command.NEW_DEST:
            if old is not None:
                return errno.EEXIST
            known[destination] = DestinationState(request.weight)
        elif old is None:
            return errno.ENOENT
        elif request.command is Command.DEL_DEST:
            del known[destination]
        else:
            known[destination] = msgspec.structs.replace(old, weight=request.weight, forwarding=MASQUERADE)
        return 0

    def _destinations_of(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        if server not in self._destinations:
            self._stood[server] = self._kernel.destinations(server)
            self._destinations[server] = dict(self._stood[server])
        return self._destinations[server]


class DryRunIpset:
    """Sets (implements Ipset)."""

    def __init__(self, kernel: Ipset) -> None:
        self._kernel = kernel
        self._before: dict[str, SetHeader] | None = None
        self._headers: dict[str, SetHeader] = {}
        self._stood: dict[str, frozenset[Entry]] = {}
        self._entries: dict[str, set[Entry]] = {}

    def headers(self) -> dict[str, SetHeader]:
        """Every set by name. Raises IpsetError."""
        if self._before is None:
            self._before = self._kernel.headers()
            self._headers = dict(self._before)
        return {
            name: msgspec.structs.replace(header, entries=len(self._entries.get(name, ())))
            if name in self._entries
            else header
            for name, header in self._headers.items()
        }

    def create(self, spec: SetSpec) -> None:
        """Record a new set; an existing one is left alone."""
        if spec.name not in self.headers():
            self._headers[spec.name] = SetHeader(spec.name, spec.kind, spec.family, MAX_ELEMENTS, 0, 0)
            self._entries[spec.name] = set()

    def destroy(self, name: str) -> None:
        """Record the deletion of a set."""
        self._headers.pop(name, None)
        self._entries.pop(name, None)

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """All entries of a set. Raises IpsetError."""
        return frozenset(self._entries_of(spec)) if spec.name in self.headers() else frozenset()

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Record the changes; return the errno of each that the kernel would refuse, by its index."""
        failures = {}
        for index, change in enumerate(changes):
            if change.set.name not in self.headers():
                failures[index] = errno.ENOENT
            elif change.add:
                self._entries_of(change.set).add(change.entry)
            else:
                self._entries_of(change.set).discard(change.entry)
        return failures

    def changes(self) -> Iterator[Change]:
        """The changes, one per set."""
        before = self._before or {}
        for name in before.keys() | self._headers.keys():
            if name not in self._headers:
                yield Change(f"set {name}", Sign.REMOVE, _entries(before[name].entries))
                continue
            now = self._entries.get(name, set())
            if name not in before:
                yield Change(
                    f"set {name}",
                    Sign.ADD,
                    f"{self._headers[name].type}, {counted(len(now), 'entry', 'entries')}",
                )
            elif name in self._stood and now != self._stood[name]:
                lacks, extra = len(now - self._stood[name]), len(self._stood[name] - now)
                yield Change(
                    f"set {name}",
                    Sign.CHANGE,
                    f"lacks {counted(lacks, 'entry', 'entries')} and has {extra} not wanted",
                )

    def _entries_of(self, spec: SetSpec) -> set[Entry]:
        if spec.name not in self._entries:
            self._stood[spec.name] = self._kernel.entries(spec)
            self._entries[spec.name] = set(self._stood[spec.name])
        return self._entries[spec.name]


class DryRunDevice:
    """The device with its addresses (implements AddressDevice). `exists`: the kernel has it now."""

    def __init__(self, kernel: AddressDevice, *, exists: bool) -> None:
        self.name = kernel.name
        self._kernel = kernel
        self._existed = self._exists = exists
        self._stood: dict[Family, frozenset[str]] = {}
        self._addresses: dict[Family, set[str]] = {}

    def ensure(self) -> bool:
        """Record a new device; False if it exists."""
        made, self._exists = not self._exists, True
        return made

    def delete(self) -> None:
        """Record the deletion of the device with its addresses."""
        for family in Family:
            self._addresses_of(family).clear()
        self._exists = False

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family. Raises DeviceError."""
        return frozenset(self._addresses_of(family))

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Record added addresses; none is refused."""
        for ip in wanted:
            self._addresses_of(_family(ip)).add(ip)
        return {}

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Record removed addresses; none is refused."""
        for ip in wanted:
            self._addresses_of(_family(ip)).discard(ip)
        return {}

    def changes(self) -> Iterator[Change]:
        """The changes: of the device, and one per address."""
        if self._exists != self._existed:
            yield Change(f"device {self.name}", Sign.ADD if self._exists else Sign.REMOVE)
        for family, now in self._addresses.items():
            for ip in now ^ self._stood[family]:
                sign = Sign.ADD if ip in now else Sign.REMOVE
                yield Change(f"address {ip} on {self.name}", sign)

    def _addresses_of(self, family: Family) -> set[str]:
        if family not in self._addresses:
            self._stood[family] = self._kernel.addresses(family)
            self._addresses[family] = set(self._stood[family])
        return self._addresses[family]


def _family(ip: str) -> Family:
    return Family.IPV6 if ":" in ip else Family.IPV4


def _words(settings: VirtualServer) -> str:
    sticky = f", affinity {settings.timeout} s" if settings.flags & PERSISTENT else ""
    flags = settings.flags & ~PERSISTENT
    return f"{settings.scheduler}{f' flags {flags:#x}' if flags else ''}{sticky}"


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")
