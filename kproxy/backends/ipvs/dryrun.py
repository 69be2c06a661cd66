"""Dry run: virtual servers, sets and the device in memory, read from the kernel once.

The backend itself runs against these, as with the rules. Reads return the state that the kernel would have by
then, and changes are recorded and not sent.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.ipvs.memory import MemoryDevice, MemoryIpset, MemoryIpvs, family_of
from kproxy.backends.ipvs.record import describe
from kproxy.kernel.addresses import AddressDevice
from kproxy.kernel.ipset.types import Entry, Ipset, SetHeader, SetKind, SetSpec
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


class DryRunIpvs(MemoryIpvs):
    """Virtual servers (implements Ipvs). `offers` says whether the kernel has a scheduler."""

    def __init__(self, kernel: Ipvs, offers: Callable[[str], bool]) -> None:
        super().__init__()
        self._kernel = kernel
        self._has_scheduler = offers
        self._before: dict[ServerId, VirtualServer] = {}
        self._read: set[Family] = set()
        self._marks: dict[Family, frozenset[int]] = {}
        self._stood: dict[ServerId, dict[DestinationId, DestinationState]] = {}
        """The destinations as read, of the virtual servers of which they were needed."""
        self._written: set[tuple[ServerId, DestinationId]] = set()

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """All virtual servers of a family. Raises IpvsError."""
        if family not in self._read:
            found = self._kernel.servers(family)
            self._read.add(family)
            self._before |= found
            self.table |= {server: (settings, {}) for server, settings in found.items()}
        return super().servers(family)

    def statistics(self, family: Family) -> dict[ServerId, Statistics]:
        """The counters of the kernel's virtual servers. Raises IpvsError."""
        return self._kernel.statistics(family)

    def has_scheduler(self, name: str) -> bool:
        """Whether the kernel has a scheduler."""
        return self._has_scheduler(name)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Do nothing."""

    def marks(self, family: Family) -> frozenset[int]:
        """The firewall marks of virtual servers."""
        if family not in self._marks:
            self._marks[family] = self._kernel.marks(family)
        return self._marks[family] | super().marks(family)

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Do nothing: a first sync removes no mark."""

    def changes(self) -> Iterator[Change]:
        """The changes: virtual servers, and destinations of those that exist before and after."""
        for server in self._before.keys() | self.table.keys():
            old = self._before.get(server)
            new, destinations = self.table.get(server, (None, {}))
            name = f"virtual server {describe(server)}"
            if new is None:
                yield Change(name, Sign.REMOVE)
            elif old is None:
                yield Change(name, Sign.ADD, f"{_words(new)}, {counted(len(destinations), 'destination')}")
            else:
                if old != new:
                    yield Change(name, Sign.CHANGE, f"{_words(old)} -> {_words(new)}")
                yield from self._destination_changes(server)
        for family, mark in self.local_marks:
            yield Change(f"virtual server {family.value} mark {mark:#x}", Sign.ADD, "the node itself")

    def _destination_changes(self, server: ServerId) -> Iterator[Change]:
        if server not in self._stood:
            return
        before, now = self._stood[server], self.destinations(server)
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

    def _find(self, server: ServerId) -> tuple[VirtualServer, dict[DestinationId, int]] | None:
        self.servers(server.family)
        found = super()._find(server)
        if found is not None and server in self._before and server not in self._stood:
            self._stood[server] = self._kernel.destinations(server)
            found[1].update({each: state.weight for each, state in self._stood[server].items()})
        return found

    def _state(self, server: ServerId, destination: DestinationId, weight: int) -> DestinationState:
        stood = self._stood.get(server, {}).get(destination)
        if stood is None:
            return DestinationState(weight)
        is_written = (server, destination) in self._written
        forwarding = MASQUERADE if is_written else stood.forwarding
        return msgspec.structs.replace(stood, weight=weight, forwarding=forwarding)

    def _do(self, request: Request) -> int:
        code = super()._do(request)
        if not code and request.command in _WRITING and request.destination is not None:
            self._written.add((request.server, request.destination))
        return code


_WRITING = frozenset({Command.NEW_DEST, Command.SET_DEST})


