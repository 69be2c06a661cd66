"""Writes to the kernel in IPVS mode: requests, set entries and addresses, and what becomes of those refused.

The kernel answers each request by itself. What it did goes into the applied state. A refusal quarantines
the service that wants the object; if no service does, the object is a leftover.
"""

import errno
from collections.abc import Collection, Iterable, Sequence

from kproxy.backends.core.work import SyncWork
from kproxy.backends.ipvs.applied_state import AppliedState
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.draining import Draining
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.names import Sets, entry_of
from kproxy.backends.ipvs.record import KernelRecord, describe, entry_object, objects_of, server_object
from kproxy.backends.ipvs.render import Member
from kproxy.kernel.addresses import DeviceMissing
from kproxy.kernel.ipset.codec import reason as set_reason
from kproxy.kernel.ipset.types import Entry, EntryChange
from kproxy.kernel.ipvs.types import Command, Request, ServerId, reason

_GONE = frozenset({errno.ENOENT, errno.ESRCH})
_DELETIONS = frozenset({Command.DEL_SERVICE, Command.DEL_DEST})

IpvsObject = ServerId | Member | str
"""A virtual server, an entry in a set, or an address."""


class RefusedRemovals:
    """Objects that no service needs and that the kernel would not remove, by name, each with the reason.

    The reconciler decides when they are tried again.
    """

    def __init__(self, desired: Desired) -> None:
        self._desired = desired
        self._objects: dict[str, tuple[IpvsObject, str]] = {}

    def add(self, what: IpvsObject, reason: str) -> None:
        """Record a refused removal."""
        self._objects[_name(what)] = what, reason

    def clear(self) -> None:
        """Forget all: every object is compared with the kernel next."""
        self._objects.clear()

    def try_again(self, postponed: Collection[str]) -> None:
        """Mark all as pending that are not `postponed`."""
        desired = self._desired
        for name in self._objects.keys() - set(postponed):
            what, _ = self._objects.pop(name)
            if isinstance(what, ServerId):
                desired.servers.add(what)
            elif isinstance(what, str):
                desired.addresses.add(what)
            else:
                desired.members.add(what)

    def standing(self, record: KernelRecord) -> dict[str, str]:
        """Name and reason of each object that the kernel still has and that no service wants by now."""
        self._objects = {name: left for name, left in self._objects.items() if self._stands(record, left[0])}
        return {name: reason for name, (_, reason) in self._objects.items()}

    def _stands(self, record: KernelRecord, what: IpvsObject) -> bool:
        desired = self._desired
        if isinstance(what, ServerId):
            return what in record.servers and desired.owner(what) is None
        if isinstance(what, str):
            return what in record.addresses and not desired.wants_address(what)
        return what[1] in record.members.get(what[0], ()) and not desired.wants_member(what)


def _name(what: IpvsObject) -> str:
    if isinstance(what, ServerId):
        return server_object(what)
    return f"address {what}" if isinstance(what, str) else entry_object(*what)


class KernelWriter:
    """Writes one family's objects and records the outcome in `known`.

    `left` are the removals that the kernel refused. `held`: the services that are quarantined in this sync.
    """

    def __init__(
        self, kernel: KernelHandles, desired: Desired, known: AppliedState, draining: Draining, all_sets: Sets
    ) -> None:
        self.left = RefusedRemovals(desired)
        self.held: set[str] = set()
        self._kernel = kernel
        self._desired = desired
        self._known = known
        self._draining = draining
        self._sets = all_sets

    def send(self, requests: Sequence[Request], work: SyncWork) -> None:
        """Send requests about virtual servers and destinations. Raises IpvsError, StaleStateError."""
        if not requests:
            return
        record, desired = self._known.record, self._desired
        with self._known.risking(name for request in requests for name in objects_of(request)):
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

    def change_sets(self, changes: Sequence[EntryChange], work: SyncWork) -> None:
        """Add and remove entries of sets. Raises IpsetError, StaleStateError."""
        if not changes:
            return
        record = self._known.record
        with self._known.risking(entry_object(change.set, change.entry) for change in changes):
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
                self.refuse(work, self._desired.wanting_member(member), message)
            else:
                self.left.add(member, message)
        work.written["set_entries"] += len(changes) - len(failures)

    def add_addresses(self, missing: Sequence[str], work: SyncWork) -> None:
        """Add addresses to the device. Raises DeviceError, StaleStateError."""
        if not missing:
            return
        record = self._known.record
        with self._known.risking(f"address {ip}" for ip in missing):
            try:
                failures = self._kernel.device.add(missing)
            except DeviceMissing as error:
                work.resync(str(error))
                raise
        record.addresses.update(ip for ip in missing if ip not in failures)
        self._known.lost -= record.addresses
        work.written["addresses"] += len(missing) - len(failures)
        for ip, code in failures.items():
            message = self._address_refusal(ip, code)
            work.check_refusal(message)
            self.refuse(work, self._desired.wanting_address(ip), message)

    def remove_addresses(self, unused: Sequence[str], work: SyncWork) -> None:
        """Remove addresses from the device. Raises DeviceError, StaleStateError."""
        if not unused:
            return
        with self._known.risking(f"address {ip}" for ip in unused):
            failures = self._kernel.device.remove(unused)
        for ip in unused:
            if ip not in failures:
                self._known.record.addresses.discard(ip)
                self._desired.members.add((self._sets.addresses, Entry(ip)))
        work.written["addresses_removed"] += len(unused) - len(failures)
        for ip, code in failures.items():
            message = self._address_refusal(ip, code)
            work.check_refusal(message)
            self.left.add(ip, message)

    def refuse(self, work: SyncWork, keys: Iterable[str], message: str) -> None:
        """Quarantine services."""
        refused = tuple(keys)
        self.held.update(refused)
        work.refuse(refused, message)

    def _leave_alone(self, work: SyncWork, server: ServerId) -> None:
        """Record a virtual server that another program made since the last read, and remove it from sets."""
        desired, owner = self._desired, self._desired.owner(server)
        self._known.leave_alone(server)
        desired.members.update((spec, entry_of(server)) for spec in self._sets.owned_servers)
        if owner is not None:
            self.refuse(work, [owner], f"{describe(server)}: {IN_THE_WAY}")

    def _release(self, server: ServerId) -> None:
        """Mark the address and the entries of a deleted virtual server as pending."""
        self._desired.addresses.add(server.ip)
        self._desired.members.update((spec, entry_of(server)) for spec in self._sets.owned_servers)

    def _add_refusal(self, work: SyncWork, owner: str | None, request: Request, code: int) -> None:
        message = f"{request.command.name} {describe(request.server)}"
        if request.destination is not None:
            message += f" -> {request.destination.ip} port {request.destination.port}"
        message += f": {reason(request.command, code)}"
        work.check_refusal(message)
        if owner is not None:
            self.refuse(work, [owner], message)
        else:
            self.left.add(request.server, message)

    def _address_refusal(self, ip: str, code: int) -> str:
        return f"address {ip} on {self._kernel.device.name}: {errno.errorcode.get(code, str(code))}"


IN_THE_WAY = "a virtual server that kproxy did not make is there"

_COUNTED = {
    Command.NEW_SERVICE: "servers",
    Command.SET_SERVICE: "servers",
    Command.DEL_SERVICE: "servers_removed",
    Command.NEW_DEST: "destinations",
    Command.SET_DEST: "destinations",
    Command.DEL_DEST: "destinations_removed",
}
