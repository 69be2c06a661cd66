"""The virtual servers, sets and device addresses of one family, as operations of the reconciler.

A sync has three steps, so that rules can be written between them: `prepare` adds set entries, `serve` makes
virtual servers and then the addresses that lead packets to them, `tidy` removes what no service needs any
more. The kernel answers each request by itself, so no refusal has to be searched for. The record of the
kernel is in applied_state.py.
"""

import errno
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.core.work import Changes, Comparison, DesiredChange, Failure, Observation, SyncWork
from kproxy.backends.ipvs.applied_state import AppliedState
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.holds import AddressHolds
from kproxy.backends.ipvs.leftovers import RefusedRemovals
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.record import describe, entry_object, objects_of
from kproxy.backends.ipvs.render import Frontend, Member
from kproxy.kernel.addresses import DeviceMissing
from kproxy.kernel.ipset.codec import reason as set_reason
from kproxy.kernel.ipset.types import Entry, EntryChange
from kproxy.kernel.ipvs.types import Command, Request, ServerId, reason
from kproxy.plan.model import ServicePlan

_GONE = frozenset({errno.ENOENT, errno.ESRCH})
_DELETIONS = frozenset({Command.DEL_SERVICE, Command.DEL_DEST})


class VirtualServers:
    """One family's virtual servers, sets and addresses.

    `desired` is filled by the owner. `device`: the device is made if it is missing. `withdraws`: see
    AddressHolds.
    """

    errors: tuple[type[Exception], ...] = KERNEL_ERRORS
    degraded: Mapping[str, str] = {}

    def __init__(
        self,
        family: Family,
        kernel: KernelHandles,
        draining: Draining,
        excluded: Collection[str] = (),
        *,
        device: bool = True,
        withdraws: bool = True,
    ) -> None:
        self.desired = Desired()
        self.known = AppliedState(family, kernel, self.desired, excluded, device=device)
        self._kernel = kernel
        self._draining = draining
        self._sets = sets(family)
        self._left = RefusedRemovals(self.desired)
        self._refused: set[str] = set()
        self._held: set[str] = set()
        self.holds = AddressHolds(family, kernel.ipvs, self.desired, draining, withdraws=withdraws)

    def explain(self, error: Exception) -> Failure:
        """After any error it is unknown what was applied."""
        return Failure(str(error))

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:  # noqa: ARG002
        """Nothing changes: the owner fills `desired`."""
        return DesiredChange(())

    def foreign_writes(self) -> None:
        """The kernel does not count changes of virtual servers."""

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:  # noqa: ARG002 - nothing is written
        """Read the kernel; all desired objects are pending then."""
        drifts = self.known.observe(compare=compare)
        servers = self.known.record.servers
        self._draining.recall({server: each.destinations for server, each in servers.items()})
        self._left.clear()
        return Observation(self.desired.services.keys(), drifts)

    def apply(self, work: SyncWork, keys: Sequence[str]) -> tuple[str, ...]:
        """Write all pending objects, except those of services that are held."""
        self.prepare(work, keys)
        self.serve(work)
        return ()

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        """Remove what no service needs; return what the kernel would not remove."""
        return self.tidy(work)

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:  # noqa: ARG002
        """Nothing is compared."""
        return None

    def refresh(self) -> None:
        """Check whether foreign virtual servers still exist, before the next `prepare`."""
        self.known.refresh()

    def prepare(self, work: SyncWork, keys: Sequence[str]) -> None:
        """Mark what is tried again as pending, then add entries to sets."""
        self._left.try_again(work.postponed)
        for key in self._refused.intersection(keys):
            self.desired.touch_service(key)
        self._held = set(work.held)
        self.known.prepare()
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
        self._change_sets(changes, work)

    def serve(self, work: SyncWork) -> None:
        """Create, change and remove virtual servers and destinations; then add addresses."""
        record = self.known.record
        requests: list[Request] = []
        self.holds.touch_given_up(record)
        for server in sorted(self.desired.servers):
            owner = self.desired.owner(server)
            if owner in self._held:
                continue
            if owner is not None and server in record.foreign:
                self._refuse(work, [owner], f"{describe(server)}: {_IN_THE_WAY}")
                continue
            requests += self._requests(server, self.desired.frontend(server))
        # A server that another program has just made must get no destinations: create all servers first.
        self._send([r for r in requests if r.command is Command.NEW_SERVICE], work)
        rest = [r for r in requests if r.command is not Command.NEW_SERVICE and r.server in record.servers]
        self._send(rest, work)
        self._add_addresses(work)

    def tidy(self, work: SyncWork) -> dict[str, str]:
        """Remove addresses and set entries that are not needed; return what could not be removed."""
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
            work.written["addresses_removed"] += len(unused) - len(failures)
            for ip, code in failures.items():
                message = f"address {ip} on {self._kernel.device.name}: {_word(code)}"
                work.check_refusal(message)
                self._left.add(ip, message)
        self._list_draining(work)
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
        self._change_sets(removals, work)
        self._forget_pending(work)
        return self._left.standing(self.known.record)

    def _list_draining(self, work: SyncWork) -> None:
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
        self._change_sets(changes, work)

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

    def _send(self, requests: Sequence[Request], work: SyncWork) -> None:
        if not requests:
            return
        record, desired = self.known.record, self.desired
        with self.known.risking(name for request in requests for name in objects_of(request)):
            failures = self._kernel.ipvs.apply(requests)
        refused: list[tuple[Request, int]] = []
        for index, request in enumerate(requests):
            code = failures.get(index, 0)
            if code == errno.EEXIST and request.command is Command.NEW_SERVICE:
                self._leave_alone(work, request.server)
                continue
            if code and not (code in _GONE and request.command in _DELETIONS):
                refused.append((request, code))
                continue
            record.done(request)
            work.written[_COUNTED[request.command]] += 1
            if request.command is Command.DEL_DEST:
                self._draining.forget(request.server, request.destination)
            elif request.command is Command.DEL_SERVICE:
                self._draining.forget(request.server)
                self._release(request.server)
        for request, code in refused:  # once the record holds all that was done
            self._add_refusal(work, desired.owner(request.server), request, code)

    def _leave_alone(self, work: SyncWork, server: ServerId) -> None:
        """Record a virtual server that another program made since the last read, and remove it from sets."""
        desired, owner = self.desired, self.desired.owner(server)
        self.known.leave_alone(server)
        desired.members.update((spec, _entry(server)) for spec in self._sets.owned_servers)
        if owner is not None:
            self._refuse(work, [owner], f"{describe(server)}: {_IN_THE_WAY}")

    def _is_foreign(self, member: Member) -> bool:
        """Whether an entry would list a foreign virtual server as kproxy's."""
        spec, entry = member
        return spec in self._sets.owned_servers and _server(entry) in self.known.record.foreign

    def _release(self, server: ServerId) -> None:
        """Mark the address and the entries of a deleted virtual server as pending."""
        self.desired.addresses.add(server.ip)
        self.desired.members.update((spec, _entry(server)) for spec in self._sets.owned_servers)

    def _add_addresses(self, work: SyncWork) -> None:
        desired, record = self.desired, self.known.record
        wanted = set(filter(desired.wants_address, desired.addresses | self.known.lost))
        missing = sorted((wanted | self.holds.needed(record, self.known.lost)) - record.addresses)
        if not missing:
            return
        with self.known.risking(f"address {ip}" for ip in missing):
            try:
                failures = self._kernel.device.add(missing)
            except DeviceMissing as error:
                work.resync(str(error))
                raise
        record.addresses.update(ip for ip in missing if ip not in failures)
        self.known.lost -= record.addresses
        work.written["addresses"] += len(missing) - len(failures)
        for ip, code in failures.items():
            message = f"address {ip} on {self._kernel.device.name}: {_word(code)}"
            work.check_refusal(message)
            self._refuse(work, desired.wanting_address(ip), message)

    def _change_sets(self, changes: Sequence[EntryChange], work: SyncWork) -> None:
        if not changes:
            return
        record = self.known.record
        with self.known.risking(entry_object(change.set, change.entry) for change in changes):
            failures = self._kernel.ipset.apply(changes)
        for index, change in enumerate(changes):
            if index not in failures:
                record.entry_done(change)
        for index, code in failures.items():
            change = changes[index]
            message = f"set {change.set.name}, entry {change.entry}: {set_reason(code)}"
            work.check_refusal(message)
            member = change.set, change.entry
            if change.add:
                self._refuse(work, self.desired.wanting_member(member), message)
            else:
                self._left.add(member, message)
        work.written["set_entries"] += len(changes) - len(failures)

    def _refuse(self, work: SyncWork, keys: Iterable[str], message: str) -> None:
        refused = tuple(keys)
        self._held.update(refused)
        work.refuse(refused, message)

    def _add_refusal(self, work: SyncWork, owner: str | None, request: Request, code: int) -> None:
        message = f"{request.command.name} {describe(request.server)}"
        if request.destination is not None:
            message += f" -> {request.destination.ip} port {request.destination.port}"
        message += f": {reason(request.command, code)}"
        work.check_refusal(message)
        if owner is not None:
            self._refuse(work, [owner], message)
        else:
            self._left.add(request.server, message)

    def _forget_pending(self, work: SyncWork) -> None:
        desired = self.desired
        desired.servers.clear()
        desired.members.clear()
        desired.addresses.clear()
        self.known.lost.clear()
        self._refused = set(work.held)


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
