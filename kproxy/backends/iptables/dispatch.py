"""A tree of small chains in place of one long chain, so that a packet crosses tens of rules, not thousands.

Lines are sorted by address, protocol and port. A chain with too many lines is divided recursively by the next
four bits in which they differ; a part of one or two lines stays in the parent. The chains depend only on the
lines, so a change rewrites the few chains on the path from the root and no others.
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
"""A part with up to this many lines gets no chain of its own."""

_PLACE = re.compile(r"-A \S+ (?:-d ([^ /]+)/\d+ )?(?:.*?)-p (tcp|udp|sctp) .*-m \2 --dport (\d+) ")
_PROTOCOLS = ("tcp", "udp", "sctp")
_PORT_BITS = 16
_TAIL_BITS = 4 + _PORT_BITS
_LOCAL = "-m addrtype --dst-type LOCAL "


class _Group(NamedTuple):
    """Keys with the same leading four-bit digits: `prefix` are these, `shift` the number of other bits."""

    prefix: int
    shift: int


@dataclass(frozen=True)
class Tree:
    """Chains that divide by destination address, if `by_address`, then by protocol and port.

    `prefix` begins the names of the tree's chains. Lines without an address are divided as well; the rules
    that lead to them match local addresses if `local` is set. `tail` are the last rules of the root chain. A
    chain of more than `longest` lines is divided.
    """

    root: ChainId
    prefix: str
    family: Family
    by_address: bool = True
    local: bool = False
    tail: tuple[str, ...] = ()
    longest: int = LONGEST

    def key(self, rule: str) -> int:
        """Return the sort key of a line: 1 if it has no address, then address, protocol (1 digit) and port.

        Raises ValueError for a line without protocol and destination port.
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
        """Whether a rule has a protocol and a port, and does not jump into the tree."""
        return _PLACE.match(rule) is not None and f" -j {self.prefix}" not in rule

    def contains(self, chain: str) -> bool:
        """Whether the chain's name has the prefix of the tree."""
        return chain.startswith(self.prefix)

    def chains(
        self, entries: Sequence[Entry], at: Collection[int] | None = None, known: Known = nothing
    ) -> dict[str, tuple[str, ...]]:
        """The chains with their rules; with `at`, without `known` chains that contain none of these keys."""
        keys = None if at is None else sorted(at)
        found: dict[str, tuple[str, ...]] = {}

        def wanted(chain: str, first: int, past: int) -> bool:
            return keys is None or _any_between(keys, first, past) or not known(chain)

        self._divide(self.root[1], entries, 0, len(entries), wanted, found)
        found[self.root[1]] += self.tail
        return found

    def inner(self, rules: Iterable[str]) -> Iterator[str]:
        """The chains of the tree that rules jump to."""
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
        """Return the match of the group's packets, and the name of its chain."""
        key = group.prefix << group.shift
        length = self._address_bits + _TAIL_BITS - group.shift
        if key >> self._address_bits + _TAIL_BITS:
            name, match, local = "NODE" if self.by_address else "", "", _LOCAL if self.local else ""
        else:
            name, match, local = *self._network(key, min(length, self._address_bits)), ""
        length -= self._address_bits
        if length <= 0:
            match += local
        else:
            protocol = _PROTOCOLS[key >> _PORT_BITS & 15]
            match += f"-p {protocol} {local}"
            name = f"{name}-{protocol}" if name else protocol
            if length > 4:
                low = key & 0xFFFF
                high = low | (1 << group.shift) - 1
                match += f"-m {protocol} --dport {low}" + (f":{high} " if high > low else " ")
                name += f"-{low}-{high}"
        if len(name) > names.LONGEST_CHAIN_NAME - len(self.prefix) or ":" in name:
            name = hashes.digest(match)
        return match, f"{self.prefix}{name}"

    def _network(self, key: int, bits: int) -> tuple[str, str]:
        """Return the network of a key's first `bits` address bits, and its match; without bits "ALL", ""."""
        if bits <= 0:
            return "ALL", ""
        packed = (key >> _TAIL_BITS).to_bytes(self._address_bits // 8)
        network = f"{socket.inet_ntop(self._socket_family, packed)}/{bits}"
        return network, f"-d {network} "


def _any_between(keys: Sequence[int], first: int, past: int) -> bool:
    place = bisect_left(keys, first)
    return place < len(keys) and keys[place] < past
