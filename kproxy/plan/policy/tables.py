"""The desired state of one family, and which of its groups and sets are in use.

A group exists while a local address has it, a set while a group uses it. New ones are made before old ones
are given up, and those without use go at the end of an update, so that a set that moves from one group to
another is not made anew.
"""

from collections.abc import Callable, Iterable

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.compile import Compiled
from kproxy.plan.policy.model import Direction, PolicyTable, Touched
from kproxy.plan.policy.names import named_port_set
from kproxy.plan.policy.rules import PodsPeer

PodMembers = Callable[[PodsPeer, Family], set[str]]
NamedMembers = Callable[[str, Protocol, Family], set[tuple[str, int]]]


class FamilyTable:
    """Owns the PolicyTable of one family, and notes what is touched until `finish`."""

    def __init__(self, family: Family, pod_members: PodMembers, named_members: NamedMembers) -> None:
        """`pod_members` and `named_members` say what a new set has in it."""
        self.family = family
        self.table = PolicyTable()
        self._pod_members, self._named_members = pod_members, named_members
        self._users: dict[str, int] = {}
        """Local addresses of each group, and groups of each set, by name."""
        self._compiled: dict[str, Compiled] = {}
        self._unused: set[str] = set()
        self._groups: set[str] = set()
        self._members: set[str] = set()
        self._ranges: set[str] = set()
        self._addresses: set[str] = set()

    def assign(
        self, address: str, key: str | None, groups: Iterable[tuple[Direction, Compiled | None]]
    ) -> None:
        """Give an address its pod and groups; without a `key`, it is no local pod's any more."""
        table = self.table
        if table.local.get(address) != key:
            self._addresses.add(address)
            if key is None:
                del table.local[address]
            else:
                table.local[address] = key
        for direction, compiled in groups:
            isolated = table.isolated[direction]
            group = compiled.group if compiled is not None else None
            before = isolated.get(address)
            if before == (None if group is None else group.name):
                continue
            self._addresses.add(address)
            if compiled is not None and group is not None:
                self._use_group(group.name, compiled)
                isolated[address] = group.name
            else:
                del isolated[address]
            if before is not None:
                self._drop(before)

    def move(self, name: str, address: str, *, joins: bool) -> None:
        """An address joins a pod set or leaves it; nothing happens if this family does not use the set."""
        members = self.table.peers.get(name)
        if members is None:
            return
        if joins:
            members.add(address)
        else:
            members.discard(address)
        self._members.add(name)

    def move_named(self, name: str, element: tuple[str, int], *, joins: bool) -> None:
        """The same for an element of a set of named ports."""
        members = self.table.named.get(name)
        if members is None:
            return
        if joins:
            members.add(element)
        else:
            members.discard(element)
        self._members.add(name)

    def finish(self) -> tuple[Touched, set[str]]:
        """Remove what is not in use; return what was touched, and the names of the pod sets that went."""
        gone: set[str] = set()
        table = self.table
        for name in self._emptied():
            compiled = self._compiled.pop(name)
            del table.groups[name]
            self._groups.add(name)
            for used in (
                *compiled.pods,
                *compiled.ranges,
                *(named_port_set(*each) for each in compiled.named),
            ):
                self._drop(used)
        for name in self._emptied():
            if table.ranges.pop(name, None) is not None:
                self._ranges.add(name)
                continue
            self._members.add(name)
            if table.peers.pop(name, None) is not None:
                gone.add(name)
            else:
                del table.named[name], table.named_protocols[name]
        touched = Touched(
            frozenset(self._groups),
            frozenset(self._members),
            frozenset(self._ranges),
            frozenset(self._addresses),
        )
        for each in (self._groups, self._members, self._ranges, self._addresses):
            each.clear()
        return touched, gone

    def _emptied(self) -> list[str]:
        emptied = [name for name in self._unused if not self._users[name]]
        self._unused.clear()
        for name in emptied:
            del self._users[name]
        return emptied

    def _drop(self, name: str) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            self._unused.add(name)

    def _use(self, name: str) -> bool:
        """Count one more user; return whether it is the first."""
        number = self._users.get(name)
        self._users[name] = (number or 0) + 1
        return number is None

    def _use_group(self, name: str, compiled: Compiled) -> None:
        if not self._use(name) or compiled.group is None:
            return
        table = self.table
        table.groups[name] = compiled.group
        self._compiled[name] = compiled
        self._groups.add(name)
        for peer in compiled.pods.values():
            if self._use(peer.name):
                table.peers[peer.name] = self._pod_members(peer, self.family)
                self._members.add(peer.name)
        for ranges, cidrs in compiled.ranges.items():
            if self._use(ranges):
                table.ranges[ranges] = cidrs
                self._ranges.add(ranges)
        for port, protocol in compiled.named:
            named = named_port_set(port, protocol)
            if self._use(named):
                table.named[named] = self._named_members(port, protocol, self.family)
                table.named_protocols[named] = port, protocol
                self._members.add(named)
