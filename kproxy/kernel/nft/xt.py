"""Matches and targets of iptables within nftables' rules, as far as they can be run there.

iptables-nft writes some matches as expressions and others as `match` with the kernel's own structure of it.
In a table that also has rules written with nft, its programs print nothing of most chains, so these are
decoded here. Layouts are those of include/uapi/linux/netfilter/xt_*.h, and of ipt_*.h.
"""

import struct
from collections.abc import Callable, Mapping

from kproxy.kernel.nft.operations import (
    Between,
    Bitwise,
    Byteorder,
    Compare,
    Foreign,
    HasState,
    HasType,
    Load,
    Masquerade,
    Note,
    Numgen,
    Operation,
    Queue,
    Reject,
    Store,
)

_STATE_FLAG = 1  # XT_CONNTRACK_STATE
_FLAGS = struct.Struct("=HHH")
_FLAGS_AT = 146
_TYPES = struct.Struct("=HHI")
_INTERFACES = 0xC  # XT_ADDRTYPE_LIMIT_IFACE_IN, _OUT
_MARK = struct.Struct("=IIB")
_TCP = struct.Struct("=HHHHBBBB")
_UDP = struct.Struct("=HHHHB")
_STATISTIC = struct.Struct("=HHI")
_SET_MARK = struct.Struct("=II")
_PORTS = (0, 0xFFFF)
_REGISTER = 12
_OF_SOURCE, _OF_DESTINATION, _OF_FLAGS = 1, 2, 4

Decoder = Callable[[bytes], tuple[Operation, ...] | None]


def match(name: str, info: bytes) -> tuple[Operation, ...]:
    """The operations of a match; one that is not modelled if it is not known."""
    return _decoded(_MATCHES, name, info, f"xt match {name}")


def target(name: str, info: bytes) -> tuple[Operation, ...]:
    """The operations of a target; one that is not modelled if it is not known."""
    return _decoded(_TARGETS, name, info, f"xt target {name}")


def _decoded(known: Mapping[str, Decoder], name: str, info: bytes, words: str) -> tuple[Operation, ...]:
    decode = known.get(name)
    try:
        found = None if decode is None else decode(info)
    except struct.error:
        found = None
    return (Foreign(words),) if found is None else found


def _conntrack(info: bytes) -> tuple[Operation, ...] | None:
    flags, inverted, states = _FLAGS.unpack_from(info, _FLAGS_AT)
    if flags != _STATE_FLAG:
        return None
    return (HasState(states, inverted=bool(inverted & _STATE_FLAG)),)


def _addrtype(info: bytes) -> tuple[Operation, ...] | None:
    source, destination, flags = _TYPES.unpack_from(info)
    if flags & _INTERFACES:
        return None
    found = []
    for types, what, bit in ((source, "saddr", 1), (destination, "daddr", 2)):
        if types:
            found.append(HasType(what, types, inverted=bool(flags & bit)))
    return tuple(found)


def _mark(info: bytes) -> tuple[Operation, ...]:
    mark, mask, inverted = _MARK.unpack_from(info)
    return (
        Load(_REGISTER, "meta mark", 4, "meta mark"),
        Bitwise(_REGISTER, _REGISTER, struct.pack("=I", mask), bytes(4)),
        Compare(_REGISTER, "!=" if inverted else "==", struct.pack("=I", mark)),
    )


def _tcp(info: bytes) -> tuple[Operation, ...] | None:
    *ports, option, mask, flags, inverted = _TCP.unpack_from(info)
    if option:
        return None
    found = _port_ranges(ports, inverted)
    if mask:
        found += (
            Load(_REGISTER, "@th 13", 1, "tcp flags"),
            Bitwise(_REGISTER, _REGISTER, bytes([mask]), b"\0"),
            Compare(_REGISTER, "!=" if inverted & _OF_FLAGS else "==", bytes([flags])),
        )
    return found


def _udp(info: bytes) -> tuple[Operation, ...]:
    *ports, inverted = _UDP.unpack_from(info)
    return _port_ranges(ports, inverted)


def _port_ranges(ports: list[int], inverted: int) -> tuple[Operation, ...]:
    found: tuple[Operation, ...] = ()
    sides = (("sport", ports[:2], _OF_SOURCE), ("dport", ports[2:], _OF_DESTINATION))
    for side, (first, last), bit in sides:
        if (first, last) != _PORTS or inverted & bit:
            bounds = first.to_bytes(2, "big"), last.to_bytes(2, "big")
            found += (
                Load(_REGISTER, f"th {side}", 2, f"th {side}"),
                Between(_REGISTER, *bounds, inverted=bool(inverted & bit)),
            )
    return found


def _statistic(info: bytes) -> tuple[Operation, ...] | None:
    mode, inverted, units = _STATISTIC.unpack_from(info)
    if mode != 0:
        return None
    below = Compare(_REGISTER, ">=" if inverted else "<", units.to_bytes(4, "big"))
    return (
        Numgen(_REGISTER, random=True, modulus=1 << 31, offset=0),
        Byteorder(_REGISTER, _REGISTER, 4, 4),
        below,
    )


def _set_mark(info: bytes) -> tuple[Operation, ...]:
    mark, mask = _SET_MARK.unpack_from(info)
    kept = struct.pack("=I", ~mask & 0xFFFFFFFF)
    return (
        Load(_REGISTER, "meta mark", 4, "meta mark"),
        Bitwise(_REGISTER, _REGISTER, kept, struct.pack("=I", mark)),
        Store("meta mark", _REGISTER),
    )


def _queue(info: bytes) -> tuple[Operation, ...]:
    return (Queue(struct.unpack_from("=H", info)[0]),)


_MATCHES: Mapping[str, Decoder] = {
    "comment": lambda _: (Note(""),),
    "conntrack": _conntrack,
    "addrtype": _addrtype,
    "mark": _mark,
    "tcp": _tcp,
    "udp": _udp,
    "statistic": _statistic,
    "limit": lambda _: (Note("limit"),),
}
_TARGETS: Mapping[str, Decoder] = {
    "REJECT": lambda _: (Reject(),),
    "MASQUERADE": lambda _: (Masquerade(),),
    "MARK": _set_mark,
    "LOG": lambda _: (Note("log"),),
    "NFLOG": lambda _: (Note("log"),),
    "NFQUEUE": _queue,
}
