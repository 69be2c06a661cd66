"""IPVS requests as netlink payloads, and the kernel's answers as values.

Layouts are those of include/uapi/linux/ip_vs.h. A request is joined from cached parts, which takes a few
microseconds; the classes of a general netlink library take half a millisecond.
"""

import hashlib
import socket
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from kproxy.addresses import Family, parse_ip
from kproxy.kernel.ipvs.types import (
    DIRECT_ROUTING,
    MASQUERADE,
    SETTABLE_FLAGS,
    Command,
    DestinationId,
    DestinationState,
    Request,
    ServerId,
    Statistics,
    Timeouts,
    VirtualServer,
)
from kproxy.kernel.netlink.messages import NLA, attribute, attributes, every_attribute, nested

FAMILY_NAME = "IPVS"
CMD_GET_SERVICE = 4
CMD_GET_DEST = 8
CMD_SET_CONFIG = 12
CMD_GET_CONFIG = 13

_GENL_VERSION = 1
_CMD_SERVICE, _CMD_DEST = 1, 2
_CMD_TIMEOUT_TCP, _CMD_TIMEOUT_TCP_FIN, _CMD_TIMEOUT_UDP = 4, 5, 6
_SVC_AF, _SVC_PROTOCOL, _SVC_ADDR, _SVC_PORT, _SVC_FWMARK, _SVC_SCHED_NAME = 1, 2, 3, 4, 5, 6
_SVC_FLAGS, _SVC_TIMEOUT, _SVC_NETMASK = 7, 8, 9
_SVC_STATS, _SVC_STATS64 = 10, 12
_STATS_CONNS, _STATS_INPKTS, _STATS_OUTPKTS, _STATS_INBYTES, _STATS_OUTBYTES = 1, 2, 3, 4, 5
_DEST_ADDR, _DEST_PORT, _DEST_FWD_METHOD, _DEST_WEIGHT = 1, 2, 3, 4
_DEST_U_THRESH, _DEST_L_THRESH, _DEST_ACTIVE, _DEST_INACT = 5, 6, 7, 8

_FWD_MASK = 0x7
_PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_NETMASK = {Family.IPV4: b"\xff\xff\xff\xff", Family.IPV6: struct.pack("=I", 128)}

_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_PORT = struct.Struct("!H")
_GENL = struct.Struct("=BBH")
_FLAGS = struct.Struct("=II")


def header(command: int) -> bytes:
    """The generic netlink header that begins every payload."""
    return _GENL.pack(command, _GENL_VERSION, 0)


_HEADERS = {command: header(command.value) for command in Command}
_THRESHOLDS = attribute(_DEST_U_THRESH, _U32.pack(0)) + attribute(_DEST_L_THRESH, _U32.pack(0))
_FORWARD = attribute(_DEST_FWD_METHOD, _U32.pack(MASQUERADE))


def encode(request: Request) -> bytes:
    """The payload of a request."""
    destination = request.destination
    if destination is None:
        settings = b"" if request.settings is None else _settings(request.settings, request.server.family)
        return _HEADERS[request.command] + nested(_CMD_SERVICE, _server(request.server), settings)
    if request.command is Command.DEL_DEST:
        more = b""
    else:
        more = _FORWARD + attribute(_DEST_WEIGHT, _U32.pack(request.weight)) + _THRESHOLDS
    return (
        _HEADERS[request.command]
        + _service_attribute(request.server)
        + nested(_CMD_DEST, _destination(destination), more)
    )


_LOCAL = {Family.IPV4: DestinationId("127.0.0.1", 0), Family.IPV6: DestinationId("::1", 0)}


def local_destination(family: Family) -> DestinationId:
    """The node itself, as the one destination of a firewall mark."""
    return _LOCAL[family]


