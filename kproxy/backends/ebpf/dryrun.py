"""Dry run: the socket table in memory, with what the kernel's maps hold now.

The backends themselves run against it, as in the other modes, and the changes are those of the frontends.
"""

from collections.abc import Iterator

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign, counted
from kproxy.backends.ebpf.memory import MemorySocketTable
from kproxy.backends.ebpf.shared import FIRST_SIZES
from kproxy.kernel.bpf.types import SocketMaps


class DryRunSocketTable(MemorySocketTable):
    """The table (implements SocketTable) as a new process would find it; nothing is written to the kernel."""

    def __init__(self, kernel: SocketMaps | None) -> None:
        """Read the maps that serve; None if there are none. Raises BpfError."""
        super().__init__(FIRST_SIZES if kernel is None else kernel.sizes, fresh=kernel is None)
        if kernel is not None:
            for family in Family:
                self.maps.slots(family)[:] = kernel.slots(family)[:]
                self.maps.held[family] = kernel.frontends(family)
            self.live = self.maps
        self._before = {family: self._contents(family) for family in Family}

    def changes(self) -> Iterator[Change]:
        """The changes since the construction, one for each frontend."""
        for family in Family:
            before, now = self._before[family], self._contents(family)
            for key in before.keys() | now.keys():
                old, new = before.get(key), now.get(key)
                name = f"frontend {key}"
                if old is None and new is not None:
                    yield Change(name, Sign.ADD, _endpoints(new))
                elif new is None:
                    yield Change(name, Sign.REMOVE)
                elif old != new and old is not None:
                    yield Change(name, Sign.CHANGE, _difference(old, new))

    def _contents(self, family: Family) -> dict[str, list[str]]:
        return self.maps.contents(family)


def _endpoints(slots: list[str]) -> str:
    return counted(len(set(slots)), "endpoint")


def _difference(old: list[str], new: list[str]) -> str:
    lacks, extra = len(set(new).difference(old)), len(set(old).difference(new))
    if lacks or extra:
        return f"lacks {_counted(lacks)} and has {_counted(extra)} not wanted"
    return "other shares of its endpoints"


def _counted(count: int) -> str:
    return counted(count, "endpoint")
