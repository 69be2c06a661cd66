"""The kernel's connection tracking, in the network namespace of the thread that uses it first.

Layouts are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h, bits of nf_conntrack_common.h.
"""

import errno
import socket
import struct
from collections.abc import Collection, Sequence

from kproxy.addresses import Family, parse_ip
from kproxy.kernel.conntrack.types import ConntrackError, Flow
from kproxy.kernel.netlink.messages import NLA_F_NESTED, attribute, attributes
from kproxy.kernel.netlink.socket import NetlinkSocket

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1
_GET, _DELETE = 1, 2
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _FILTER = 1, 2, 3, 12, 18, 25
_FILTER_ORIG_FLAGS = 1
_BY_PROTOCOL = 1 << 3
"""CTA_FILTER_F_CTA_PROTO_NUM (net/netfilter/nf_internals.h)."""
_SEEN_REPLY = 1 << 1
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SRC = {Family.IPV4: 1, Family.IPV6: 3}
_IP_DST = {Family.IPV4: 2, Family.IPV6: 4}
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_NFGENMSG = struct.Struct("!BBH")
_PORT = struct.Struct("!H")
_BITS = struct.Struct("!I")
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_UDP = bytes((socket.IPPROTO_UDP,))
_ONLY_UDP = attribute(
    _TUPLE_ORIG | NLA_F_NESTED, attribute(_TUPLE_PROTO | NLA_F_NESTED, attribute(_PROTO_NUM, _UDP))
) + attribute(_FILTER | NLA_F_NESTED, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_PROTOCOL)))
"""Filter that limits a dump to UDP, since Linux 5.8; older kernels ignore it and send all entries."""


class NetlinkConntrack:
    """Flows over nfnetlink; the socket is opened on first use."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None

    def udp_flows(self, family: Family, ports: Collection[int]) -> list[Flow]:
        """Return the UDP flows that were sent to one of these ports. Raises ConntrackError."""
        try:
            answers = self._open().dump(_SUBSYSTEM << 8 | _GET, _NFGENMSG.pack(_AF[family], 0, 0) + _ONLY_UDP)
        except OSError as error:
            raise self._failed("read flows", error) from error
        wanted = {_PORT.pack(port) for port in ports}
        return [flow for answer in answers if (flow := _decode(answer, family, wanted)) is not None]

    def delete(self, family: Family, flows: Sequence[Flow]) -> list[Flow]:
        """Delete flows; return those that still existed. Raises ConntrackError."""
        header = _NFGENMSG.pack(_AF[family], 0, 0)
        requests = [(_SUBSYSTEM << 8 | _DELETE, 0, header + flow.handle) for flow in flows]
        try:
            failures = self._open().batch(requests)
        except OSError as error:
            raise self._failed("delete flows", error) from error
        for code in failures.values():
            if code != errno.ENOENT:
                raise self._failed("delete flows", OSError(code, errno.errorcode.get(code, str(code))))
        return [flow for index, flow in enumerate(flows) if index not in failures]

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(_NETLINK_NETFILTER)
        return self._socket

    def _failed(self, what: str, error: OSError) -> ConntrackError:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return ConntrackError(f"conntrack: cannot {what}: {error.strerror or error}")


def _decode(answer: bytes, family: Family, ports: Collection[bytes]) -> Flow | None:
    found = attributes(answer[_NFGENMSG.size :])
    original = attributes(found.get(_TUPLE_ORIG, b""))
    protocol = attributes(original.get(_TUPLE_PROTO, b""))
    if protocol.get(_PROTO_NUM) != _UDP or protocol.get(_PROTO_DST_PORT) not in ports:
        return None
    reply = attributes(found.get(_TUPLE_REPLY, b""))
    answering = attributes(reply.get(_TUPLE_PROTO, b""))
    handle = attribute(_TUPLE_ORIG | NLA_F_NESTED, found[_TUPLE_ORIG])
    handle += b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Flow(
        _ip(attributes(original[_TUPLE_IP])[_IP_DST[family]], family),
        _PORT.unpack(protocol[_PROTO_DST_PORT])[0],
        _ip(attributes(reply[_TUPLE_IP])[_IP_SRC[family]], family),
        _PORT.unpack(answering[_PROTO_SRC_PORT])[0],
        bool(_BITS.unpack(found[_STATUS])[0] & _SEEN_REPLY),
        handle,
    )


def _ip(packed: bytes, family: Family) -> str:
    text = socket.inet_ntop(_AF[family], packed)
    return text if family is Family.IPV4 else parse_ip(text)[1]