def encode_mark(command: Command, family: Family, mark: int, scheduler: str = "") -> bytes:
    """The payload of a request about the virtual server of a firewall mark.

    Its destination is the node itself.
    """
    key = attribute(_SVC_AF, _U16.pack(_AF[family])) + attribute(_SVC_FWMARK, _U32.pack(mark))
    if command is not Command.NEW_DEST:
        settings = _settings(VirtualServer(scheduler), family) if scheduler else b""
        return _HEADERS[command] + nested(_CMD_SERVICE, key, settings)
    forward = attribute(_DEST_FWD_METHOD, _U32.pack(DIRECT_ROUTING))
    more = forward + attribute(_DEST_WEIGHT, _U32.pack(1)) + _THRESHOLDS
    return (
        _HEADERS[command]
        + nested(_CMD_SERVICE, key)
        + nested(_CMD_DEST, _destination(local_destination(family)), more)
    )


def encode_destinations_of_mark(family: Family, mark: int) -> bytes:
    """The payload of a dump of the destinations of a firewall mark."""
    key = attribute(_SVC_AF, _U16.pack(_AF[family])) + attribute(_SVC_FWMARK, _U32.pack(mark))
    return header(CMD_GET_DEST) + nested(_CMD_SERVICE, key)


def decode_mark(payload: bytes) -> tuple[Family, int] | None:
    """The firewall mark that a virtual server is keyed by; None for one that is keyed by address."""
    found = attributes(attributes(payload[_GENL.size :]).get(_CMD_SERVICE, b""))
    if _SVC_FWMARK not in found:
        return None
    is_v4 = _U16.unpack(found[_SVC_AF])[0] == socket.AF_INET
    return Family.IPV4 if is_v4 else Family.IPV6, _U32.unpack(found[_SVC_FWMARK])[0]


def encode_destinations_of(server: ServerId) -> bytes:
    """The payload of a dump of one virtual server's destinations."""
    return header(CMD_GET_DEST) + _service_attribute(server)


def encode_timeouts(timeouts: Timeouts) -> bytes:
    """The payload that sets the timeouts; the kernel requires all three."""
    return header(CMD_SET_CONFIG) + b"".join(
        attribute(kind, _U32.pack(seconds))
        for kind, seconds in (
            (_CMD_TIMEOUT_TCP, timeouts.tcp),
            (_CMD_TIMEOUT_TCP_FIN, timeouts.tcp_fin),
            (_CMD_TIMEOUT_UDP, timeouts.udp),
        )
    )


def decode_timeouts(payload: bytes) -> Timeouts:
    """The timeouts in an answer to CMD_GET_CONFIG."""
    found = attributes(payload[_GENL.size :])

    def value(kind: int) -> int:
        return int(_U32.unpack(found[kind])[0]) if kind in found else 0

    return Timeouts(value(_CMD_TIMEOUT_TCP), value(_CMD_TIMEOUT_TCP_FIN), value(_CMD_TIMEOUT_UDP))


