"""The desired elements and chains of all services, and which of them are pending.

No I/O: the contents of the table are a parameter, and the change to be written is the result.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence

import msgspec

from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import Chain, leads_to
from kproxy.backends.nftables.element_owners import (
    Contents,
    ElementOwners,
    Slot,
    elements_at,
    no_contents,
    value_at,
)
from kproxy.backends.nftables.render import Element, ServiceObjects
from kproxy.backends.nftables.runs import Runs, runs_from

LEADING = ("cluster-", "external-", "local-")
"""Prefixes of class chains, which refer to picking chains."""

RULE_COUNTS = 6
"""Elements that take as long to write as a rule of an affinity chain."""

_SHORT = 8
"""Rules of a chain that are not counted: those of all other chains of services."""

HeldChains = Mapping[str, Chain | None]
"""Rules by chain, None where these are unknown."""


class Change(msgspec.Struct, frozen=True):
    """The change of one transaction: chains to write, keys to delete and elements to add, by container.

    `left`: the slots of a large service that later transactions change.
    """

    chains: Mapping[str, Chain]
    doomed: Mapping[str, Sequence[str]] = {}
    fresh: Mapping[str, Mapping[str, str]] = {}
    left: frozenset[Slot] = frozenset()


class _Objects(msgspec.Struct, frozen=True, gc=False):
    """The desired objects of one service; the rules of its chains are known by name."""

    entries: tuple[Element, ...] = ()
    chains: tuple[str, ...] = ()


_NOTHING = _Objects()


class DesiredElements:
    """The objects of every service; `pending` maps services to slots that may differ from the table.

    None stands for all slots of a service, so that a first sync makes no list of every element. A pending
    service without slots has only chains to be written. A service with more elements than a transaction may
    have is changed in several; see _slice.
    """

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.pending: dict[str, tuple[Slot, ...] | None] = {}
        self._owners = ElementOwners()
        self._objects: dict[str, _Objects] = {}
        self._uses: Counter[str] = Counter()
        self._read: dict[str, frozenset[str]] = {}
        self._readers: Counter[str] = Counter()

    @property
    def elements(self) -> Contents:
        """The desired elements of every container."""
        return self._owners.wanted

    def reads(self, container: str) -> bool:
        """Whether a desired chain reads a map or set."""
        return self._readers[container] > 0

    def owner(self, slot: Slot) -> str | None:
        """The service whose element a slot is to hold, or None."""
        return self._owners.owner(slot)

    def replace(self, key: str, new: ServiceObjects) -> bool:
        """Replace the desired objects of a service; False if they are equal."""
        old = self._objects.get(key, _NOTHING)
        if old.entries == new.entries and self._has_chains(old, new.chains):
            return False
        entries = _with_known_text(new.entries, old.entries) if old.entries else new.entries
        is_new = old is _NOTHING and key not in self.pending
        pending = set(self._slots(key))
        before, after = set(old.entries), set(entries)
        slots = self._owners.replace(
            key,
            [entry for entry in old.entries if entry not in after],
            [entry for entry in entries if entry not in before],
        )
        self.pending[key] = None if is_new else tuple(pending | slots)
        for name, rules in new.chains.items():
            self._uses[name] += 1
            self._set_chain(name, rules)
        for name in old.chains:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]
                self._set_chain(name, None)
        if entries:
            self._objects[key] = _Objects(entries, tuple(new.chains))
        else:
            self._objects.pop(key, None)
        return True

    def size(self, key: str) -> int:
        """The most elements that a pending service may have to change, and its affinity rules as elements."""
        if key not in self.pending:
            return 0
        lengths = [len(self.chains[name]) for name in self._objects.get(key, _NOTHING).chains]
        return _size(self._slots(key)) + RULE_COUNTS * sum(each for each in lengths if each > _SHORT)

    def _slots(self, key: str) -> Iterable[Slot]:
        """The slots of a service that may differ from the table; () if it is not pending."""
        slots = self.pending.get(key, ())
        if slots is None:
            return [(each.container, each.key) for each in self._objects.get(key, _NOTHING).entries]
        return slots

    def _has_chains(self, objects: _Objects, chains: Mapping[str, Chain]) -> bool:
        """Whether a service has these chains, with these rules."""
        return objects.chains == tuple(chains) and all(
            self.chains.get(name) == rules for name, rules in chains.items()
        )

    def _lacking(self, objects: _Objects, chains: HeldChains) -> dict[str, Chain]:
        """The chains of a service that have other rules in the table, or are not there."""
        wanted = self.chains
        return {name: wanted[name] for name in objects.chains if chains.get(name) != wanted[name]}

    def _set_chain(self, name: str, rules: Chain | None) -> None:
        if rules is not None and self.chains.get(name) == rules:
            return
        for container in self._read.pop(name, ()):
            self._readers[container] -= 1
        if rules is None:
            del self.chains[name]
            return
        self.chains[name] = rules
        if read := names.read_by(rules):
            self._read[name] = read
            self._readers.update(read)

    def compare(self, held: Contents, chains: HeldChains) -> None:
        """Set `pending` to the services that differ from a table with these contents.

        Equal strings in `held` are replaced by the desired ones, which saves memory.
        """
        wanted = self.elements
        for container, elements in wanted.items():
            held[container] = _shared(held[container], elements)
        pending, self.pending = self.pending, {}
        for key in pending.keys() | self._objects.keys():
            objects = self._objects.get(key, _NOTHING)
            slots = {(entry.container, entry.key) for entry in objects.entries}
            slots.update(pending.get(key) or ())
            differing = tuple(slot for slot in slots if value_at(held, slot) != value_at(wanted, slot))
            if differing or self._lacking(objects, chains):
                self.pending[key] = differing

    def batches(self, keys: Iterable[str], limit: int) -> Iterator[list[str]]:
        """Pending services in batches of about `limit` elements.

        A service that is changed in several transactions is yielded for each, as long as that makes progress.
        """
        group: list[str] = []
        size = 0
        for key in keys:
            left = self.size(key)
            if left > limit and group:
                yield group
                group, size = [], 0
            while left > limit:
                yield [key]
                before, left = left, self.size(key)
                if left >= before:
                    break
            else:
                if key in self.pending:
                    group.append(key)
                    size += left
            if size >= limit:
                yield group
                group, size = [], 0
        if group:
            yield group

    def change(self, keys: Sequence[str], held: Contents, chains: HeldChains, limit: int) -> Change:
        """The change that applies a batch of pending services to a table with these contents.

        Of a single service with more than `limit` elements it is the next part.
        """
        slots = {slot for key in keys for slot in self._slots(key)}
        missing: dict[str, Chain] = {}
        # A slot that a service gives up may belong to another one now, whose chains may not be written yet.
        for key in {*keys, *(owner for slot in slots if (owner := self.owner(slot)))}:
            missing |= self._lacking(self._objects.get(key, _NOTHING), chains)
        left: frozenset[Slot] = frozenset()
        if len(keys) == 1 and _size(slots) > limit:
            taken, with_chains = self._slice(slots, held, limit, chains_missing=bool(missing))
            left = frozenset(slots - taken)
            slots = taken
            if not with_chains:
                missing = {}
        doomed: dict[str, list[str]] = {}
        fresh = no_contents()
        for slot in sorted(slots):
            container, key = slot
            have, want = value_at(held, slot), value_at(self.elements, slot)
            if have == want:
                continue
            added = fresh[container]
            if have is None and want is not None and isinstance(added, Runs):
                added.set_run(key, want)
                continue
            before, after = elements_at(slot, have), elements_at(slot, want)
            gone = [each for each, value in before.items() if after.get(each) != value]
            if gone:
                doomed.setdefault(container, []).extend(gone)
            added.update({each: value for each, value in after.items() if before.get(each) != value})
        return Change(missing, doomed, {name: some for name, some in fresh.items() if some}, left)

    def written(self, keys: Iterable[str], change: Change) -> None:
        """Record that the kernel has committed the change of these services."""
        for key in keys:
            if change.left:
                self.pending[key] = tuple(change.left)
            else:
                del self.pending[key]

    def _slice(
        self, slots: set[Slot], held: Contents, size: int, *, chains_missing: bool
    ) -> tuple[set[Slot], bool]:
        """Choose what the next transaction of a large service changes, and whether it writes the chains.

        First the lists of endpoints get what they lack: as long as the chain draws from the former numbers,
        each of them has an endpoint. Then the chains change and all that belongs to one frontend changes
        together. Elements that no chain reads any more are deleted last. Slots that are right count as done.
        """
        early: list[Slot] = []
        late: list[Slot] = []
        groups: dict[str, list[Slot]] = {}
        right: set[Slot] = set()
        for slot in slots:
            container, key = slot
            want = value_at(self.elements, slot)
            if value_at(held, slot) == want:
                right.add(slot)
            elif names.is_slots(container):
                (late if want is None else early).append(slot)
            else:
                group = " . ".join(key.split(" . ")[:3]) if names.is_by_frontend(container) else container
                groups.setdefault(group, []).append(slot)
        if early:
            return right | set(early[:size]), False
        if groups or chains_missing:
            taken: set[Slot] = set()
            room = size
            for group in sorted(groups):
                taken.update(groups[group])
                room -= _size(groups[group])
                if room <= 0:
                    break
            return right | taken, True
        return right | set(late[:size]), False

    def classes(self, chains: HeldChains) -> dict[str, Chain]:
        """The class chains with other rules in the table; base chains need the mark that these set."""
        return {
            name: rules
            for name, rules in self.chains.items()
            if name.startswith(LEADING)
            and chains.get(name, rules) != rules
            and leads_to(rules) <= chains.keys()
        }

    def unowned(self, container: str, held: Contents, refused: Collection[str]) -> list[str]:
        """The keys that no service wants, except those that quarantined services keep."""
        kept = {slot for key in refused for slot in self._slots(key)}
        wanted, found = self.elements[container], held[container]
        if isinstance(wanted, Runs) and isinstance(found, Runs):
            return [
                key
                for prefix, run in found.runs().items()
                if run != wanted.run(prefix) and (container, prefix) not in kept
                for key in elements_at((container, prefix), run)
                if key not in wanted
            ]
        return [
            key for key in found if key not in wanted and (container, _slot_key(container, key)) not in kept
        ]


def _slot_key(container: str, key: str) -> str:
    """The key of the slot to which an element belongs."""
    return key.rpartition(" . ")[0] if names.is_numbered(container) else key


def _size(slots: Iterable[Slot]) -> int:
    """The greatest number of elements in some slots."""
    return sum(names.most_elements(container) for container, _ in slots)


def _shared(found: MutableMapping[str, str], wanted: Mapping[str, str]) -> MutableMapping[str, str]:
    """Return `found` with equal strings replaced by those of `wanted`."""
    if isinstance(wanted, Runs):
        return runs_from(found, wanted)
    same = {key: value for key, value in wanted.items() if found.get(key) == value}
    return same | {key: value for key, value in found.items() if key not in same}


def _with_known_text(new: Iterable[Element], old: Iterable[Element]) -> tuple[Element, ...]:
    """The new entries with the texts of equal old ones, which the record of the table keeps alive anyway."""
    known = {element: element for element in old}
    keys = {element.key: element.key for element in old}
    return tuple(
        [
            known.get(each) or Element(each.container, keys.get(each.key, each.key), each.value, each.late)
            for each in new
        ]
    )
