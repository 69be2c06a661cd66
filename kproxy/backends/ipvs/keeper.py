"""Keep virtual servers, sets and the device's addresses as wanted, sending only what differs.

The work of one sync has three steps, so that rules can be written between them: `prepare` adds what lets
packets through or stops them, `serve` makes virtual servers and then the addresses that lead packets to them,
`tidy` takes away what nothing needs any more. A service whose request the kernel refuses is put aside with
the reason and tried again later; all others get what they want.
"""

import errno
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.backends.base import Drift
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.record import (
    Record,
    describe,
    differences,
    entry_kind,
    membership,
    objects_of,
    observe,
)
from kproxy.backends.ipvs.render import Frontend, Member, ServiceObjects
from kproxy.kernel.addresses import AddressDevice, DeviceError
from kproxy.kernel.ipset.codec import reason as set_reason
from kproxy.kernel.ipset.types import Entry, EntryChange, Ipset, IpsetError
from kproxy.kernel.ipvs.types import (
    Command,
    Ipvs,
    IpvsError,
    Request,
    ServerId,
    reason,
)

log = structlog.stdlib.get_logger(__name__)

KERNEL_ERRORS = (IpvsError, IpsetError, DeviceError)
"""What the three parts of the kernel raise when they do not answer as they should."""

_GONE = frozenset({errno.ENOENT, errno.ESRCH})
_DELETIONS = frozenset({Command.DEL_SERVICE, Command.DEL_DEST})


class KernelHandles(msgspec.Struct, frozen=True):
    """The three parts of the kernel that the mode works on."""

    ipvs: Ipvs
    ipset: Ipset
    device: AddressDevice


class DoubtError(Exception):
    """The kernel refused what should have been possible: look at what it holds before judging."""


