"""The desired elements, and the service that owns each.

Two services may want the same element: an endpoint behind both has one entry in the hairpin set, and a node
port may have the same frontend as an external address of the node. The owner does not depend on the order of
events.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping

from kproxy.backends.nftables import names
from kproxy.backends.nftables.render import Element, Entry, Numbered
from kproxy.backends.nftables.runs import Run, Runs, run_of

Slot = tuple[str, str]
"""(map or set, key); in a numbered map the frontend stands for all its elements."""

Contents = defaultdict[str, MutableMapping[str, str]]
"""Map or set -> key -> value ("" in sets)."""


class _Contents(Contents):
    def __missing__(self, name: str) -> MutableMapping[str, str]:
        made: MutableMapping[str, str] = Runs() if names.is_numbered(name) else {}
        self[name] = made
        return made


def no_contents() -> Contents:
    """Return empty contents."""
    return _Contents()


def value_at(contents: Contents, slot: Slot) -> str | Run | None:
    """What a slot holds: a value, or the run of a frontend; None for nothing."""
    container, key = slot
    if names.is_numbered(container):
        return run_of(contents[container], key) or None
    return contents[container].get(key)


def values_by_key(slot: Slot, value: str | Run | None) -> Iterator[tuple[str, str]]:
    """The keys and values of the elements of a slot that holds this."""
    _, key = slot
    if isinstance(value, str):
        yield key, value
        return
    for number, each in enumerate(value or ()):
        if each is not None:
            yield f"{key} . {number}", each


class ElementOwners:
    """The elements of all services; `wanted` are those of the owners, to be held by the kernel."""

    def __init__(self) -> None:
        self.wanted = no_contents()
        self._owners: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._rivals: dict[Slot, dict[str, Entry]] = {}

    def replace(self, service: str, old: Iterable[Entry], new: Iterable[Entry]) -> set[Slot]:
        """Replace a service's elements; return the slots of the old and the new ones."""
        slots: set[Slot] = set()
        for entry in old:
            self._drop(service, entry)
            slots.add((entry.container, entry.key))
        for entry in new:
            self._add(service, entry)
            slots.add((entry.container, entry.key))
        return slots

    def owner(self, slot: Slot) -> str | None:
        """The service whose element a slot is to hold, or None."""
        return self._owners[slot[0]].get(slot[1])

    def _add(self, service: str, entry: Entry) -> None:
        container, key = entry.container, entry.key
        owners = self._owners[container]
        if key not in owners:
            owners[key] = service
            self._set(entry)
            if entry.late:
                self._rivals[container, key] = {service: entry}
            return
        rivals = self._rivals.setdefault((container, key), {})
        if not rivals:
            rivals[owners[key]] = self._wanted(container, key)
        rivals[service] = entry
        self._settle(container, key, rivals)

    def _drop(self, service: str, entry: Entry) -> None:
        container, key = entry.container, entry.key
        rivals = self._rivals.get((container, key))
        if rivals is not None:
            rivals.pop(service, None)
            if rivals:
                self._settle(container, key, rivals)
                return
            del self._rivals[container, key]
        self._owners[container].pop(key, None)
        elements = self.wanted[container]
        if isinstance(elements, Runs):
            elements.set_run(key, ())
        else:
            elements.pop(key, None)

    def _settle(self, container: str, key: str, rivals: Mapping[str, Entry]) -> None:
        service, entry = min(rivals.items(), key=lambda item: (item[1].late, item[0]))
        self._owners[container][key] = service
        self._set(entry)

    def _set(self, entry: Entry) -> None:
        elements = self.wanted[entry.container]
        if isinstance(entry, Element):
            elements[entry.key] = entry.value
        elif isinstance(elements, Runs):
            elements.set_run(entry.key, entry.value)

    def _wanted(self, container: str, key: str) -> Entry:
        elements = self.wanted[container]
        if isinstance(elements, Runs):
            return Numbered(container, key, elements.run(key))
        return Element(container, key, elements[key])
