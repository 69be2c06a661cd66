"""The desired objects of all services, and which of them are pending.

Services share objects: an external address with several ports, a pod behind two services, a node port and an
external address with the same frontend. So references to objects are counted, and a change of a service marks
the objects that it affects as pending; a sync compares only those.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kproxy.backends.ipvs.render import NOTHING, Frontend, Member, ServiceObjects
from kproxy.kernel.ipvs.types import ServerId

_Key = TypeVar("_Key")


class Desired:
    """All services' objects.

    `servers`, `members` and `addresses` are pending: they may differ from the kernel. The reconciler clears
    them after a sync.
    """

    def __init__(self) -> None:
        self.services: dict[str, ServiceObjects] = {}
        self.servers: set[ServerId] = set()
        self.members: set[Member] = set()
        self.addresses: set[str] = set()
        self._claimants: dict[ServerId, tuple[str, ...]] = {}
        self._member_count: Counter[Member] = Counter()
        self._address_count: Counter[str] = Counter()

    def put(self, key: str, new: ServiceObjects) -> bool:
        """Replace a service's objects; NOTHING removes it. Return whether anything changed."""
        old = self.services.get(key, NOTHING)
        if old == new:
            return False
        touched = [
            server
            for server in old.frontends.keys() | new.frontends.keys()
            if old.frontends.get(server) != new.frontends.get(server)
        ]
        before = {server: self.frontend(server) for server in touched}
        if new == NOTHING:
            self.services.pop(key)
        else:
            self.services[key] = new
        for server in touched:
            self._claim(server, key, claimed=server in new.frontends)
            self._replace(server, before[server], self.frontend(server))
        self._count(old.entries, -1)
        self._count(new.entries, 1)
        return True

    def frontend(self, server: ServerId) -> Frontend | None:
        """The desired state of a virtual server, that of its owner; None if no service needs it."""
        key = self.owner(server)
        return self.services[key].frontends[server] if key is not None else None

    def owner(self, server: ServerId) -> str | None:
        """The service that owns a virtual server, or None: a service's address wins over a node port."""
        claimants = self._claimants.get(server, ())
        if len(claimants) <= 1:
            return claimants[0] if claimants else None
        return min(claimants, key=lambda key: (self.services[key].frontends[server].node_port, key))

    def wants_member(self, member: Member) -> bool:
        """Whether any service wants this entry in its set."""
        return member in self._member_count

    def wants_address(self, address: str) -> bool:
        """Whether any service wants the device to hold an address."""
        return address in self._address_count

    def touch_everything(self) -> None:
        """Mark all desired objects as pending."""
        self.servers |= self._claimants.keys()
        self.members |= self._member_count.keys()
        self.addresses |= self._address_count.keys()

    def touch_service(self, key: str) -> None:
        """Mark all objects of a service as pending."""
        objects = self.services.get(key, NOTHING)
        self.members.update(objects.entries)
        for server, frontend in objects.frontends.items():
            self.servers.add(server)
            self.members.update(frontend.entries)
            if frontend.address is not None:
                self.addresses.add(frontend.address)

    def wanting_member(self, member: Member) -> Iterator[str]:
        """The services that want an entry; searches all services, for use after a refusal."""
        for key, objects in self.services.items():
            if member in objects.entries or any(member in f.entries for f in objects.frontends.values()):
                yield key

    def wanting_address(self, address: str) -> Iterator[str]:
        """The services that want an address; searches all services, for use after a refusal."""
        for key, objects in self.services.items():
            if any(frontend.address == address for frontend in objects.frontends.values()):
                yield key

    def _claim(self, server: ServerId, key: str, *, claimed: bool) -> None:
        others = tuple(other for other in self._claimants.get(server, ()) if other != key)
        claimants = (*others, key) if claimed else others
        if claimants:
            self._claimants[server] = claimants
        else:
            self._claimants.pop(server, None)

    def _replace(self, server: ServerId, before: Frontend | None, after: Frontend | None) -> None:
        if after is before:
            return
        self.servers.add(server)
        for frontend, step in ((before, -1), (after, 1)):
            if frontend is None:
                continue
            self._count(frontend.entries, step)
            if frontend.address is not None:
                self._step(self._address_count, frontend.address, step)
                self.addresses.add(frontend.address)

    def _count(self, members: Iterable[Member], step: int) -> None:
        for member in members:
            self._step(self._member_count, member, step)
            self.members.add(member)

    @staticmethod
    def _step(counts: Counter[_Key], key: _Key, step: int) -> None:
        counts[key] += step
        if not counts[key]:
            del counts[key]
