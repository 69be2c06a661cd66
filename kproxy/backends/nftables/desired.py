"""What all services want of the table, and what of it the table is not known to hold.

No kernel is asked here: what the table holds comes in as a value, and what is to be written goes out as one.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from kproxy.backends.nftables.chains import Chain, leads_to
from kproxy.backends.nftables.element_owners import Contents, ElementOwners, Slot
from kproxy.backends.nftables.render import NOTHING, ServiceObjects

LEADING = ("cluster-", "external-", "local-")
"""Class chains, which lead to those that pick."""

HeldChains = Mapping[str, Chain | None]
"""Rules by chain, None where these are unknown."""


class Change(msgspec.Struct, frozen=True):
    """What one transaction writes: chains, the keys that go and the elements that come, by container."""

    chains: Mapping[str, Chain]
    doomed: Mapping[str, Sequence[str]] = {}
    fresh: Mapping[str, Mapping[str, str]] = {}


class DesiredElements:
    """The objects of every service; `pending` are the slots, by key of service, that may have to be written.

    A service can be pending without slots: only chains of it are to be written.
    """

    def __init__(self) -> None:
        self.chains: dict[str, Chain] = {}
        self.pending: dict[str, set[Slot]] = {}
        self._ledger = ElementOwners()
        self._objects: dict[str, ServiceObjects] = {}
        self._uses: Counter[str] = Counter()

    @property
    def elements(self) -> Contents:
        """What every container shall hold."""
        return self._ledger.wanted

    def owner(self, slot: Slot) -> str | None:
        """The service whose element a slot shall hold."""
        return self._ledger.owner(slot)

    def want(self, key: str, new: ServiceObjects) -> bool:
        """Let a service want these objects instead of what it wanted; False if they are the same."""
        old = self._objects.get(key, NOTHING)
        if old == new:
            return False
        slots = self._ledger.replace(key, old.elements, new.elements)
        self.pending.setdefault(key, set()).update(slots)
        for name, rules in new.chains.items():
            self._uses[name] += 1
            self.chains[name] = rules
        for name in old.chains:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name], self.chains[name]
        if new.elements:
            self._objects[key] = new
        else:
            self._objects.pop(key, None)
        return True

    def compare(self, held: Contents, chains: HeldChains) -> None:
        """Let just those services be pending that a table with these contents does not serve as wanted.

        What is equal is held in the very strings that are wanted, which spares memory.
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

    def pieces(self, keys: Iterable[str], limit: int) -> Iterator[list[str]]:
        """Services that are pending, in groups of about `limit` elements."""
        group: list[str] = []
        size = 0
        for key in keys:
            group.append(key)
            size += len(self.pending[key])
            if size >= limit:
                yield group
                group, size = [], 0
        if group:
            yield group

    def change(self, keys: Sequence[str], held: Contents, chains: HeldChains) -> Change:
        """What gives a group of pending services what they want, in a table with these contents."""
        slots = set().union(*(self.pending[key] for key in keys))
        missing: dict[str, Chain] = {}
        # What a service gives up may be another's from now on, which is perhaps not written yet.
        for key in {*keys, *(owner for slot in slots if (owner := self.owner(slot)))}:
            objects = self._objects.get(key, NOTHING)
            missing |= {name: rules for name, rules in objects.chains.items() if chains.get(name) != rules}
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
        return Change(missing, doomed, fresh)

    def classes(self, chains: HeldChains) -> dict[str, Chain]:
        """The class chains that a table has with other rules: fixed chains obey the mark that they set."""
        return {
            name: rules
            for name, rules in self.chains.items()
            if name.startswith(LEADING)
            and chains.get(name, rules) != rules
            and leads_to(rules) <= chains.keys()
        }

    def strangers(self, container: str, held: Contents, refused: Collection[str]) -> list[str]:
        """The keys that no service wants, but for those that services keep whose wishes were refused."""
        kept = {slot for key in refused for slot in self.pending.get(key, ())}
        wanted = self.elements[container]
        return [key for key in held[container] if key not in wanted and (container, key) not in kept]


def _shared(found: dict[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """What was found, in the very strings that are wanted where it is equal."""
    same = {key: value for key, value in wanted.items() if found.get(key) == value}
    return same | {key: value for key, value in found.items() if key not in same}
