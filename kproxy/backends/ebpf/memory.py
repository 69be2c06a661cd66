"""The socket table in memory, for dry runs and tests: it behaves as the kernel's, and nothing serves."""

import struct
from collections.abc import Collection, Mapping

from kproxy.addresses import Family
from kproxy.backends.ebpf.render import WORD_BYTES, describe_frontend, describe_slots
from kproxy.kernel.bpf.types import (
    SLOT_WORDS,
    BpfError,
    BpfFailure,
    Capacity,
    Problem,
    Sizes,
    SocketMaps,
)

_VALUE = struct.Struct("=III")


class MemoryMaps:
    """One set of maps (implements SocketMaps)."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.counts = [0] * sizes.counters
        self.held: dict[Family, dict[bytes, bytes]] = {family: {} for family in Family}
        self.closed = False
        self._slots = {
            family: memoryview(bytearray(sizes.of(family).slots * SLOT_WORDS[family] * WORD_BYTES)).cast("Q")
            for family in Family
        }

    @property
    def sizes(self) -> Sizes:
        """The room of the maps."""
        return self._sizes

    def capacity(self, family: Family) -> Capacity:
        """The room of one family's maps."""
        return self._sizes.of(family)

    def frontends(self, family: Family) -> dict[bytes, bytes]:
        """All frontends."""
        return dict(self.held[family])

    def write_frontends(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace frontends. Raises BpfError, FULL without room."""
        held, most = self.held[family], self._sizes.of(family).frontends
        for key, value in frontends.items():
            if key not in held and len(held) >= most:
                raise BpfError(BpfFailure.FULL, f"map of frontends is full: {most} elements")
            held[key] = value

    def delete_frontends(self, family: Family, keys: Collection[bytes]) -> None:
        """Delete frontends."""
        for key in keys:
            self.held[family].pop(key, None)

    def fill(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace many frontends. Raises BpfError, FULL without room."""
        self.write_frontends(family, frontends)

    def slots(self, family: Family) -> memoryview:
        """The slots as words."""
        return self._slots[family]

    def connections(self, count: int) -> list[int]:
        """The first counters."""
        return self.counts[:count]

    def close(self) -> None:
        """Note that the maps are not to be used any more."""
        self.closed = True

    def contents(self, family: Family) -> dict[str, list[str]]:
        """What each slot of every frontend names, as the programs read it."""
        found: dict[str, list[str]] = {}
        words, memory = SLOT_WORDS[family], self._slots[family]
        for key, value in self.held[family].items():
            first, count, _ = _VALUE.unpack(value)
            content = bytes(memory[first * words : (first + count) * words])
            found[describe_frontend(key, family)] = describe_slots(content, family)
        return found


class MemorySocketTable:
    """The table (implements SocketTable), over `maps`; `live` is what serves, None before a publication."""

    def __init__(self, sizes: Sizes, *, fresh: bool = True) -> None:
        self.maps = self.make(sizes)
        self.live: MemoryMaps | None = None
        self.trouble: list[Problem] = []
        self.publications = 0
        self._fresh = fresh
        self._published = False

    def make(self, sizes: Sizes) -> MemoryMaps:
        """New, empty maps."""
        return MemoryMaps(sizes)

    @property
    def fresh(self) -> bool:
        """Whether nothing was adopted."""
        return self._fresh

    @property
    def published(self) -> bool:
        """Whether the present maps were published."""
        return self._published

    @property
    def sizes(self) -> Sizes:
        """The room of the present maps."""
        return self.maps.sizes

    def capacity(self, family: Family) -> Capacity:
        """The room of one family's maps."""
        return self.maps.capacity(family)

    def frontends(self, family: Family) -> dict[bytes, bytes]:
        """All frontends."""
        return self.maps.frontends(family)

    def write_frontends(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace frontends. Raises BpfError, FULL without room."""
        self.maps.write_frontends(family, frontends)

    def delete_frontends(self, family: Family, keys: Collection[bytes]) -> None:
        """Delete frontends."""
        self.maps.delete_frontends(family, keys)

    def fill(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace many frontends. Raises BpfError, FULL without room."""
        self.maps.fill(family, frontends)

    def slots(self, family: Family) -> memoryview:
        """The slots as words."""
        return self.maps.slots(family)

    def connections(self, count: int) -> list[int]:
        """The first counters."""
        return self.maps.connections(count)

    def grow(self, sizes: Sizes) -> MemoryMaps:
        """Make another set of maps."""
        return self.make(sizes)

    def publish(self, maps: SocketMaps | None = None) -> None:
        """Let maps serve."""
        if maps is not None:
            if not isinstance(maps, MemoryMaps):
                raise TypeError("maps of another table")
            maps.counts[: len(self.maps.counts)] = self.maps.counts
            self.maps.close()
            self.maps = maps
        self.live = self.maps
        self._published = True
        self.trouble = []
        self.publications += 1

    def problems(self) -> list[Problem]:
        """What was arranged."""
        return list(self.trouble)

    def remove(self) -> None:
        """Let nothing serve."""
        self.live, self._published = None, False

    def close(self) -> None:
        """Do nothing: what serves serves on."""
