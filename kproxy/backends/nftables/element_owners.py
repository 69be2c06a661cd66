"""The desired elements, and the service that owns each.

Two services may want the same element: an endpoint behind both has one entry in the hairpin set, and a node
port may have the same frontend as an external address of the node. The owner does not depend on the order of
events.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kproxy.backends.nftables.render import Element

Slot = tuple[str, str]
"""(map or set, key)."""

Contents = defaultdict[str, dict[str, str]]
"""Map or set -> key -> value ("" in sets)."""


def no_contents() -> Contents:
    """Return empty contents."""
    return defaultdict(dict)


class ElementOwners:
    """The elements of all services; `wanted` are those of the owners, to be held by the kernel."""

    def __init__(self) -> None:
        self.wanted: Contents = no_contents()
        self._owners: dict[str, dict[str, str]] = no_contents()
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
            self.wanted[container][key] = element.value
            if element.late:
                self._rivals[container, key] = {service: element}
            return
        rivals = self._rivals.setdefault((container, key), {})
        if not rivals:
            rivals[owners[key]] = Element(container, key, self.wanted[container][key])
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
        self.wanted[container].pop(key, None)

    def _settle(self, container: str, key: str, rivals: Mapping[str, Element]) -> None:
        service, element = min(rivals.items(), key=lambda item: (item[1].late, item[0]))
        self._owners[container][key] = service
        self.wanted[container][key] = element.value
