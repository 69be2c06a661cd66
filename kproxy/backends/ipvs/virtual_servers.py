"""The virtual servers, sets and device addresses of one family, as operations of the reconciler.

A sync has three steps, so that rules can be written between them: `prepare` adds set entries, `serve` makes
virtual servers and then the addresses that lead packets to them, `tidy` removes what no service needs any
more. The kernel answers each request by itself, so no refusal has to be searched for. The record of the
kernel is in applied_state.py.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.core.work import Changes, Comparison, DesiredChange, Failure, Observation, SyncWork
from kproxy.backends.ipvs.applied_state import AppliedState
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.draining import AddressHolds, Draining
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.names import entry_of, server_of, sets
from kproxy.backends.ipvs.record import describe
from kproxy.backends.ipvs.render import Frontend, Member
from kproxy.backends.ipvs.writer import IN_THE_WAY, KernelWriter
from kproxy.kernel.ipset.types import EntryChange
from kproxy.kernel.ipvs.types import Command, Request, ServerId
from kproxy.plan.model import ServicePlan


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
        self._refused: set[str] = set()
        self._writer = KernelWriter(kernel, self.desired, self.known, draining, self._sets)
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
        self._writer.left.clear()
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
        self._writer.left.try_again(work.postponed)
        for key in self._refused.intersection(keys):
            self.desired.touch_service(key)
        self._writer.held = set(work.held)
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
            EntryChange(self.holds.relisted(server), entry_of(server), add=True)
            for server in sorted(desired.servers)
            if server in record.servers and desired.owner(server) is None and not self._is_listed(server)
        ]
        self._writer.change_sets(changes, work)

    def serve(self, work: SyncWork) -> None:
        """Create, change and remove virtual servers and destinations; then add addresses."""
        record = self.known.record
        requests: list[Request] = []
        self.holds.touch_given_up(record)
        for server in sorted(self.desired.servers):
            owner = self.desired.owner(server)
            if owner in self._writer.held:
                continue
            if owner is not None and server in record.foreign:
                self._writer.refuse(work, [owner], f"{describe(server)}: {IN_THE_WAY}")
                continue
            requests += self._requests(server, self.desired.frontend(server))
        # A server that another program has just made must get no destinations: create all servers first.
        self._writer.send([r for r in requests if r.command is Command.NEW_SERVICE], work)
        rest = [r for r in requests if r.command is not Command.NEW_SERVICE and r.server in record.servers]
        self._writer.send(rest, work)
        self._add_addresses(work)

    def tidy(self, work: SyncWork) -> dict[str, str]:
        """Remove addresses and set entries that are not needed; return what could not be removed."""
        desired, record = self.desired, self.known.record
        unwanted = [ip for ip in desired.addresses & record.addresses if not desired.wants_address(ip)]
        self._writer.remove_addresses(sorted(set(unwanted) - self.holds.needed(record, unwanted)), work)
        self._list_draining(work)
        # A virtual server may have been listed elsewhere while it drained.
        listing = (*self._sets.owned_servers, self._sets.draining)
        desired.members.update((spec, entry_of(server)) for server in desired.servers for spec in listing)
        removals = [
            EntryChange(spec, entry, add=False)
            for spec, entry in self._pending_members()
            if entry in record.members.get(spec, ())
            and (not desired.wants_member((spec, entry)) or self._is_foreign((spec, entry)))
            and not self._still_needed((spec, entry))
        ]
        self._writer.change_sets(removals, work)
        self._forget_pending(work)
        return self._writer.left.standing(self.known.record)

    def _list_draining(self, work: SyncWork) -> None:
        """Add draining virtual servers to their set, so that new connections may reach the node's sockets."""
        if not self.holds.withdraws:
            return
        desired, record = self.desired, self.known.record
        listed = record.members.get(self._sets.draining, set())
        changes = [
            EntryChange(self._sets.draining, entry_of(server), add=True)
            for server in sorted(desired.servers)
            if server in record.servers and desired.owner(server) is None and entry_of(server) not in listed
        ]
        self._writer.change_sets(changes, work)

    def drain(self) -> bool:
        """Check the connections of draining destinations; True if a sync has something to remove."""
        ended = self._draining.check(self._kernel.ipvs)
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
        server = server_of(entry)
        return server in record.servers and self.desired.owner(server) is None

    def _is_listed(self, server: ServerId) -> bool:
        """Whether the sets list a virtual server as kproxy's."""
        members = self.known.record.members
        return any(entry_of(server) in members.get(spec, ()) for spec in self._sets.owned_servers)

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

    def _is_foreign(self, member: Member) -> bool:
        """Whether an entry would list a foreign virtual server as kproxy's."""
        spec, entry = member
        return spec in self._sets.owned_servers and server_of(entry) in self.known.record.foreign

    def _add_addresses(self, work: SyncWork) -> None:
        desired, record, lost = self.desired, self.known.record, self.known.lost
        wanted = set(filter(desired.wants_address, desired.addresses | lost))
        missing = (wanted | self.holds.needed(record, lost)) - record.addresses
        self._writer.add_addresses(sorted(missing), work)

    def _forget_pending(self, work: SyncWork) -> None:
        desired = self.desired
        desired.servers.clear()
        desired.members.clear()
        desired.addresses.clear()
        self.known.lost.clear()
        self._refused = set(work.held)
