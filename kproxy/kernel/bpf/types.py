"""The socket table as values, and the interface to it.

The backend uses maps and programs only through these types, so that the kernel and a model in memory are
interchangeable. Layouts of keys and values are those of connect.c; addresses and ports are in network byte
order.
"""

import enum
from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec

from kproxy.addresses import Family

FRONTEND_KEY_BYTES = {Family.IPV4: 8, Family.IPV6: 20}
"""Key of a frontend: address, port, two bytes of zeros."""
FRONTEND_VALUE_BYTES = 12
"""Value of a frontend: first slot, number of slots, counter; three u32 in the machine's byte order."""
SLOT_BYTES = {Family.IPV4: 8, Family.IPV6: 20}
"""A slot: address, port, two bytes of zeros. Port 0 is an empty slot: the program leaves the socket alone."""
SLOT_WORDS = {Family.IPV4: 1, Family.IPV6: 3}
"""Distance of two slots in memory in words of 64 bits; the kernel rounds elements up to eight bytes."""


class BpfFailure(enum.StrEnum):
    """Kinds of failure, by what the caller has to do next."""

    MISSING = "missing"
    """The kernel, the node or a capability lacks something: a repetition is useless until that changes."""
    OCCUPIED = "occupied"
    """A program or a process of others is in the way."""
    FULL = "full"
    """A map has no room: replace the maps by larger ones (`SocketTable.grow`)."""
    REFUSED = "refused"
    """The verifier or the kernel refused the object: a defect of kproxy, or a kernel it does not know."""
    INTERRUPTED = "interrupted"
    """The kernel had no memory, or an object has gone: read the state again and repeat."""


class BpfError(Exception):
    """A request failed; `code` is the errno, 0 if the kernel was not asked.

    Writes before it may have been done in part.
    """

    def __init__(self, kind: BpfFailure, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.code = code


class Capacity(msgspec.Struct, frozen=True):
    """Room of one family's maps: numbers of frontends and of slots, at least 1 each."""

    frontends: int
    slots: int


class Sizes(msgspec.Struct, frozen=True):
    """Room of all maps; both families share the counters."""

    ipv4: Capacity
    ipv6: Capacity
    counters: int

    def of(self, family: Family) -> Capacity:
        """The room of one family."""
        return self.ipv4 if family is Family.IPV4 else self.ipv6


class Change(enum.StrEnum):
    """How an object differs from what is wanted."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"
    MODIFIED = "modified"


class Problem(msgspec.Struct, frozen=True, order=True):
    """Drift outside the maps: an object (a link, a pin, a program on the hook), and what is wrong with it."""

    object: str
    change: Change
    detail: str


class SocketMaps(Protocol):
    """One set of maps. Not for several threads at once. Every method raises BpfError.

    A set that `SocketTable.publish` has replaced is closed; its slots' memory is then released.
    """

    @property
    def sizes(self) -> Sizes:
        """The room of the maps as they were made."""
        ...

    def capacity(self, family: Family) -> Capacity:
        """The room of one family's maps."""
        ...

    def frontends(self, family: Family) -> dict[bytes, bytes]:
        """All frontends: values by keys."""
        ...

    def write_frontends(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace frontends one by one, in order; a program sees each old or new.

        Raises BpfError: FULL if there is no room for a new one; those before it are written.
        """
        ...

    def delete_frontends(self, family: Family, keys: Collection[bytes]) -> None:
        """Delete frontends one by one; one that is gone already is no error."""
        ...

    def fill(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace many frontends in few calls.

        Raises BpfError: FULL if there is no room; then some of them are written.
        """
        ...

    def slots(self, family: Family) -> memoryview:
        """The slots as memory that the programs read: items are words of 64 bits (format "Q").

        Slot n is the SLOT_WORDS[family] words from n * SLOT_WORDS[family] on; the bytes of a slot are native
        memory: `int.from_bytes(slot, sys.byteorder)` is its word. One assignment to an item is one aligned
        store, so that an IPv4 slot is always whole. An IPv6 slot is not: write it only while no frontend
        refers to it.
        """
        ...

    def connections(self, count: int) -> list[int]:
        """The first `count` counters: connections since the maps were made, summed over the processors.

        A counter is never reset; the owner of a new frontend remembers where it began.
        """
        ...

    def close(self) -> None:
        """Close the maps of a set that is not to be published; pins and links stay as they are."""
        ...


class SocketTable(SocketMaps, Protocol):
    """The maps that programs use or are to use, their pins, and the programs on a cgroup.

    Opening adopts the maps that a former process pinned, if they are whole; it changes nothing that serves
    traffic. Publish adopted maps at once, because links may still be over others, and new ones when they are
    filled. `publish` makes programs, pins and links be over these maps. A process that is killed at any
    moment leaves what the next one can open and publish, and traffic flows by the last published maps. A
    process that cannot open or publish has to end that (socket_table.remove_published): no process updates
    those maps.
    """

    @property
    def fresh(self) -> bool:
        """Whether opening made new, empty maps. False: they hold what a former process wrote."""
        ...

    @property
    def published(self) -> bool:
        """Whether `publish` has succeeded over the present maps, in this process.

        False after opening, also with adopted maps: their programs may be of another version, or detached.
        """
        ...

    def grow(self, sizes: Sizes) -> SocketMaps:
        """Make another set of maps with that room; it is empty, nothing uses it, and this one serves on.

        Counters keep their values if the set is published.
        """
        ...

    def publish(self, maps: SocketMaps | None = None) -> None:
        """Make `maps` of `grow`, or the present maps, those that serve: programs, pins, links.

        Links that exist get new programs in place: no connection sees none. The set replaced is closed, and
        this table then refers to the new one. What is right already is left alone, so that a repetition
        repairs whatever `problems` names, except programs of others.

        Raises BpfError, OCCUPIED if another program has the hook for itself. Traffic then flows as before,
        and a repetition is safe.
        """
        ...

    def problems(self) -> list[Problem]:
        """Differences from what `publish` makes: some system calls, independent of the number of frontends.

        Links detached or with other programs, pins removed or replaced, programs of others on the hook.
        """
        ...

    def remove(self) -> None:
        """Detach the programs and remove all pins, those of half-made sets too; then close."""
        ...

    def close(self) -> None:
        """Close everything; what is published serves on, also after the end of the process."""
        ...