class DryRunIpset(MemoryIpset):
    """Sets (implements Ipset). Those of types that kproxy does not use are only listed."""

    def __init__(self, kernel: Ipset) -> None:
        super().__init__()
        self._kernel = kernel
        self._before: dict[str, SetHeader] | None = None
        self._foreign: dict[str, SetHeader] = {}
        self._stood: dict[str, frozenset[Entry]] = {}

    def headers(self) -> dict[str, SetHeader]:
        """Every set by name. Raises IpsetError."""
        before = self._read()
        found = dict(self._foreign)
        for name, header in super().headers().items():
            is_unread = name in before and name not in self._stood
            found[name] = before[name] if is_unread else header
        return found

    def destroy(self, name: str) -> None:
        """Record the deletion of a set."""
        self._read()
        self._foreign.pop(name, None)
        super().destroy(name)

    def changes(self) -> Iterator[Change]:
        """The changes, one per set."""
        before, headers = self._before or {}, self.headers()
        for name in before.keys() | headers.keys():
            if name not in headers:
                yield Change(f"set {name}", Sign.REMOVE, _entries(before[name].entries))
                continue
            _, now = self.sets.get(name, (None, set()))
            if name not in before:
                yield Change(f"set {name}", Sign.ADD, f"{headers[name].type}, {_entries(len(now))}")
            elif name in self._stood and now != self._stood[name]:
                lacks, extra = len(now - self._stood[name]), len(self._stood[name] - now)
                yield Change(
                    f"set {name}", Sign.CHANGE, f"lacks {_entries(lacks)} and has {extra} not wanted"
                )

    def _read(self) -> Mapping[str, SetHeader]:
        if self._before is None:
            self._before = self._kernel.headers()
            for name, header in self._before.items():
                if header.family is not None and header.type in _KINDS:
                    self.sets[name] = (SetSpec(name, SetKind(header.type), header.family), set())
                else:
                    self._foreign[name] = header
        return self._before

    def _find(self, name: str) -> tuple[SetSpec, set[Entry]] | None:
        before = self._read()
        found = super()._find(name)
        if found is not None and name in before and name not in self._stood:
            self._stood[name] = self._kernel.entries(found[0])
            found[1].update(self._stood[name])
        return found


_KINDS = frozenset(SetKind)


class DryRunDevice(MemoryDevice):
    """The device with its addresses (implements AddressDevice). `exists`: the kernel has it now."""

    def __init__(self, kernel: AddressDevice, *, exists: bool) -> None:
        super().__init__(kernel.name)
        self._kernel = kernel
        self._existed = exists
        self._stood: dict[Family, frozenset[str]] = {}
        if exists:
            self.held = set()

    def delete(self) -> None:
        """Record the deletion of the device with its addresses."""
        for family in Family:
            self._read(family)
        super().delete()

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family. Raises DeviceError."""
        self._read(family)
        return super().addresses(family)

    def changes(self) -> Iterator[Change]:
        """The changes: of the device, and one per address."""
        exists = self.held is not None
        if exists != self._existed:
            yield Change(f"device {self.name}", Sign.ADD if exists else Sign.REMOVE)
        for family, stood in self._stood.items():
            now = super().addresses(family)
            for ip in now ^ stood:
                sign = Sign.ADD if ip in now else Sign.REMOVE
                yield Change(f"address {ip} on {self.name}", sign)

    def _each(self, addresses: Iterable[str], change: Callable[[str], None]) -> Mapping[str, int]:
        changing = list(addresses)
        for family in {family_of(ip) for ip in changing}:
            self._read(family)
        return super()._each(changing, change)

    def _read(self, family: Family) -> None:
        if family not in self._stood:
            self._stood[family] = self._kernel.addresses(family) if self._existed else frozenset()
            if self.held is not None:
                self.held |= self._stood[family]


def _words(settings: VirtualServer) -> str:
    sticky = f", affinity {settings.timeout} s" if settings.flags & PERSISTENT else ""
    flags = settings.flags & ~PERSISTENT
    return f"{settings.scheduler}{f' flags {flags:#x}' if flags else ''}{sticky}"


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")
