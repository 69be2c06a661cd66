"""One set of maps as the backend uses it: frontends and slots of both families, and the counters."""

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from kproxy.addresses import Family
from kproxy.kernel.bpf import maps
from kproxy.kernel.bpf.elf import MapDeclaration
from kproxy.kernel.bpf.pins import open_pin
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Capacity, Sizes

FRONTENDS = {Family.IPV4: "frontends4", Family.IPV6: "frontends6"}
SLOTS = {Family.IPV4: "slots4", Family.IPV6: "slots6"}
COUNTERS = "connections"
NAMES = (*FRONTENDS.values(), *SLOTS.values(), COUNTERS)
"""Names in connect.c of the maps that are replaced together."""


class MapSet:
    """`SocketMaps` in the kernel; owns the descriptors. `pins` is the directory of its pins, if any."""

    def __init__(
        self, descriptors: Mapping[str, int], pins: Path | None = None, *, writable: bool = True
    ) -> None:
        """Raises BpfError; the descriptors are then closed."""
        self.descriptors = dict(descriptors)
        self.pins = pins
        self._slots: dict[Family, maps.Slots] = {}
        try:
            self._hashes = {
                family: maps.HashMap(name, descriptors[name]) for family, name in FRONTENDS.items()
            }
            for family, name in SLOTS.items():
                self._slots[family] = maps.Slots(descriptors[name], writable=writable)
            self._counters = maps.Counters(COUNTERS, descriptors[COUNTERS])
            ipv4, ipv6 = (self._measured(family) for family in (Family.IPV4, Family.IPV6))
            self._sizes = Sizes(ipv4, ipv6, self._counters.entries)
        except BpfError:
            self.close()
            raise

    @classmethod
    def make(
        cls, declarations: Mapping[str, MapDeclaration], sizes: Sizes, counters: "MapSet | None" = None
    ) -> "MapSet":
        """New, empty maps; with the counters of another set if those suffice. Raises BpfError."""
        entries = {COUNTERS: sizes.counters}
        for family in Family:
            entries[FRONTENDS[family]] = sizes.of(family).frontends
            entries[SLOTS[family]] = sizes.of(family).slots
        made: dict[str, int] = {}
        try:
            if counters is not None and counters.sizes.counters >= sizes.counters:
                made[COUNTERS] = os.dup(counters.descriptors[COUNTERS])
            for name in NAMES:
                if name not in made:
                    made[name] = maps.create(name, declarations[name], entries[name])
        except BpfError:
            close_all(made)
            raise
        return cls(made)

    @classmethod
    def adopt(
        cls, declarations: Mapping[str, MapDeclaration], pins: Path, *, writable: bool = True
    ) -> "MapSet":
        """The maps that are pinned in a directory.

        Raises BpfError, INTERRUPTED if one is missing, REFUSED if one is not as declared.
        """
        found: dict[str, int] = {}
        try:
            for name in NAMES:
                # The kernel gives no memory of a map that is opened for reading only.
                opened_writable = writable or name in SLOTS.values()
                found[name] = open_map(name, declarations[name], pins / name, writable=opened_writable)
        except BpfError:
            close_all(found)
            raise
        return cls(found, pins, writable=writable)

    @property
    def sizes(self) -> Sizes:
        """The room of the maps as they were made."""
        return self._sizes

    def capacity(self, family: Family) -> Capacity:
        """The room of one family's maps."""
        return self._sizes.of(family)

    def frontends(self, family: Family) -> dict[bytes, bytes]:
        """All frontends: values by keys. Raises BpfError."""
        return self._hashes[family].read()

    def write_frontends(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace frontends one by one, in order. Raises BpfError, FULL without room."""
        self._hashes[family].write(frontends)

    def delete_frontends(self, family: Family, keys: Collection[bytes]) -> None:
        """Delete frontends one by one; one that is gone already is no error. Raises BpfError."""
        self._hashes[family].delete(keys)

    def fill(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace many frontends in few calls. Raises BpfError; then some are written."""
        self._hashes[family].fill(frontends)

    def slots(self, family: Family) -> memoryview:
        """The slots as words of memory that the programs read; released when the set is closed."""
        return self._slots[family].words

    def connections(self, count: int) -> list[int]:
        """The first `count` counters, or all if there are fewer. Raises BpfError."""
        return self._counters.read(count)

    def take_counts(self, other: "MapSet") -> None:
        """Begin with another set's counts; nothing if both have the same counters. Raises BpfError."""
        numbers = [maps.MapInfo(each.descriptors[COUNTERS]).number for each in (self, other)]
        if numbers[0] != numbers[1]:
            count = min(self.sizes.counters, other.sizes.counters)
            self._counters.start_at(other.connections(count))

    def close(self) -> None:
        """Close the descriptors and release the memory; pins stay."""
        for slots in self._slots.values():
            slots.close()
        self._slots = {}
        close_all(self.descriptors)
        self.descriptors = {}

    def _measured(self, family: Family) -> Capacity:
        names = FRONTENDS[family], SLOTS[family]
        frontends, slots = (maps.MapInfo(self.descriptors[name]).entries for name in names)
        return Capacity(frontends, slots)


def open_map(name: str, declaration: MapDeclaration, path: Path, *, writable: bool = True) -> int:
    """A descriptor of a pinned map. Raises BpfError, REFUSED if it is not as declared."""
    descriptor = open_pin(path, read_only=not writable)
    try:
        if maps.MapInfo(descriptor).is_as(declaration):
            return descriptor
    except BpfError as error:
        os.close(descriptor)
        raise BpfError(BpfFailure.REFUSED, f"pin {path}: {error.message}", error.code) from error
    os.close(descriptor)
    raise BpfError(BpfFailure.REFUSED, f"pin {path}: not the map {name} as this version declares it")


def close_all(descriptors: Mapping[str, int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