class Keeper:
    """One family's virtual servers, sets and addresses.

    `refused` says of services why the kernel did not take them; `stuck` of objects that nobody wants any more
    why they could not be removed. Both are tried again, the former after `retry()`.

    Every method that touches the kernel may raise IpvsError, IpsetError or DeviceError; `fail()` must then be
    called, for what is known of the kernel counts no more. `drifts` is what others were found to have changed
    since, by the last look.
    """

    def __init__(
        self, family: Family, kernel: KernelHandles, draining: Draining, excluded: Collection[str] = ()
    ) -> None:
        self.family = family
        self.desired = Desired()
        self.refused: dict[str, str] = {}
        self.stuck: dict[ServerId | Member | str, str] = {}
        self.excluded = tuple(excluded)
        self.believes_refusals = False
        self._kernel = kernel
        self._draining = draining
        self.drifts: tuple[Drift, ...] = ()
        self._record: Record | None = None
        self._doubted: Record | None = None
        self._unsure: set[str] = set()
        self._made: frozenset[ServerId] = frozenset()
        self._theirs: set[ServerId] = set()
        self._looks_for_foreign = False
        self._sets = sets(family)
        self._addresses_known = True
        self._device_known = False
        self._lost: set[str] = set()

    def want(self, key: str, objects: ServiceObjects) -> None:
        """Take what a service wants now."""
        if self.desired.put(key, objects):
            self.refused.pop(key, None)

    def doubt(self) -> None:
        """Forget what the kernel holds, but not which virtual servers are ours; the next sync reads it."""
        if self._record is not None:
            self._made = frozenset(self._record.servers)
        self._record = self._doubted = None

    def fail(self) -> None:
        """As `doubt`, but the next look names what is not as it was left; what was under way may be so."""
        record = self._record or self._doubted
        self.doubt()
        self._doubted = record

    def retry(self) -> None:
        """Let the next sync try again what was refused."""
        for key in self.refused:
            self.desired.touch_service(key)
        self.refused.clear()
        self._looks_for_foreign = True

    @property
    def idle(self) -> bool:
        """Whether nothing of ours is known to be in the kernel."""
        record = self._record
        return record is not None and not record.servers and not record.addresses

    def look(self, *, device: bool = True) -> bool:
        """Read the kernel if it is not known; True if it was read. Makes the sets and, if asked, a device."""
        kernel, record = self._kernel, self._record
        self.stuck.clear()
        self.drifts = ()
        if device and (record is None or not self._device_known):
            if kernel.device.ensure():
                log.info("device_created", device=kernel.device.name)
            self._device_known = True
        if record is not None:
            if record.foreign and self._looks_for_foreign:
                record.foreign &= kernel.ipvs.servers(self.family).keys()
                self._theirs &= record.foreign
            self._looks_for_foreign = False
            return False
        for spec in self._sets.all:
            kernel.ipset.create(spec)
        found = self._observe()
        if self._doubted is not None:
            drifts = differences(self._doubted, found)
            self.drifts = tuple(drift for drift in drifts if drift.object not in self._unsure)
        self._doubted = None
        self._unsure.clear()
        self._adopt(found)
        return True

    def prepare(self, written: Counter[str]) -> None:
        """Add entries to sets."""
        desired, record = self.desired, self._known()
        changes = [
            EntryChange(spec, entry, add=True)
            for spec, entry in self._pending_members()
            if desired.wants_member((spec, entry))
            and entry not in record.members.get(spec, ())
            and not self._is_foreign((spec, entry))
        ]
        changes += [
            EntryChange(self._sets.cluster_ip, _entry(server), add=True)
            for server in sorted(desired.servers)
            if server in record.servers and desired.owner(server) is None and not self._is_listed(server)
        ]
        self._change_sets(changes, written)

    def serve(self, written: Counter[str]) -> None:
        """Make, change and remove virtual servers and destinations; then add addresses."""
        record = self._known()
        requests: list[Request] = []
        for server in sorted(self.desired.servers):
            owner = self.desired.owner(server)
            if owner in self.refused:
                continue
            if owner is not None and server in record.foreign:
                self._refuse([owner], f"{describe(server)}: {_IN_THE_WAY}")
                continue
            requests += self._requests(server, self.desired.frontend(server))
        # One that somebody else has just made must not be given destinations: first see which are ours.
        self._send([r for r in requests if r.command is Command.NEW_SERVICE], written)
        rest = [r for r in requests if r.command is not Command.NEW_SERVICE and r.server in record.servers]
        self._send(rest, written)
        self._add_addresses(written)

    def tidy(self, written: Counter[str]) -> None:
        """Remove addresses and set entries that nothing needs."""
        desired, record = self.desired, self._known()
        unwanted = [ip for ip in desired.addresses & record.addresses if not desired.wants_address(ip)]
        unused = sorted(set(unwanted) - self._needed_to_drain(unwanted))
        if unused:
            with self._risking(f"address {ip}" for ip in unused):
                failures = self._kernel.device.remove(unused)
            for ip in unused:
                if ip not in failures:
                    record.addresses.discard(ip)
                    desired.members.add((self._sets.addresses, Entry(ip)))
            written["addresses_removed"] += len(unused) - len(failures)
            for ip, code in failures.items():
                told = f"address {ip} on {self._kernel.device.name}: {_word(code)}"
                self._doubt_once(told)
                self._stick(ip, told)
        # A virtual server may have been listed elsewhere while it drained.
        desired.members.update(
            (spec, _entry(server)) for server in desired.servers for spec in self._sets.ledger
        )
        removals = [
            EntryChange(spec, entry, add=False)
            for spec, entry in self._pending_members()
            if entry in record.members.get(spec, ())
            and (not desired.wants_member((spec, entry)) or self._is_foreign((spec, entry)))
            and not self._still_needed((spec, entry))
        ]
        self._change_sets(removals, written)
        self._forget_pending()

    def drain(self) -> bool:
        """Look at the connections of what drains; True if a sync has something to remove."""
        ended = self._draining.look(self._kernel.ipvs)
        self.desired.servers |= ended
        return bool(ended)

    def check(self, details_of: Callable[[ServerId], bool], *, thorough: bool) -> tuple[Drift, ...]:
        """Compare the kernel with the record; what differs is pending again.

        Destinations are compared of servers with `details_of` only, and unless `thorough`, sets by their size
        and addresses not at all, for news of those come at once.
        """
        expected = self._record
        if expected is None:
            return ()
        detailed = set(filter(details_of, expected.servers))
        found = self._observe(detailed.__contains__, None if thorough else expected)
        drifts = differences(expected, found, detailed.__contains__)
        if drifts:
            self.doubt()
        return drifts

    def compare_addresses(self, told: Mapping[str, bool] | None) -> tuple[Drift, ...]:
        """Compare the device's addresses with the record; what differs is pending again.

        `told` says of some whether the device has them, by news; nothing is read if that is as recorded.
        """
        record = self._record
        if record is None:
            return ()
        if told is not None and all((ip in record.addresses) is there for ip, there in told.items()):
            return ()
        self._addresses_known = False
        found = set(self._kernel.device.addresses(self.family))
        self._addresses_known = True
        changed = record.addresses ^ found
        self.desired.addresses |= changed
        self.desired.members.update((self._sets.addresses, Entry(ip)) for ip in changed)
        self._lost |= record.addresses - found
        drifts = membership("address", record.addresses, found)
        record.addresses = found
        self._device_known = self._device_known and not drifts
        return tuple(sorted(drifts))

    def _observe(
        self, details_of: Callable[[ServerId], bool] = lambda _: True, trusted: Record | None = None
    ) -> Record:
        kernel = self._kernel
        return observe(
            self.family,
            (kernel.ipvs, kernel.ipset, kernel.device),
            self.excluded,
            self._made,
            self._theirs,
            lambda server: self.desired.owner(server) is not None,
            details_of=details_of,
            trusted=trusted,
            addresses=trusted.addresses if trusted is not None and self._addresses_known else None,
        )

    def _adopt(self, record: Record) -> None:
        self._record = record
        self._draining.recall({server: each.destinations for server, each in record.servers.items()})
        desired = self.desired
        desired.touch_everything()
        desired.servers |= record.servers.keys()
        desired.addresses |= record.addresses
        desired.members.update((spec, entry) for spec, entries in record.members.items() for entry in entries)

    def _known(self) -> Record:
        assert self._record is not None, "look() comes first"  # noqa: S101
        return self._record

    def _pending_members(self) -> Iterator[Member]:
        return iter(sorted(self.desired.members))

    def _still_needed(self, member: Member) -> bool:
        """Whether an entry that no service wants tells of a virtual server or address that still stands."""
        spec, entry = member
        record = self._known()
        if spec == self._sets.addresses:
            return entry.ip in record.addresses
        if spec not in self._sets.ledger:
            return False
        server = _server(entry)
        return server in record.servers and self.desired.owner(server) is None

    def _needed_to_drain(self, ips: Iterable[str]) -> set[str]:
        """Those addresses at which a virtual server stands that nobody wants any more.

        One that is wanted, while its address is not, has that from another interface: it is the node's own.
        """
        record = self._known()
        serving = set(filter(record.serves_at, ips))
        if not serving:
            return serving
        return {s.ip for s in record.servers if s.ip in serving and self.desired.owner(s) is None}

    def _is_listed(self, server: ServerId) -> bool:
        """Whether the sets say that a virtual server is ours."""
        members = self._known().members
        return any(_entry(server) in members.get(spec, ()) for spec in self._sets.ledger)

    def _requests(self, server: ServerId, frontend: Frontend | None) -> Iterator[Request]:
        """What brings one virtual server to what is wanted of it, additions first."""
        record = self._known().servers.get(server)
        wanted = dict(frontend.destinations) if frontend is not None and frontend.server is not None else {}
        settings = frontend.server if frontend is not None else None
        if record is None:
            if settings is None:
                return
            yield Request(Command.NEW_SERVICE, server, settings)
        elif settings is not None and settings != record.settings:
            yield Request(Command.SET_SERVICE, server, settings)
        standing = record.destinations if record is not None else {}
        # Those that are to drain come last, so that there is always one that takes connections.
        for destination, weight in sorted(wanted.items(), key=lambda item: not item[1]):
            self._draining.forget(server, destination)
            if destination not in standing:
                yield Request(Command.NEW_DEST, server, destination=destination, weight=weight)
            elif standing[destination] != weight:
                yield Request(Command.SET_DEST, server, destination=destination, weight=weight)
        leaving = [destination for destination in standing if destination not in wanted]
        kept = [d for d in leaving if self._draining.keeps(server, d)]
        if settings is None and not kept:
            yield Request(Command.DEL_SERVICE, server)
            return
        for destination in leaving:
            if destination not in kept:
                yield Request(Command.DEL_DEST, server, destination=destination)
            elif standing[destination] != 0:
                yield Request(Command.SET_DEST, server, destination=destination, weight=0)

    def _send(self, requests: Sequence[Request], written: Counter[str]) -> None:
        if not requests:
            return
        record, desired = self._known(), self.desired
        with self._risking(name for request in requests for name in objects_of(request)):
            failures = self._kernel.ipvs.apply(requests)
        refused: list[tuple[Request, int]] = []
        for index, request in enumerate(requests):
            code = failures.get(index, 0)
            if code == errno.EEXIST and request.command is Command.NEW_SERVICE:
                self._leave_alone(request.server)
                continue
            if code and not (code in _GONE and request.command in _DELETIONS):
                refused.append((request, code))
                continue
            record.done(request)
            written[_COUNTED[request.command]] += 1
            if request.command is Command.DEL_DEST:
                self._draining.forget(request.server, request.destination)
            elif request.command is Command.DEL_SERVICE:
                self._draining.forget(request.server)
                self._release(request.server)
        for request, code in refused:  # once the record holds all that was done
            self._judge(desired.owner(request.server), request, code)

    def _leave_alone(self, server: ServerId) -> None:
        """Somebody has made a virtual server since we looked: it is theirs, and no set may say otherwise."""
        desired, owner = self.desired, self.desired.owner(server)
        self._known().foreign.add(server)
        self._theirs.add(server)
        desired.members.update((spec, _entry(server)) for spec in self._sets.ledger)
        if owner is not None:
            self._refuse([owner], f"{describe(server)}: {_IN_THE_WAY}")

    def _is_foreign(self, member: Member) -> bool:
        """Whether an entry would claim a virtual server that somebody else made."""
        spec, entry = member
        return spec in self._sets.ledger and _server(entry) in self._known().foreign

    def _release(self, server: ServerId) -> None:
        """With a virtual server gone, its address and its entries may go too."""
        self.desired.addresses.add(server.ip)
        self.desired.members.update((spec, _entry(server)) for spec in self._sets.ledger)

    def _add_addresses(self, written: Counter[str]) -> None:
        desired, record = self.desired, self._known()
        wanted = set(filter(desired.wants_address, desired.addresses | self._lost))
        missing = sorted((wanted | self._needed_to_drain(self._lost)) - record.addresses)
        if not missing:
            return
        with self._risking(f"address {ip}" for ip in missing):
            failures = self._kernel.device.add(missing)
        record.addresses.update(ip for ip in missing if ip not in failures)
        self._lost -= record.addresses
        written["addresses"] += len(missing) - len(failures)
        for ip, code in failures.items():
            self._doubt_once(f"address {ip}: {_word(code)}")
            self._refuse(
                desired.wanting_address(ip), f"address {ip} on {self._kernel.device.name}: {_word(code)}"
            )

    def _change_sets(self, changes: Sequence[EntryChange], written: Counter[str]) -> None:
        if not changes:
            return
        record = self._known()
        with self._risking(f"{entry_kind(change.set)} {change.entry}" for change in changes):
            failures = self._kernel.ipset.apply(changes)
        for index, change in enumerate(changes):
            if index not in failures:
                record.entry_done(change)
        for index, code in failures.items():
            change = changes[index]
            told = f"set {change.set.name}, entry {change.entry}: {set_reason(code)}"
            self._doubt_once(told)
            if not change.add:
                self._stick((change.set, change.entry), told)
                continue
            self._refuse(self.desired.wanting_member((change.set, change.entry)), told)
        written["set_entries"] += len(changes) - len(failures)

    @contextmanager
    def _risking(self, objects: Iterable[str]) -> Iterator[None]:
        """Let the kernel change objects; if it does not tell what came of it, they may be in either state."""
        try:
            yield
        except KERNEL_ERRORS:
            self._unsure.update(objects)
            raise

    def _judge(self, owner: str | None, request: Request, code: int) -> None:
        told = f"{request.command.name} {describe(request.server)}"
        if request.destination is not None:
            told += f" -> {request.destination.ip} port {request.destination.port}"
        told += f": {reason(request.command, code)}"
        self._doubt_once(told)
        if owner is not None:
            self._refuse([owner], told)
        else:
            self._stick(request.server, told)

    def _doubt_once(self, told: str) -> None:
        if not self.believes_refusals:
            raise DoubtError(told)

    def _refuse(self, keys: Collection[str] | Iterator[str], told: str) -> None:
        for key in keys:
            if key not in self.refused:
                self.refused[key] = told
                log.error("service_refused", family=self.family.value, service=key, reason=told)

    def _stick(self, what: ServerId | Member | str, told: str) -> None:
        """What nobody wants could not be removed: no service is to blame, but it must not be forgotten."""
        self.stuck[what] = told
        log.error("removal_refused", family=self.family.value, reason=told)

    def _forget_pending(self) -> None:
        desired = self.desired
        desired.servers.clear()
        desired.members.clear()
        desired.addresses.clear()
        self._lost.clear()
        for key in self.refused:
            desired.touch_service(key)
        for what in self.stuck:
            if isinstance(what, ServerId):
                desired.servers.add(what)
            elif isinstance(what, str):
                desired.addresses.add(what)
            else:
                desired.members.add(what)


_IN_THE_WAY = "a virtual server that kproxy did not make is there"

_COUNTED = {
    Command.NEW_SERVICE: "servers",
    Command.SET_SERVICE: "servers",
    Command.DEL_SERVICE: "servers_removed",
    Command.NEW_DEST: "destinations",
    Command.SET_DEST: "destinations",
    Command.DEL_DEST: "destinations_removed",
}


def _entry(server: ServerId) -> Entry:
    return Entry(server.ip, server.protocol, server.port)


def _server(entry: Entry) -> ServerId:
    return ServerId(entry.protocol, entry.ip, entry.port)


def _word(code: int) -> str:
    return errno.errorcode.get(code, str(code))