def decode_service(payload: bytes) -> tuple[ServerId, VirtualServer] | None:
    """Return a virtual server; None if it is keyed by a firewall mark or of an unknown protocol."""
    found = attributes(attributes(payload[_GENL.size :]).get(_CMD_SERVICE, b""))
    server = _decode_server(found)
    if server is None:
        return None
    flags = _FLAGS.unpack(found[_SVC_FLAGS])[0] & SETTABLE_FLAGS
    scheduler = found.get(_SVC_SCHED_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
    timeout = _U32.unpack(found[_SVC_TIMEOUT])[0] if flags & 1 else 0
    return server, VirtualServer(scheduler, flags, timeout)


def digest(payloads: Iterable[bytes]) -> bytes:
    """Return a hash of the data that decode_service decodes from all payloads, in a tenth of its time.

    It covers the bytes before the counters, which come last (ip_vs_genl_fill_service in
    net/netfilter/ipvs/ip_vs_ctl.c) and, with one kernel, have the same size in each payload.
    """
    settings: list[bytes] = []
    size, mark = 0, b""
    for payload in payloads:
        end = max(0, len(payload) - size)
        if not mark or payload[end : end + NLA.size] != mark:
            end = _end_of_settings(payload)
            size, mark = len(payload) - end, payload[end : end + NLA.size]
        settings.append(payload[:end])
    return hashlib.blake2b(b"".join(settings), digest_size=16).digest()


def _end_of_settings(payload: bytes) -> int:
    start = _GENL.size + NLA.size  # the attribute that holds all others
    end = start
    for kind, value in every_attribute(payload[start:]):
        if kind == _SVC_STATS:
            break
        end += NLA.size + ((len(value) + 3) & ~3)
    return end


def decode_statistics(payload: bytes) -> tuple[ServerId, Statistics] | None:
    """The 64-bit counters of a virtual server (since Linux 4.1); None as for decode_service."""
    found = attributes(attributes(payload[_GENL.size :]).get(_CMD_SERVICE, b""))
    server = _decode_server(found)
    if server is None:
        return None
    counters = attributes(found.get(_SVC_STATS64, b""))

    def value(kind: int) -> int:
        return int(_U64.unpack(counters[kind])[0]) if kind in counters else 0

    return server, Statistics(
        connections=value(_STATS_CONNS),
        packets_in=value(_STATS_INPKTS),
        packets_out=value(_STATS_OUTPKTS),
        bytes_in=value(_STATS_INBYTES),
        bytes_out=value(_STATS_OUTBYTES),
    )


def _decode_server(found: Mapping[int, bytes]) -> ServerId | None:
    if _SVC_FWMARK in found or _SVC_PROTOCOL not in found:
        return None
    protocol = _NAMES.get(_U16.unpack(found[_SVC_PROTOCOL])[0])
    if protocol is None:
        return None
    ip = _decode_ip(_U16.unpack(found[_SVC_AF])[0], found[_SVC_ADDR])
    return ServerId(protocol, ip, _PORT.unpack(found[_SVC_PORT])[0])


def decode_destination(payload: bytes, family: Family) -> tuple[DestinationId, DestinationState]:
    """A destination of a virtual server of `family`."""
    found: dict[int, bytes] = {}
    for kind, value in every_attribute(attributes(payload[_GENL.size :])[_CMD_DEST]):
        found[kind] = value
        if kind == _DEST_INACT:  # counters follow
            break
    ip = _decode_ip(_AF[family], found[_DEST_ADDR])

    def number(kind: int) -> int:
        return int(_U32.unpack(found[kind])[0]) if kind in found else 0

    state = DestinationState(
        number(_DEST_WEIGHT), number(_DEST_FWD_METHOD) & _FWD_MASK, number(_DEST_ACTIVE), number(_DEST_INACT)
    )
    return DestinationId(ip, _PORT.unpack(found[_DEST_PORT])[0]), state


@lru_cache(maxsize=8192)
def _server(server: ServerId) -> bytes:
    return (
        attribute(_SVC_AF, _U16.pack(_AF[server.family]))
        + attribute(_SVC_PROTOCOL, _U16.pack(_PROTOCOLS[server.protocol]))
        + attribute(_SVC_ADDR, _encode_ip(server.ip))
        + attribute(_SVC_PORT, _PORT.pack(server.port))
    )


@lru_cache(maxsize=8192)
def _service_attribute(server: ServerId) -> bytes:
    return nested(_CMD_SERVICE, _server(server))


@lru_cache(maxsize=256)
def _settings(settings: VirtualServer, family: Family) -> bytes:
    return (
        attribute(_SVC_SCHED_NAME, settings.scheduler.encode("ascii") + b"\0")
        + attribute(_SVC_FLAGS, _FLAGS.pack(settings.flags, SETTABLE_FLAGS))
        + attribute(_SVC_TIMEOUT, _U32.pack(settings.timeout))
        + attribute(_SVC_NETMASK, _NETMASK[family])
    )


def _destination(destination: DestinationId) -> bytes:
    return attribute(_DEST_ADDR, _encode_ip(destination.ip)) + attribute(
        _DEST_PORT, _PORT.pack(destination.port)
    )


def _encode_ip(ip: str) -> bytes:
    if ":" in ip:
        return socket.inet_pton(socket.AF_INET6, ip)
    return socket.inet_aton(ip) + bytes(12)


def _decode_ip(af: int, address: bytes) -> str:
    if af == socket.AF_INET:
        return socket.inet_ntoa(address[:4])
    return parse_ip(socket.inet_ntop(socket.AF_INET6, address))[1]
