"""Sets and their entries as values, and the interface to ipset."""

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from kproxy.addresses import Family

MAX_ELEMENTS = 1 << 24
"""The limit of the sets that kproxy creates. It reserves no memory: the hash grows with its entries."""


class SetKind(enum.StrEnum):
    """The set types in use, by ipset's names."""

    IP = "hash:ip"
    IP_PORT = "hash:ip,port"
    IP_PORT_IP = "hash:ip,port,ip"
    IP_PORT_NET = "hash:ip,port,net"


class SetSpec(msgspec.Struct, frozen=True, order=True, gc=False):
    """Specification of a set: name (at most 31 bytes), type and family."""

    name: str
    kind: SetKind
    family: Family


class Entry(msgspec.Struct, frozen=True, order=True, gc=False):
    """An entry of a set; the set's type decides which fields are used.

    `protocol` is TCP, UDP or SCTP. `other` is the second address (hash:ip,port,ip) or CIDR
    (hash:ip,port,net). Addresses are canonical.
    """

    ip: str
    protocol: str = ""
    port: int = 0
    other: str = ""

    def __str__(self) -> str:
        """The entry as `ipset save` prints it: `10.0.0.1,tcp:80,10.0.0.1`; a host's CIDR without length."""
        parts = [self.ip]
        if self.protocol:
            parts.append(f"{self.protocol.lower()}:{self.port}")
        if self.other:
            parts.append(self.other.removesuffix("/128" if ":" in self.other else "/32"))
        return ",".join(parts)


class EntryChange(msgspec.Struct, frozen=True, gc=False):
    """One entry to add to a set, or to remove from it."""

    set: SetSpec
    entry: Entry
    add: bool


class SetHeader(msgspec.Struct, frozen=True):
    """The kernel's description of a set without its entries. `type` is the kernel's name of the type."""

    name: str
    type: str
    family: Family | None
    max_elements: int
    entries: int
    references: int


class IpsetError(Exception):
    """A request failed or its outcome is unknown; the message names the set."""


class IpsetUnavailable(IpsetError):
    """The kernel has no sets, or this process may not use them."""


class Ipset(Protocol):
    """ipset in one network namespace."""

    def headers(self) -> dict[str, SetHeader]:
        """Return every set by name, foreign ones too. Raises IpsetError."""

    def create(self, spec: SetSpec) -> None:
        """Create a set with MAX_ELEMENTS; one that exists with the same properties is left alone.

        Raises IpsetError if it exists with other properties, or cannot be created.
        """

    def destroy(self, name: str) -> None:
        """Destroy a set; one that does not exist is no error. Raises IpsetError if a rule refers to it."""

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """Return all entries of a set; empty if it does not exist. Raises IpsetError."""

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Apply the changes in order, each on its own.

        It is no error to add an existing entry or to remove a missing one.

        Returns the errno of each refused one, by its index in `changes`. Raises IpsetError if the outcome of
        any is unknown.
        """
