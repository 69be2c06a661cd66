"""A tree of small chains in place of one long one, so that a packet crosses tens of rules, not thousands.

Lines are sorted by address, protocol and port. A chain with more than a few of them is divided by the next
four bits in which they differ, over and over, and a part of one or two lines stays where it is. Which chains
there are follows from the lines alone, so a change rewrites the few chains on its way from the root and
leaves all others as they are.
"""

import re
import socket
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kproxy.addresses import Family
from kproxy.backends.core import hashes
from kproxy.backends.iptables import names
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.shared import Entry, Known, nothing

LONGEST = 16
"""A chain with up to this many lines is not divided: crossing it costs no more than one more level would."""

INLINE = 2
"""So few lines get no chain of their own."""

_PLACE = re.compile(r"-A \S+ (?:-d ([^ /]+)/\d+ )?(?:.*?)-p (tcp|udp|sctp) .*-m \2 --dport (\d+) ")
_PROTOCOLS = ("tcp", "udp", "sctp")
_PORT_BITS = 16
_TAIL_BITS = 4 + _PORT_BITS
_LOCAL = "-m addrtype --dst-type LOCAL "


class _Group(NamedTuple):
    """Keys that begin with the same digits of four bits: `prefix` are the digits, `shift` the bits left."""

    prefix: int
    shift: int


@dataclass(frozen=True)
class Tree:
    """Chains that divide by destination address, then protocol and port; without addresses, by the latter.

    `prefix` begins the names of the tree's chains. Lines without an address are divided as well; what leads
    to them asks for a local address if `local` says so. `tail` ends the root chain. A chain of more than
    `longest` lines is divided.
    """

    root: ChainId
    prefix: str
    family: Family
    by_address: bool = True
    local: bool = False
    tail: tuple[str, ...] = ()
    longest: int = LONGEST

    def key(self, rule: str) -> int:
        """1 digit: whether it is without an address; then address, protocol (1 digit) and port.

        Raises ValueError for a line that has no protocol and destination port.
        """
        found = _PLACE.match(rule)
        if found is None:
            raise ValueError(f"not a line of a service: {rule!r}")
        address, protocol, port = found.groups()
        place = _PROTOCOLS.index(protocol) << _PORT_BITS | int(port)
        if address is None or not self.by_address:
            return 1 << self._address_bits + _TAIL_BITS | place
        return int.from_bytes(socket.inet_pton(self._socket_family, address)) << _TAIL_BITS | place

    def places(self, rule: str) -> bool:
        """Whether it has a protocol and a port, and does not lead into the tree."""
        return _PLACE.match(rule) is not None and f" -j {self.prefix}" not in rule

    def contains(self, chain: str) -> bool:
        """Told by the name."""
        return chain.startswith(self.prefix)

    def chains(
        self, entries: Sequence[Entry], at: Collection[int] | None = None, known: Known = nothing
    ) -> dict[str, tuple[str, ...]]:
        """The chains with their rules: all of them, or without known ones that no key leads through."""
        keys = None if at is None else sorted(at)
        found: dict[str, tuple[str, ...]] = {}

        def wanted(chain: str, first: int, past: int) -> bool:
            return keys is None or _any_between(keys, first, past) or not known(chain)

        self._divide(self.root[1], entries, 0, len(entries), wanted, found)
        found[self.root[1]] += self.tail
        return found

    def inner(self, rules: Iterable[str]) -> Iterator[str]:
        """The chains of the tree that rules lead to."""
        for rule in rules:
            target = rule.rsplit(" ", 1)[1].rstrip("\n")
            if target.startswith(self.prefix):
                yield target

    @property
    def _address_bits(self) -> int:
        return (32 if self.family is Family.IPV4 else 128) if self.by_address else 0

    @property
    def _socket_family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.family is Family.IPV4 else socket.AF_INET6

    def _divide(
        self,
        chain: str,
        entries: Sequence[Entry],
        start: int,
        end: int,
        wanted: Callable[[str, int, int], bool],
        found: dict[str, tuple[str, ...]],
    ) -> None:
        skip = len(f"-A {self.root[1]} ")
        differing = entries[start][0] ^ entries[end - 1][0] if end > start else 0
        if end - start <= self.longest or not differing:
            found[chain] = tuple([f"-A {chain} {entry[3][skip:]}" for entry in entries[start:end]])
            return
        shift = (differing.bit_length() - 1) // 4 * 4
        rules: list[str] = []
        while start < end:
            group = _Group(entries[start][0] >> shift, shift)
            first, past = group.prefix << shift, group.prefix + 1 << shift
            stop = bisect_left(entries, (past,), start, end)
            if stop - start <= INLINE:
                rules += [f"-A {chain} {entry[3][skip:]}" for entry in entries[start:stop]]
            else:
                match, name = self._describe(group)
                rules.append(f"-A {chain} {match}-j {name}\n")
                if wanted(name, first, past):
                    self._divide(name, entries, start, stop, wanted, found)
            start = stop
        found[chain] = tuple(rules)

    def _describe(self, group: _Group) -> tuple[str, str]:
        """What matches the group's packets, and the name of its chain."""
        key = group.prefix << group.shift
        length = self._address_bits + _TAIL_BITS - group.shift
        if key >> self._address_bits + _TAIL_BITS:
            told, match, local = "NODE" if self.by_address else "", "", _LOCAL if self.local else ""
        else:
            told, match, local = *self._network(key, min(length, self._address_bits)), ""
        length -= self._address_bits
        if length <= 0:
            match += local
        else:
            protocol = _PROTOCOLS[key >> _PORT_BITS & 15]
            match += f"-p {protocol} {local}"
            told = f"{told}-{protocol}" if told else protocol
            if length > 4:
                low = key & 0xFFFF
                high = low | (1 << group.shift) - 1
                match += f"-m {protocol} --dport {low}" + (f":{high} " if high > low else " ")
                told += f"-{low}-{high}"
        if len(told) > names.LONGEST_CHAIN_NAME - len(self.prefix) or ":" in told:
            told = hashes.digest(match)
        return match, f"{self.prefix}{told}"

    def _network(self, key: int, bits: int) -> tuple[str, str]:
        """A prefix of addresses and what matches it; of no bits, nothing."""
        if bits <= 0:
            return "ALL", ""
        packed = (key >> _TAIL_BITS).to_bytes(self._address_bits // 8)
        network = f"{socket.inet_ntop(self._socket_family, packed)}/{bits}"
        return network, f"-d {network} "


def _any_between(keys: Sequence[int], first: int, past: int) -> bool:
    place = bisect_left(keys, first)
    return place < len(keys) and keys[place] < past
