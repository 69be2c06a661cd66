"""Models in memory of IPVS, ipset and the dummy device, which refuse what the kernel refuses.

Dry runs and tests use them: a dry run fills them from the kernel, tests inject faults. A differential test
compares them with a real kernel.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address

from kproxy.addresses import Family
from kproxy.kernel.addresses import DeviceMissing
from kproxy.kernel.ipset.types import (
    MAX_ELEMENTS,
    Entry,
    EntryChange,
    IpsetError,
    SetHeader,
    SetKind,
    SetSpec,
)
from kproxy.kernel.ipvs.types import (
    Command,
    DestinationId,
    DestinationState,
    Request,
    ServerId,
    VirtualServer,
)


class MemoryIpvs:
    """Virtual servers of both families: `table` maps each to its settings and its destinations' weights."""

    def __init__(self) -> None:
        self.table: dict[ServerId, tuple[VirtualServer, dict[DestinationId, int]]] = {}
        self.local_marks: set[tuple[Family, int]] = set()

    def apply(self, requests: Sequence[Request]) -> Mapping[int, int]:
        """Carry out each request; return the errno of each that the kernel would refuse, by its index."""
        codes = {index: self._do(request) for index, request in enumerate(requests)}
        return {index: code for index, code in codes.items() if code}

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """The virtual servers of a family."""
        return {server: settings for server, (settings, _) in self.table.items() if server.family is family}

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of a virtual server; none if it does not exist."""
        _, standing = self._find(server) or (None, {})
        return {each: self._state(server, each, weight) for each, weight in standing.items()}

    def marks(self, family: Family) -> frozenset[int]:
        """The firewall marks that lead to the node itself."""
        return frozenset(mark for of, mark in self.local_marks if of is family)

    def add_local_mark(self, family: Family, mark: int, scheduler: str) -> bool:  # noqa: ARG002
        """Add a virtual server of a mark; False if it exists."""
        is_new = mark not in self.marks(family)
        if is_new:
            self.local_marks.add((family, mark))
        return is_new

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Remove the virtual server of a mark."""
        self.local_marks.discard((family, mark))

    def _find(self, server: ServerId) -> tuple[VirtualServer, dict[DestinationId, int]] | None:
        return self.table.get(server)

    def _state(self, server: ServerId, destination: DestinationId, weight: int) -> DestinationState:  # noqa: ARG002
        return DestinationState(weight)

    def _offers(self, scheduler: str) -> bool:  # noqa: ARG002
        return True

    def _do(self, request: Request) -> int:
        """Execute a request as ip_vs_ctl.c does, and return its errno."""
        command, settings = request.command, request.settings
        if command in _SETTING and (settings is None or len(settings.scheduler) > _SCHEDULER_NAME_MAX):
            return errno.EINVAL
        found = self._find(request.server)
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
        if settings is None or not self._offers(settings.scheduler):
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


class MemoryIpset:
    """Sets: `sets` maps each name to its specification and entries. `limit`: entries that fit in a set."""

    limit = MAX_ELEMENTS

    def __init__(self) -> None:
        self.sets: dict[str, tuple[SetSpec, set[Entry]]] = {}

    def headers(self) -> dict[str, SetHeader]:
        """Every set by name."""
        return {
            name: SetHeader(name, spec.kind, spec.family, self.limit, len(entries), 0)
            for name, (spec, entries) in self.sets.items()
        }

    def create(self, spec: SetSpec) -> None:
        """Create a set if it does not exist. Raises IpsetError if it exists with other properties."""
        found = self._find(spec.name)
        if found is None:
            self.sets[spec.name] = (spec, set())
        else:
            _check("create", spec, found[0])

    def destroy(self, name: str) -> None:
        """Destroy a set."""
        self.sets.pop(name, None)

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """The entries of a set; none if it does not exist. Raises IpsetError for another kind of set."""
        found = self._find(spec.name)
        if found is None:
            return frozenset()
        _check("list", spec, found[0])
        return frozenset(found[1])

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Carry out each change; return the error code of each that the kernel would refuse, by its index."""
        codes = {index: self._do(change) for index, change in enumerate(changes)}
        return {index: code for index, code in codes.items() if code}

    def _find(self, name: str) -> tuple[SetSpec, set[Entry]] | None:
        return self.sets.get(name)

    def _do(self, change: EntryChange) -> int:
        """Apply a change as ip_set_hash_*.c do, and return their error code."""
        found = self._find(change.set.name)
        if found is None:
            return errno.ENOENT
        spec, entries = found
        entry = change.entry
        if change.set != spec:
            return _ERR_PROTOCOL
        if spec.kind is SetKind.IP and ip_address(entry.ip).is_unspecified:
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


def _check(what: str, spec: SetSpec, found: SetSpec) -> None:
    if found != spec:
        raise IpsetError(f"ipset: cannot {what} set {spec.name}: it exists as {found.kind} of {found.family}")


class MemoryDevice:
    """The device and its addresses in `held`; None while it does not exist."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: set[str] | None = None

    def ensure(self) -> bool:
        """Create the device if it does not exist; return whether it was created."""
        is_new = self.held is None
        if self.held is None:
            self.held = set()
        return is_new

    def delete(self) -> None:
        """Delete it with its addresses."""
        self.held = None

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family."""
        return frozenset(ip for ip in self.held or () if family_of(ip) is family)

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Add each address; return the errno of each refused one. Raises DeviceMissing."""
        adding = list(wanted)
        if not adding:
            return {}
        if self.held is None:
            raise DeviceMissing(f"there is no interface {self.name}")
        return self._each(adding, self.held.add)

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Remove each address; return the errno of each refused one."""
        return self._each(wanted, (self.held or set()).discard)

    def _each(self, addresses: Iterable[str], change: Callable[[str], None]) -> Mapping[str, int]:
        for ip in addresses:
            change(ip)
        return {}


def family_of(ip: str) -> Family:
    """The family of an address."""
    return Family.IPV6 if ":" in ip else Family.IPV4
