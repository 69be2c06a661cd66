"""Objects that no service needs and that the kernel would not remove."""

from collections.abc import Collection

from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.record import KernelRecord, entry_object, server_object
from kproxy.backends.ipvs.render import Member
from kproxy.kernel.ipvs.types import ServerId

IpvsObject = ServerId | Member | str
"""A virtual server, an entry in a set, or an address."""


class RefusedRemovals:
    """The objects by name, each with the reason. The reconciler decides when they are tried again."""

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
