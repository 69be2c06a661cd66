"""The desired elements, and the service that owns each.

Two services may want the same element: an endpoint behind both has one element in the hairpin set, and a node
port may have the same frontend as an external address of the node. The owner does not depend on the order of
events.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping

from kproxy.backends.nftables import names
from kproxy.backends.nftables.render import Element
from kproxy.backends.nftables.runs import Runs, elements_of, run_of

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


def value_at(contents: Contents, slot: Slot) -> str | None:
    """What a slot holds: a value, or the run of a frontend; None for nothing."""
    container, key = slot
    if names.is_numbered(container):
        return run_of(contents[container], key) or None
    return contents[container].get(key)


def elements_at(slot: Slot, value: str | None) -> dict[str, str]:
    """The elements of a slot that holds this, value by key."""
    container, key = slot
    if value is None:
        return {}
    return dict(elements_of(key, value)) if names.is_numbered(container) else {key: value}


class ElementOwners:
    """The elements of all services; `wanted` are those of the owners, to be held by the kernel."""

    def __init__(self) -> None:
        self.wanted = no_contents()
        self._owners: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._rivals: dict[Slot, dict[str, Element]] = {}

    def replace(self, service: str, old: Iterable[Element], new: Iterable[Element]) -> set[Slot]:
        """Replace a service's elements; return the slots of the old and the new ones."""
        slots: set[Slot] = set()
        for element in old:
            self._drop(service, element)
            slots.add((element.container, element.key))
        for element in new:
            self._add(service, element)
            slots.add((element.container, element.key))
        return slots

    def owner(self, slot: Slot) -> str | None:
        """The service whose element a slot is to hold, or None."""
        return self._owners[slot[0]].get(slot[1])

    def _add(self, service: str, element: Element) -> None:
        container, key = element.container, element.key
        owners = self._owners[container]
        if key not in owners:
            owners[key] = service
            self._put(container, key, element.value)
            if element.late:
                self._rivals[container, key] = {service: element}
            return
        rivals = self._rivals.setdefault((container, key), {})
        if not rivals:
            rivals[owners[key]] = Element(container, key, value_at(self.wanted, (container, key)) or "")
        rivals[service] = element
        self._settle(container, key, rivals)

    def _drop(self, service: str, element: Element) -> None:
        container, key = element.container, element.key
        rivals = self._rivals.get((container, key))
        if rivals is not None:
            rivals.pop(service, None)
            if rivals:
                self._settle(container, key, rivals)
                return
            del self._rivals[container, key]
        self._owners[container].pop(key, None)
        self._put(container, key, None)

    def _settle(self, container: str, key: str, rivals: Mapping[str, Element]) -> None:
        service, element = min(rivals.items(), key=lambda item: (item[1].late, item[0]))
        self._owners[container][key] = service
        self._put(container, key, element.value)

    def _put(self, container: str, key: str, value: str | None) -> None:
        elements = self.wanted[container]
        if isinstance(elements, Runs):
            elements.set_run(key, value or "")
        elif value is None:
            elements.pop(key, None)
        else:
            elements[key] = value
