"""The desired table: rendered groups, what reads which set, and what may differ from the kernel.

No I/O. The planner's PolicyTable is read in place; what an update touched is noted here by name, until a
transaction has written it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet

from kproxy.backends.policy import names
from kproxy.backends.policy.alternatives import NamedSets
from kproxy.backends.policy.chains import Chain, base_chains, fixed_chains, fixed_containers
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.render import GroupObjects, render_closed, render_group, verdict_for
from kproxy.plan.policy.model import Direction, PolicyTable, Touched

Elements = Mapping[str, str] | AbstractSet[str]
"""Elements of a map or set: key -> value, "" in sets; or only keys."""


class DesiredTable:
    """What the kernel is to hold for a PolicyTable.

    `chains` and `containers` are everything that is wanted, by name; base chains have their hook in `hooks`.
    A `closed` group allows nothing: the kernel refuses its rules.
    """

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config
        self.chains: dict[str, Chain] = {}
        self.hooks: dict[str, str] = {}
        self.closed: set[str] = set()
        self.dirty_sets: set[str] = set()
        self.dirty_addresses: set[str] = set()
        self._table = PolicyTable()
        self._groups: dict[str, GroupObjects] = {}
        self._uses: Counter[str] = Counter()
        self._users: dict[str, set[str]] = {}
        self._own: dict[str, Mapping[str, str]] = {}
        self._united: dict[str, tuple[str, ...]] = {}
        self._named: dict[str, tuple[set[tuple[str, int]], set[str]]] = {}
        self._fixed: dict[str, dict[str, str]] = {}
        self._fixed_chains: frozenset[str] = frozenset()
        self._use_fixed()

    @property
    def fixed_chains(self) -> Collection[str]:
        """The names of the chains that depend on no policy."""
        return self._fixed_chains

    @property
    def fixed_containers(self) -> Collection[str]:
        """The names of the maps and sets that always exist."""
        return self._fixed.keys()

    @property
    def groups(self) -> Collection[str]:
        """The names of all groups."""
        return self._groups.keys()

    @property
    def containers(self) -> Collection[str]:
        """The names of all maps and sets."""
        return self._fixed.keys() | self._uses.keys()

    def update(self, table: PolicyTable, touched: Touched) -> set[str]:
        """Take over what was touched in a table; return the groups that may have to be written."""
        self._table = table
        named = _named(table)
        keys: set[str] = set()
        for name in touched.groups:
            if name in table.groups:
                self._replace(name, self._render(name, named))
                keys.add(name)
            else:
                self.closed.discard(name)
                self._replace(name, None)
        sets = touched.members | touched.ranges
        sets = (sets | self._united_of(sets)) & self._uses.keys()
        self.dirty_sets |= sets
        for name in sets:
            keys |= self._users.get(name, set())
        self.dirty_addresses |= touched.addresses
        for address in touched.addresses:
            keys.update(group for group in self.groups_at(address) if group in self._groups)
        return keys

    def use_config(self, config: PolicyConfig) -> None:
        """Render everything with other settings."""
        self.config = config
        named = _named(self._table)
        for name in self._table.groups:
            self._replace(name, self._render(name, named))
        self._use_fixed()
        self.touch_all(())

    def touch_all(self, addresses: Iterable[str]) -> None:
        """Mark everything as possibly different from the kernel, which has elements for these addresses."""
        self.dirty_sets.update(self.containers)
        self.dirty_addresses.update(addresses, self._table.local)
        for led in self._table.isolated.values():
            self.dirty_addresses.update(led)

    def close(self, name: str) -> None:
        """Let a group allow nothing."""
        self.closed.add(name)
        self._replace(name, self._render(name, {}))

    def open(self, name: str) -> None:
        """Let a group have its rules again."""
        if name in self.closed:
            self.closed.discard(name)
            self._replace(name, self._render(name, _named(self._table)))

    def chains_of(self, group: str) -> Mapping[str, Chain]:
        """The chains of a group."""
        return self._groups[group].chains

    def reads(self, group: str) -> Collection[str]:
        """The maps and sets that a group reads."""
        return self._groups[group].reads

    def groups_at(self, address: str) -> list[str]:
        """The groups of a local pod's address."""
        return [led[address] for led in self._table.isolated.values() if address in led]

    def led_to(self, address: str, direction: Direction) -> str | None:
        """The group of an address in a direction, or None."""
        return self._table.isolated[direction].get(address)

    def verdict(self, address: str, direction: Direction) -> str | None:
        """The element of an address, or None."""
        group = self.led_to(address, direction)
        return None if group is None else verdict_for(direction, group)

    def is_known(self, address: str) -> bool:
        """Whether an address is to be an element of `known`."""
        return names.KNOWN in self._fixed and address in self._table.local

    def elements(self, name: str) -> Elements:
        """The elements of a map or set, except those of addresses of local pods, which `verdict` has."""
        if name in self._fixed:
            return self._fixed[name]
        if name in self._own:
            return self._own[name]
        if name in self._united:
            peers = self._table.peers
            return frozenset().union(*(peers.get(each, ()) for each in self._united[name]))
        table = self._table
        if name in table.ranges:
            return dict.fromkeys(map(_without_length, table.ranges[name]), "")
        if name in table.named:
            return self._texts(name)
        return table.peers.get(name, frozenset())

    def _texts(self, name: str) -> AbstractSet[str]:
        """The elements of a set of named ports; the texts are kept, as there may be one for each pod."""
        members, number = (
            self._table.named[name],
            names.PROTOCOL_NUMBERS[self._table.named_protocols[name][1]],
        )
        known, texts = self._named.setdefault(name, (set(), set()))
        gone, new = known - members, members - known
        texts.difference_update([f"{ip} . {number} . {port}" for ip, port in gone])
        texts.update([f"{ip} . {number} . {port}" for ip, port in new])
        known ^= gone | new
        return texts

    def _united_of(self, sets: AbstractSet[str]) -> set[str]:
        """The sets that have the members of one of these."""
        return {name for name, parts in self._united.items() if not sets.isdisjoint(parts)}

    def _render(self, name: str, named: NamedSets) -> GroupObjects:
        group = self._table.groups[name]
        if name in self.closed:
            return render_closed(group, self.config)
        return render_group(group, self.config, named)

    def _replace(self, name: str, new: GroupObjects | None) -> None:
        old = self._groups.pop(name, None)
        if new is not None:
            self._groups[name] = new
            self.chains |= new.chains
            self._own |= new.own
            self._united |= new.united
            for read in new.reads:
                if read not in self._uses:
                    self.dirty_sets.add(read)  # the kernel may still have one of former times
                self._uses[read] += 1
                self._users.setdefault(read, set()).add(name)
        if old is None:
            return
        kept = () if new is None else new.chains
        for chain in old.chains:
            if chain not in kept:
                del self.chains[chain]
        for read in old.reads:
            self._forget(read, name, still=new is not None and read in new.reads)

    def _forget(self, read: str, group: str, *, still: bool) -> None:
        self._uses[read] -= 1
        if not still:
            self._users[read].discard(group)
        if not self._uses[read]:
            del self._uses[read], self._users[read]
            self._own.pop(read, None)
            self._united.pop(read, None)
            self._named.pop(read, None)
            self.dirty_sets.discard(read)

    def _use_fixed(self) -> None:
        for name in self._fixed_chains:
            del self.chains[name]
        base = base_chains(self.config)
        fixed = fixed_chains(self.config) | {name: chain.rules for name, chain in base.items()}
        self.hooks = {name: chain.hook for name, chain in base.items()}
        self._fixed = fixed_containers(self.config)
        self._fixed_chains = frozenset(fixed)
        self.chains |= fixed


def _named(table: PolicyTable) -> NamedSets:
    return {of: name for name, of in table.named_protocols.items()}


def _without_length(cidr: str) -> str:
    """A range as the kernel's elements are read: one address has no length."""
    address, _, length = cidr.partition("/")
    return address if length == ("128" if ":" in address else "32") else cidr
