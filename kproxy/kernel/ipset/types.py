"""Sets and their entries as values, and what can be asked of a kernel that has them."""

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from kproxy.addresses import Family

MAX_ELEMENTS = 1 << 24
"""The limit that our sets are created with. It reserves nothing: the kernel's hash grows with its entries."""


class SetKind(enum.StrEnum):
    """The set types in use, under the names ipset gives them."""

    IP = "hash:ip"
    IP_PORT = "hash:ip,port"
    IP_PORT_IP = "hash:ip,port,ip"
    IP_PORT_NET = "hash:ip,port,net"


class SetSpec(msgspec.Struct, frozen=True, order=True, gc=False):
    """A set to be: name (at most 31 bytes), type and family."""

    name: str
    kind: SetKind
    family: Family


class Entry(msgspec.Struct, frozen=True, order=True, gc=False):
    """An entry of a set; which fields count depends on the set's type.

    `protocol` is TCP, UDP or SCTP. `other` is the second address (hash:ip,port,ip) or CIDR
    (hash:ip,port,net). Addresses are canonical.
    """

    ip: str
    protocol: str = ""
    port: int = 0
    other: str = ""

    def __str__(self) -> str:
        """As `ipset save` prints it: `10.0.0.1,tcp:80,10.0.0.1`; a host's CIDR without its length."""
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
    """What the kernel tells of a set without its entries. `type` is its name for the set type."""

    name: str
    type: str
    family: Family | None
    max_elements: int
    entries: int
    references: int


class IpsetError(Exception):
    """Nothing could be asked or changed, or it is not known what was; the message names the set."""


class IpsetUnavailable(IpsetError):
    """The kernel has no sets, or this process may not use them."""


class Ipset(Protocol):
    """A kernel with sets, in one network namespace."""

    def headers(self) -> dict[str, SetHeader]:
        """Every set by name, whoever made it. Raises IpsetError."""

    def create(self, spec: SetSpec) -> None:
        """Create a set with MAX_ELEMENTS; one that exists with the same properties is left alone.

        Raises IpsetError if it exists with others, or cannot be created.
        """

    def destroy(self, name: str) -> None:
        """Destroy a set; one that does not exist is no error. Raises IpsetError if a rule refers to it."""

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """All entries of a set; none if there is no such set. Raises IpsetError."""

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Carry out the changes in order, each on its own.

        Adding what is there and removing what is not is done already.

        Returns the errno of each refused one, by its index in `changes`. Raises IpsetError if the outcome of
        any is unknown.
        """
