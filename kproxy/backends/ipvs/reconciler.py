"""Reconcile virtual servers, sets and the device's addresses; send only differences.

A sync has three steps, so that rules can be written between them: `prepare` adds set entries, `serve` makes
virtual servers and then the addresses that lead packets to them, `tidy` removes what no service needs any
more. A service whose request the kernel refuses is quarantined and retried later; the others are applied.
The record of the kernel is in applied_state.py.
"""

import errno
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from kproxy.addresses import Family
from kproxy.backends.ipvs.applied_state import AppliedState
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.holds import AddressHolds
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.record import describe, entry_kind, objects_of
from kproxy.backends.ipvs.refusals import Refusals
from kproxy.backends.ipvs.render import Frontend, Member, ServiceObjects
from kproxy.kernel.ipset.codec import reason as set_reason
from kproxy.kernel.ipset.types import Entry, EntryChange
from kproxy.kernel.ipvs.types import Command, Request, ServerId, reason

_GONE = frozenset({errno.ENOENT, errno.ESRCH})
_DELETIONS = frozenset({Command.DEL_SERVICE, Command.DEL_DEST})


class IpvsReconciler:
    """One family's virtual servers, sets and addresses.

    Every method that accesses the kernel may raise IpvsError, IpsetError or DeviceError. Then `known.fail()`
    must be called, because the record is stale. Leftovers in `refusals` are tried again by every sync,
    services after `retry()`. `withdraws`: see AddressHolds.
    """

    def __init__(
        self,
        family: Family,
        kernel: KernelHandles,
        draining: Draining,
        excluded: Collection[str] = (),
        *,
        withdraws: bool = True,
    ) -> None:
        self.desired = Desired()
        self.known = AppliedState(family, kernel, self.desired, excluded)
        self.refusals = Refusals(family, self.desired)
        self._kernel = kernel
        self._draining = draining
        self._sets = sets(family)
        self.holds = AddressHolds(family, kernel.ipvs, self.desired, draining, withdraws=withdraws)

    def want(self, key: str, objects: ServiceObjects) -> None:
        """Replace the desired objects of a service."""
        if self.desired.put(key, objects):
            self.refusals.services.pop(key, None)

    def retry(self) -> None:
        """Make the next sync retry refused requests."""
        self.refusals.retry()
        self.known.retry()

    def look(self, *, device: bool = True) -> bool:
        """Read the kernel if the record is stale; True if it was read. See AppliedState.look for `device`."""
        self.refusals.leftovers.clear()
        if not self.known.look(device=device):
            return False
        servers = self.known.record.servers
        self._draining.recall({server: each.destinations for server, each in servers.items()})
        return True

    def prepare(self, written: Counter[str]) -> None:
        """Add entries to sets."""
        desired, record = self.desired, self.known.record
        changes = [
            EntryChange(spec, entry, add=True)
            for spec, entry in self._pending_members()
            if desired.wants_member((spec, entry))
            and entry not in record.members.get(spec, ())
            and not self._is_foreign((spec, entry))
        ]
        changes += [
            EntryChange(self.holds.relisted(server), _entry(server), add=True)
            for server in sorted(desired.servers)
            if server in record.servers and desired.owner(server) is None and not self._is_listed(server)
        ]
        self._change_sets(changes, written)

    def serve(self, written: Counter[str]) -> None:
        """Create, change and remove virtual servers and destinations; then add addresses."""
        record = self.known.record
        requests: list[Request] = []
        self.holds.touch_given_up(record)
        for server in sorted(self.desired.servers):
            owner = self.desired.owner(server)
            if owner in self.refusals.services:
                continue
            if owner is not None and server in record.foreign:
                self.refusals.refuse([owner], f"{describe(server)}: {_IN_THE_WAY}")
                continue
            requests += self._requests(server, self.desired.frontend(server))
        # A server that another program has just made must get no destinations: create all servers first.
        self._send([r for r in requests if r.command is Command.NEW_SERVICE], written)
        rest = [r for r in requests if r.command is not Command.NEW_SERVICE and r.server in record.servers]
        self._send(rest, written)
        self._add_addresses(written)

    def tidy(self, written: Counter[str]) -> None:
        """Remove addresses and set entries that are not needed."""
        desired, record = self.desired, self.known.record
        unwanted = [ip for ip in desired.addresses & record.addresses if not desired.wants_address(ip)]
        unused = sorted(set(unwanted) - self.holds.needed(record, unwanted))
        if unused:
            with self.known.risking(f"address {ip}" for ip in unused):
                failures = self._kernel.device.remove(unused)
            for ip in unused:
                if ip not in failures:
                    record.addresses.discard(ip)
                    desired.members.add((self._sets.addresses, Entry(ip)))
            written["addresses_removed"] += len(unused) - len(failures)
            for ip, code in failures.items():
                message = f"address {ip} on {self._kernel.device.name}: {_word(code)}"
                self.refusals.check_current(message)
                self.refusals.add_leftover(ip, message)
        self._list_draining(written)
        # A virtual server may have been listed elsewhere while it drained.
        listing = (*self._sets.owned_servers, self._sets.draining)
        desired.members.update((spec, _entry(server)) for server in desired.servers for spec in listing)
        removals = [
            EntryChange(spec, entry, add=False)
            for spec, entry in self._pending_members()
            if entry in record.members.get(spec, ())
            and (not desired.wants_member((spec, entry)) or self._is_foreign((spec, entry)))
            and not self._still_needed((spec, entry))
        ]
        self._change_sets(removals, written)
        self._forget_pending()

    def _list_draining(self, written: Counter[str]) -> None:
        """Add draining virtual servers to their set, so that new connections may reach the node's sockets."""
        if not self.holds.withdraws:
            return
        desired, record = self.desired, self.known.record
        listed = record.members.get(self._sets.draining, set())
        changes = [
            EntryChange(self._sets.draining, _entry(server), add=True)
            for server in sorted(desired.servers)
            if server in record.servers and desired.owner(server) is None and _entry(server) not in listed
        ]
        self._change_sets(changes, written)

    def drain(self) -> bool:
        """Check the connections of draining destinations; True if a sync has something to remove."""
        ended = self._draining.look(self._kernel.ipvs)
        self.desired.servers |= ended
        return bool(ended)

    def _pending_members(self) -> Iterator[Member]:
        return iter(sorted(self.desired.members))

    def _still_needed(self, member: Member) -> bool:
        """Whether an entry that no service wants belongs to a virtual server or address that still exists."""
        spec, entry = member
        record = self.known.record
        if spec == self._sets.addresses:
            return entry.ip in record.addresses
        if spec != self._sets.draining and spec not in self._sets.owned_servers:
            return False
        server = _server(entry)
        return server in record.servers and self.desired.owner(server) is None

    def _is_listed(self, server: ServerId) -> bool:
        """Whether the sets list a virtual server as kproxy's."""
        members = self.known.record.members
        return any(_entry(server) in members.get(spec, ()) for spec in self._sets.owned_servers)

    def _requests(self, server: ServerId, frontend: Frontend | None) -> Iterator[Request]:
        """The requests that bring one virtual server to its desired state, additions first."""
        record = self.known.record.servers.get(server)
        wanted = dict(frontend.destinations) if frontend is not None and frontend.server is not None else {}
        settings = frontend.server if frontend is not None else None
        if record is None:
            if settings is None:
                return
            yield Request(Command.NEW_SERVICE, server, settings)
        elif settings is not None and settings != record.settings:
            yield Request(Command.SET_SERVICE, server, settings)
        standing = record.destinations if record is not None else {}
        # Destinations of weight 0 come last, so that there is always one that takes connections.
        for destination, weight in sorted(wanted.items(), key=lambda item: not item[1]):
            self._draining.forget(server, destination)
            if destination not in standing:
                yield Request(Command.NEW_DEST, server, destination=destination, weight=weight)
            elif standing[destination] != weight:
                yield Request(Command.SET_DEST, server, destination=destination, weight=weight)
        leaving = [destination for destination in standing if destination not in wanted]
        kept = self.holds.kept(self.known.record, server, leaving)
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
        record, desired = self.known.record, self.desired
        with self.known.risking(name for request in requests for name in objects_of(request)):
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
            self._add_refusal(desired.owner(request.server), request, code)

    def _leave_alone(self, server: ServerId) -> None:
        """Record a virtual server that another program made since the last read, and remove it from sets."""
        desired, owner = self.desired, self.desired.owner(server)
        self.known.leave_alone(server)
        desired.members.update((spec, _entry(server)) for spec in self._sets.owned_servers)
        if owner is not None:
            self.refusals.refuse([owner], f"{describe(server)}: {_IN_THE_WAY}")

    def _is_foreign(self, member: Member) -> bool:
        """Whether an entry would list a foreign virtual server as kproxy's."""
        spec, entry = member
        return spec in self._sets.owned_servers and _server(entry) in self.known.record.foreign

    def _release(self, server: ServerId) -> None:
        """Mark the address and the entries of a deleted virtual server as pending."""
        self.desired.addresses.add(server.ip)
        self.desired.members.update((spec, _entry(server)) for spec in self._sets.owned_servers)

    def _add_addresses(self, written: Counter[str]) -> None:
        desired, record = self.desired, self.known.record
        wanted = set(filter(desired.wants_address, desired.addresses | self.known.lost))
        missing = sorted((wanted | self.holds.needed(record, self.known.lost)) - record.addresses)
        if not missing:
            return
        with self.known.risking(f"address {ip}" for ip in missing):
            failures = self._kernel.device.add(missing)
        record.addresses.update(ip for ip in missing if ip not in failures)
        self.known.lost -= record.addresses
        written["addresses"] += len(missing) - len(failures)
        for ip, code in failures.items():
            self.refusals.check_current(f"address {ip}: {_word(code)}")
            self.refusals.refuse(
                desired.wanting_address(ip), f"address {ip} on {self._kernel.device.name}: {_word(code)}"
            )

    def _change_sets(self, changes: Sequence[EntryChange], written: Counter[str]) -> None:
        if not changes:
            return
        record = self.known.record
        with self.known.risking(f"{entry_kind(change.set)} {change.entry}" for change in changes):
            failures = self._kernel.ipset.apply(changes)
        for index, change in enumerate(changes):
            if index not in failures:
                record.entry_done(change)
        for index, code in failures.items():
            change = changes[index]
            message = f"set {change.set.name}, entry {change.entry}: {set_reason(code)}"
            self.refusals.check_current(message)
            if not change.add:
                self.refusals.add_leftover((change.set, change.entry), message)
                continue
            self.refusals.refuse(self.desired.wanting_member((change.set, change.entry)), message)
        written["set_entries"] += len(changes) - len(failures)

    def _add_refusal(self, owner: str | None, request: Request, code: int) -> None:
        message = f"{request.command.name} {describe(request.server)}"
        if request.destination is not None:
            message += f" -> {request.destination.ip} port {request.destination.port}"
        message += f": {reason(request.command, code)}"
        self.refusals.check_current(message)
        if owner is not None:
            self.refusals.refuse([owner], message)
        else:
            self.refusals.add_leftover(request.server, message)

    def _forget_pending(self) -> None:
        desired = self.desired
        desired.servers.clear()
        desired.members.clear()
        desired.addresses.clear()
        self.known.lost.clear()
        self.refusals.touch()


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
