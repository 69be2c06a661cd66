"""Connections of given addresses in the kernel's connection tracking, to judge them again and end them.

A node can have hundreds of thousands of entries, so the kernel filters a dump by address where few addresses
are asked for (since Linux 5.8; older kernels ignore the filter), and otherwise most entries are skipped by a
search of their bytes, before they are decoded. Of IPv6 addresses, the kernel's filter lets pass all but the
wanted ones (ctnetlink_filter_match_tuple takes the result of ipv6_addr_cmp for its opposite; seen on Linux
6.18), so it is not used for them.

Layouts are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import re
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol as Interface

import msgspec

from kproxy.addresses import Family, parse_ip
from kproxy.kernel.conntrack.types import ConntrackError
from kproxy.kernel.netlink.messages import attribute, attributes, nested
from kproxy.kernel.netlink.socket import NetlinkSocket

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_ORIG_FLAGS, _REPLY_FLAGS = 1, 2  # CTA_FILTER_*
_BY_SOURCE = 1 << 0
"""CTA_FILTER_F_CTA_IP_SRC (net/netfilter/nf_internals.h)."""
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SRC = {Family.IPV4: 1, Family.IPV6: 3}
_IP_DST = {Family.IPV4: 2, Family.IPV6: 4}
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_NFGENMSG = struct.Struct("!BBH")
_PORT = struct.Struct("!H")
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_FEW = 4
"""So many addresses are filtered by the kernel: two dumps each, which walk the table but send little."""


class Connection(msgspec.Struct, frozen=True, gc=False):
    """A tracked connection, as its first packet was sent, and as its answers come.

    `server` and `server_port` are the source of the answers: the destination after translation. `client` and
    `client_port` are where answers go: the source after translation. Ports are 0 for protocols without.
    `protocol` is its IANA number. Addresses are canonical. `handle` are the attributes that identify it.
    """

    protocol: int
    source: str
    source_port: int
    destination: str
    port: int
    server: str
    server_port: int
    client: str
    client_port: int
    handle: bytes = b""


class Connections(Interface):
    """The tracked connections of one network namespace."""

    def of(self, family: Family, addresses: Collection[str]) -> list[Connection]:
        """Connections from these addresses, or to them after translation. Raises ConntrackError."""

    def delete(self, family: Family, connections: Sequence[Connection]) -> int:
        """Delete connections; return how many still existed. Raises ConntrackError."""


class NetlinkConnections:
    """See Connections; in the network namespace of the thread that uses it first."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None

    def of(self, family: Family, addresses: Collection[str]) -> list[Connection]:
        """See Connections.of."""
        packed = {socket.inet_pton(_AF[family], address) for address in addresses}
        if not packed:
            return []
        search = re.compile(b"|".join(map(re.escape, packed))).search
        header = _NFGENMSG.pack(_AF[family], 0, 0)
        filters = (
            [found for address in packed for found in _filters(address)]
            if family is Family.IPV4 and len(packed) <= _FEW
            else [b""]
        )
        answers: dict[bytes, bytes] = {}
        try:
            for each in filters:
                found = self._open().dump(_SUBSYSTEM << 8 | _GET, header + each, wanted=search)
                answers.update((_handle(answer), answer) for answer in found)
        except OSError as error:
            raise self._failed("read connections", error) from error
        decoded = (_decode(answer, family, handle) for handle, answer in answers.items())
        wanted = frozenset(parse_ip(address)[1] for address in addresses)
        return [one for one in decoded if one is not None and {one.source, one.server} & wanted]

    def delete(self, family: Family, connections: Sequence[Connection]) -> int:
        """See Connections.delete."""
        header = _NFGENMSG.pack(_AF[family], 0, 0)
        requests = [(_SUBSYSTEM << 8 | _DELETE, 0, header + each.handle) for each in connections]
        try:
            failures = self._open().batch(requests)
        except OSError as error:
            raise self._failed("delete connections", error) from error
        for code in failures.values():
            if code != errno.ENOENT:
                failure = OSError(code, errno.errorcode.get(code, str(code)))
                raise self._failed("delete connections", failure)
        return len(connections) - len(failures)

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(_NETLINK_NETFILTER)
        return self._socket

    def _failed(self, what: str, error: OSError) -> ConntrackError:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return ConntrackError(f"conntrack: cannot {what}: {error.strerror or error}")


def _filters(address: bytes) -> Iterator[bytes]:
    """The filters of dumps of connections from an IPv4 address, and of those whose answers come from it."""
    ip = nested(_TUPLE_IP, attribute(_IP_SRC[Family.IPV4], address))
    flag = struct.pack("=I", _BY_SOURCE)
    for of, flags in ((_TUPLE_ORIG, _ORIG_FLAGS), (_TUPLE_REPLY, _REPLY_FLAGS)):
        yield nested(of, ip) + nested(_FILTER, attribute(flags, flag))


def _handle(answer: bytes) -> bytes:
    found = attributes(answer[_NFGENMSG.size :])
    handle = nested(_TUPLE_ORIG, found[_TUPLE_ORIG])
    return handle + b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)


def _decode(answer: bytes, family: Family, handle: bytes) -> Connection | None:
    found = attributes(answer[_NFGENMSG.size :])
    try:
        first = _tuple(attributes(found[_TUPLE_ORIG]), family)
        answers = _tuple(attributes(found[_TUPLE_REPLY]), family)
    except KeyError:  # an entry of another family
        return None
    return Connection(*first, *answers[1:], handle)


def _tuple(found: Mapping[int, bytes], family: Family) -> tuple[int, str, int, str, int]:
    ip, protocol = attributes(found[_TUPLE_IP]), attributes(found[_TUPLE_PROTO])
    return (
        protocol[_PROTO_NUM][0],
        _ip(ip[_IP_SRC[family]], family),
        _port(protocol.get(_PROTO_SRC_PORT)),
        _ip(ip[_IP_DST[family]], family),
        _port(protocol.get(_PROTO_DST_PORT)),
    )


def _port(packed: bytes | None) -> int:
    return 0 if packed is None else int(_PORT.unpack(packed)[0])


def _ip(packed: bytes, family: Family) -> str:
    text = socket.inet_ntop(_AF[family], packed)
    return text if family is Family.IPV4 else parse_ip(text)[1]
