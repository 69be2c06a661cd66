"""The record of kproxy's IPVS objects in the kernel, and how they are distinguished from foreign ones.

IPVS does not store who made a virtual server. kproxy's are those that the sets list and those whose address
the device holds. Both are added before the virtual server and removed after it, so a crash at any moment
neither loses a virtual server nor claims a foreign one.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from kproxy.addresses import Family, cidr_contains
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.names import KUBE_PROXY_SETS, kube_proxy_servers, sets
from kproxy.kernel.ipset.types import Entry, EntryChange, SetSpec
from kproxy.kernel.ipvs.types import (
    MASQUERADE,
    Command,
    DestinationId,
    Request,
    ServerId,
    VirtualServer,
)

_NOT_MASQUERADED = -1
"""The recorded weight of a destination with another forwarding method: it differs from any desired weight."""


class ServerRecord:
    """One virtual server of kproxy: its settings, and the weight of each destination."""

    def __init__(self, settings: VirtualServer, destinations: dict[DestinationId, int]) -> None:
        self.settings = settings
        self.destinations = destinations


class KernelRecord:
    """The objects of one family in the kernel. `foreign`: virtual servers of other programs."""

    def __init__(self) -> None:
        self.servers: dict[ServerId, ServerRecord] = {}
        self.foreign: set[ServerId] = set()
        self.members: dict[SetSpec, set[Entry]] = {}
        self.addresses: set[str] = set()
        self._servers_at: Counter[str] = Counter()

    def hold(self, server: ServerId, settings: VirtualServer, destinations: dict[DestinationId, int]) -> None:
        """Record a virtual server of kproxy."""
        if server not in self.servers:
            self._servers_at[server.ip] += 1
        self.servers[server] = ServerRecord(settings, destinations)

    def serves_at(self, ip: str) -> bool:
        """Whether any virtual server has the address."""
        return self._servers_at[ip] > 0

    def done(self, request: Request) -> None:
        """Record a request that the kernel has applied."""
        command, server = request.command, request.server
        if command is Command.NEW_SERVICE:
            assert request.settings is not None  # noqa: S101 - goes with the command
            self.hold(server, request.settings, {})
        elif command is Command.DEL_SERVICE:
            if self.servers.pop(server, None) is not None:
                self._servers_at[server.ip] -= 1
        elif command is Command.SET_SERVICE:
            assert request.settings is not None  # noqa: S101
            self.servers[server].settings = request.settings
        else:
            destination = request.destination
            assert destination is not None  # noqa: S101
            if command is Command.DEL_DEST:
                self.servers[server].destinations.pop(destination, None)
            else:
                self.servers[server].destinations[destination] = request.weight

    def entry_done(self, change: EntryChange) -> None:
        """Record a change of a set that the kernel has applied."""
        entries = self.members.setdefault(change.set, set())
        if change.add:
            entries.add(change.entry)
        else:
            entries.discard(change.entry)


def observe(
    family: Family,
    kernel: KernelHandles,
    excluded: Collection[str],
    made: Collection[ServerId],
    theirs: Collection[ServerId],
    wanted: Callable[[ServerId], bool],
    *,
    details_of: Callable[[ServerId], bool] = lambda _: True,
    trusted: KernelRecord | None = None,
    addresses: Collection[str] | None = None,
) -> KernelRecord:
    """Read the kernel. Raises IpvsError, IpsetError or DeviceError.

    `made`: virtual servers that kproxy made; `theirs`: foreign ones; both take precedence over the sets.
    A virtual server in one of the `excluded` CIDRs counts as foreign unless it is `wanted`. If sets of
    kube-proxy's IPVS mode exist, all virtual servers are its own, because it removes foreign ones.
    Destinations are read only for servers with `details_of`; others are recorded without. A set with as many
    entries as in the `trusted` record is assumed to be equal; `addresses`, if not None, replaces reading
    the device.
    """
    ipvs, ipset, device = kernel.ipvs, kernel.ipset, kernel.device
    record = KernelRecord()
    headers = ipset.headers()
    for spec in sets(family).all:
        if spec.name not in headers:
            continue
        known = trusted.members.get(spec) if trusted is not None else None
        if known is not None and len(known) == headers[spec.name].entries:
            record.members[spec] = known
        else:
            record.members[spec] = set(ipset.entries(spec))
    record.addresses = set(device.addresses(family) if addresses is None else addresses)
    kube_proxy = not KUBE_PROXY_SETS[family].isdisjoint(headers)
    entries = [entry for spec in sets(family).owned_servers for entry in record.members.get(spec, ())]
    for spec in kube_proxy_servers(family):
        if spec.name in headers and headers[spec.name].type == spec.kind:
            entries += ipset.entries(spec)
    listed = {ServerId(entry.protocol, entry.ip, entry.port) for entry in entries}
    for server, settings in ipvs.servers(family).items():
        owned = kube_proxy or server in listed or server in made or server.ip in record.addresses
        owned = owned and server not in theirs
        if owned and not wanted(server) and _is_in(server.ip, excluded):
            owned = False
        if not owned:
            record.foreign.add(server)
            continue
        states = ipvs.destinations(server) if details_of(server) else {}
        destinations = {
            destination: state.weight if state.forwarding == MASQUERADE else _NOT_MASQUERADED
            for destination, state in states.items()
        }
        record.hold(server, settings, destinations)
    return record


def differences(
    expected: KernelRecord, found: KernelRecord, details_of: Callable[[ServerId], bool] = lambda _: True
) -> tuple[Drift, ...]:
    """Name every object that differs between the two records."""
    drifts: list[Drift] = []
    if expected.addresses != found.addresses:
        drifts += membership("address", expected.addresses, found.addresses)
    for spec in expected.members.keys() | found.members.keys():
        if spec not in found.members:
            drifts.append(Drift("set", spec.name, Difference.MISSING))
            continue
        entries = expected.members.get(spec, set())
        if entries != found.members[spec]:
            drifts += membership(entry_kind(spec), entries, found.members[spec])
    if expected.servers.keys() != found.servers.keys():
        drifts += membership("virtual server", map(describe, expected.servers), map(describe, found.servers))
    for server, known in expected.servers.items():
        actual = found.servers.get(server)
        if actual is None:
            continue
        if actual.settings != known.settings:
            detail = f"has {actual.settings}"
            drifts.append(Drift("virtual server", describe(server), Difference.MODIFIED, detail))
        if not details_of(server):
            continue
        for destination in known.destinations.keys() | actual.destinations.keys():
            name = _destination(server, destination)
            weight = actual.destinations.get(destination)
            if weight is None:
                drifts.append(Drift("destination", name, Difference.MISSING))
            elif destination not in known.destinations:
                drifts.append(Drift("destination", name, Difference.UNEXPECTED))
            elif weight != known.destinations[destination]:
                drifts.append(Drift("destination", name, Difference.MODIFIED, f"has weight {weight}"))
    return tuple(sorted(drifts))


def describe(server: ServerId) -> str:
    """A virtual server as text: protocol, address and port."""
    return f"{server.protocol} {server.ip} port {server.port}"


def objects_of(request: Request) -> tuple[str, ...]:
    """The names in drifts of the objects that a request changes."""
    if request.destination is None:
        return (server_object(request.server),)
    return (destination_object(request.server, request.destination),)


def server_object(server: ServerId) -> str:
    """The name of a virtual server in drifts."""
    return f"virtual server {describe(server)}"


def destination_object(server: ServerId, destination: DestinationId) -> str:
    """The name of a destination in drifts."""
    return f"destination {_destination(server, destination)}"


def _destination(server: ServerId, destination: DestinationId) -> str:
    return f"{describe(server)} -> {destination.ip} port {destination.port}"


def entry_kind(spec: SetSpec) -> str:
    """The kind of a set's entries in drifts; the entry follows it."""
    return f"set {spec.name} entry"


def entry_object(spec: SetSpec, entry: Entry) -> str:
    """The name of a set's entry in drifts."""
    return f"{entry_kind(spec)} {entry}"


def membership(kind: str, expected: Iterable[object], found: Iterable[object]) -> list[Drift]:
    """Return drifts for names that are in only one of two collections."""
    wanted, actual = set(map(str, expected)), set(map(str, found))
    return [Drift(kind, name, Difference.MISSING) for name in wanted - actual] + [
        Drift(kind, name, Difference.UNEXPECTED) for name in actual - wanted
    ]


def _is_in(ip: str, cidrs: Collection[str]) -> bool:
    return any(cidr_contains(cidr, ip) for cidr in cidrs)
