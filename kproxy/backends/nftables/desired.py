"""The desired elements and chains of all services, and which of them are pending.

No I/O: the contents of the table are a parameter, and the change to be written is the result.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import Chain, leads_to
from kproxy.backends.nftables.element_owners import Contents, ElementOwners, Slot
from kproxy.backends.nftables.render import NOTHING, ServiceObjects

LEADING = ("cluster-", "external-", "local-")
"""Prefixes of class chains, which refer to picking chains."""

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


class DesiredElements:
    """The objects of every service; `pending` maps services to slots that may differ from the table.

    A pending service without slots has only chains to be written. A service with more slots than a
    transaction may have is changed in several; see _slice.
    """

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.pending: dict[str, set[Slot]] = {}
        self._owners = ElementOwners()
        self._objects: dict[str, ServiceObjects] = {}
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
        old = self._objects.get(key, NOTHING)
        if old == new:
            return False
        before, after = set(old.elements), set(new.elements)
        slots = self._owners.replace(
            key,
            [element for element in old.elements if element not in after],
            [element for element in new.elements if element not in before],
        )
        self.pending.setdefault(key, set()).update(slots)
        for name, rules in new.chains.items():
            self._uses[name] += 1
            self._set_chain(name, rules)
        for name in old.chains:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]
                self._set_chain(name, None)
        if new.elements:
            self._objects[key] = new
        else:
            self._objects.pop(key, None)
        return True

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
            objects = self._objects.get(key, NOTHING)
            slots = pending.get(key, set())
            slots.update((element.container, element.key) for element in objects.elements)
            differing = {
                (name, slot) for name, slot in slots if held[name].get(slot) != wanted[name].get(slot)
            }
            if differing or any(chains.get(name) != rules for name, rules in objects.chains.items()):
                self.pending[key] = differing

    def batches(self, keys: Iterable[str], limit: int) -> Iterator[list[str]]:
        """Pending services in batches of about `limit` elements.

        A service that is changed in several transactions is yielded for each, as long as that makes progress.
        """
        group: list[str] = []
        size = 0
        for key in keys:
            left = len(self.pending[key])
            if left > limit and group:
                yield group
                group, size = [], 0
            while left > limit:
                yield [key]
                before, left = left, len(self.pending.get(key, ()))
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
        slots = set().union(*(self.pending[key] for key in keys))
        missing: dict[str, Chain] = {}
        # A slot that a service gives up may belong to another one now, whose chains may not be written yet.
        for key in {*keys, *(owner for slot in slots if (owner := self.owner(slot)))}:
            objects = self._objects.get(key, NOTHING)
            missing |= {name: rules for name, rules in objects.chains.items() if chains.get(name) != rules}
        left: frozenset[Slot] = frozenset()
        if len(keys) == 1 and len(slots) > limit:
            taken, with_chains = self._slice(slots, held, limit, chains_missing=bool(missing))
            left = frozenset(slots - taken)
            slots = taken
            if not with_chains:
                missing = {}
        doomed: dict[str, list[str]] = {}
        fresh: dict[str, dict[str, str]] = {}
        for container, key in sorted(slots):
            have = held[container].get(key)
            want = self.elements[container].get(key)
            if have == want:
                continue
            if have is not None:
                doomed.setdefault(container, []).append(key)
            if want is not None:
                fresh.setdefault(container, {})[key] = want
        return Change(missing, doomed, fresh, left)

    def written(self, keys: Iterable[str], change: Change) -> None:
        """Record that the kernel has committed the change of these services."""
        for key in keys:
            if change.left:
                self.pending[key] = set(change.left)
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
            want = self.elements[container].get(key)
            if held[container].get(key) == want:
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
            for group in sorted(groups):
                taken.update(groups[group])
                if len(taken) >= size:
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
        kept = {slot for key in refused for slot in self.pending.get(key, ())}
        wanted = self.elements[container]
        return [key for key in held[container] if key not in wanted and (container, key) not in kept]


def _shared(found: dict[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return `found` with equal strings replaced by those of `wanted`."""
    same = {key: value for key, value in wanted.items() if found.get(key) == value}
    return same | {key: value for key, value in found.items() if key not in same}
