"""Read what rules with `log group N` report: the headers of packets, each with the prefix of its rule.

The kernel gathers packets for a hundredth of a second and sends them in one datagram, so that a flood costs
few system calls. It sends to one listener of a group and network namespace. Numbers and layouts are those of
include/uapi/linux/netfilter/nfnetlink_log.h.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    attributes,
    each_message,
    error_code,
    message,
)
from kproxy.kernel.netlink.socket import readable

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = 0, 1  # NFULNL_MSG_*
_NFGENMSG = struct.Struct("!BBH")
_TIMESTAMP, _IN, _OUT, _PAYLOAD, _PREFIX, _SEQUENCE, _TRACKED = 3, 4, 5, 9, 10, 12, 18  # NFULA_*
_ORIGINAL, _TUPLE_IP, _TUPLE_PORTS = 1, 1, 2  # CTA_TUPLE_*
_DESTINATIONS, _DESTINATION_PORT = (2, 4), 3  # CTA_IP_V4_DST, CTA_IP_V6_DST; CTA_PROTO_DST_PORT
_COMMAND, _MODE, _BUFFER, _TIMEOUT, _THRESHOLD, _FLAGS = 1, 2, 3, 4, 5, 6  # NFULA_CFG_*
_BIND = b"\1"  # NFULNL_CFG_CMD_BIND
_COPY_PACKET = 2
_WITH_SEQUENCE, _WITH_TRACKING = 1, 2  # NFULNL_CFG_F_SEQ, NFULNL_CFG_F_CONNTRACK
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 1 << 20
_RECEIVE_BYTES = 1 << 17
_BUFFER_BYTES = 1 << 14
_SECONDS = 5.0

_COPIED = 96
"""Bytes of each packet: an IPv6 header, some extension headers, and ports."""
_GATHERED = 64
"""Packets that are sent at once, at the latest after _GATHERED_FOR hundredths of a second."""
_GATHERED_FOR = 1

_LISTENERS = Path("/proc/thread-self/net/netfilter/nfnetlink_log")
_EXTENSIONS = frozenset({0, 43, 60})
"""IPv6 headers of options and routing, which precede the transport header (RFC 8200)."""
_FRAGMENT = 44
_MOST_EXTENSIONS = 4
_PORTS = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite: their headers begin with two ports."""


class NflogError(Exception):
    """The group cannot be read here; the message says why."""


class Logged(msgspec.Struct, frozen=True, gc=False):
    """A packet that a rule reported. Ports are 0 where the protocol, or this fragment, has none.

    `protocol` is its IANA number. `incoming` and `outgoing` are the indexes of devices, 0 for none. `at` is
    in seconds since the epoch, None where the kernel does not say. `asked` and `asked_port` are where the
    connection was sent to, before any translation; "" where the kernel does not say.
    """

    prefix: str
    source: str
    destination: str
    protocol: int
    source_port: int = 0
    port: int = 0
    incoming: int = 0
    outgoing: int = 0
    at: float | None = None
    asked: str = ""
    asked_port: int = 0


class Nflog:
    """The listener of a group, in the network namespace of the thread that makes it.

    `lost` counts packets that the kernel reported and that did not arrive, because the socket was full.
    """

    def __init__(self, group: int, *, receive_buffer: int = _RECEIVE_BUFFER) -> None:
        """Begin to listen. Raises NflogError."""
        self.lost = 0
        self._next: int | None = None
        self._closing = threading.Lock()
        self._woken = -1
        self._socket: socket.socket | None = None
        try:
            self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
            self._begin(self._socket, group, receive_buffer)
        except OSError as error:
            self.close()
            raise NflogError(_reason(error, group)) from error

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        with self._closing:
            if self._woken >= 0:
                os.close(self._woken)
                self._woken = -1

    def wake(self) -> None:
        """End a `wait`; any thread may call this, also after `close`."""
        with self._closing:
            if self._woken >= 0:
                os.eventfd_write(self._woken, 1)

    def wait(self, seconds: float | None = None) -> Sequence[Logged]:
        """Wait for packets, for a `wake`, or for some seconds; the result may be empty. Raises OSError."""
        sock = self._socket
        if sock is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        ready = readable((sock.fileno(), self._woken), seconds)
        if self._woken in ready:
            os.eventfd_read(self._woken)
        if sock.fileno() not in ready:
            return ()
        try:
            data = sock.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # counted by the gap that follows
                return ()
            raise
        return tuple(self._decoded(data))

    def _begin(self, sock: socket.socket, group: int, receive_buffer: int) -> None:
        sock.settimeout(_SECONDS)
        for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, receive_buffer)
        sock.bind((0, 0))
        for setting in (
            attribute(_COMMAND, _BIND),
            attribute(_MODE, struct.pack("!IBB", _COPIED, _COPY_PACKET, 0)),
            attribute(_BUFFER, struct.pack("!I", _BUFFER_BYTES)),
            attribute(_THRESHOLD, struct.pack("!I", _GATHERED)),
            attribute(_TIMEOUT, struct.pack("!I", _GATHERED_FOR)),
        ):
            _configure(sock, group, setting)
        try:
            _configure(sock, group, attribute(_FLAGS, struct.pack("!H", _WITH_SEQUENCE | _WITH_TRACKING)))
        except OSError:  # no connection tracking
            _configure(sock, group, attribute(_FLAGS, struct.pack("!H", _WITH_SEQUENCE)))

    def _decoded(self, data: bytes) -> Iterator[Logged]:
        for kind, _, _, content in each_message(data):
            if kind != _SUBSYSTEM << 8 | _PACKET:
                continue
            held = attributes(content[_NFGENMSG.size :])
            number = _number(held.get(_SEQUENCE))
            if self._next is not None:
                self.lost += number - self._next & 0xFFFFFFFF
            self._next = number + 1 & 0xFFFFFFFF
            found = decode(held)
            if found is not None:
                yield found


def decode(held: dict[int, bytes]) -> Logged | None:
    """The packet in the attributes of a report; None if it is no whole IP header."""
    payload = held.get(_PAYLOAD, b"")
    headers = _headers(payload)
    if headers is None:
        return None
    source, destination, protocol, at = headers
    source_port = port = 0
    if protocol in _PORTS and at and len(payload) >= at + 4:
        source_port, port = struct.unpack_from("!HH", payload, at)
    stamp = held.get(_TIMESTAMP)
    seconds = None
    if stamp is not None and len(stamp) == 16:
        whole, micros = struct.unpack("!QQ", stamp)
        seconds = whole + micros / 1e6
    return Logged(
        held.get(_PREFIX, b"").rstrip(b"\0").decode("utf-8", "replace"),
        source,
        destination,
        protocol,
        source_port,
        port,
        _number(held.get(_IN)),
        _number(held.get(_OUT)),
        seconds,
        *_asked(held.get(_TRACKED, b"")),
    )


def _asked(tracked: bytes) -> tuple[str, int]:
    """The destination of the original direction of a connection."""
    original = attributes(attributes(tracked).get(_ORIGINAL, b""))
    addresses = attributes(original.get(_TUPLE_IP, b""))
    packed = next((addresses[kind] for kind in _DESTINATIONS if kind in addresses), b"")
    port = _number(attributes(original.get(_TUPLE_PORTS, b"")).get(_DESTINATION_PORT))
    if len(packed) == 16:
        return _ipv6(packed), port
    return (socket.inet_ntop(socket.AF_INET, packed), port) if len(packed) == 4 else ("", 0)


def _headers(payload: bytes) -> tuple[str, str, int, int] | None:
    """Source, destination, protocol, and where the transport header begins; 0: it is in another fragment."""
    if len(payload) < 20:
        return None
    match payload[0] >> 4:
        case 4:
            first = not int.from_bytes(payload[6:8], "big") & 0x1FFF
            at = (payload[0] & 15) * 4 if first else 0
            return (
                socket.inet_ntop(socket.AF_INET, payload[12:16]),
                socket.inet_ntop(socket.AF_INET, payload[16:20]),
                payload[9],
                at,
            )
        case 6 if len(payload) >= 40:
            protocol, at = _transport(payload)
            return _ipv6(payload[8:24]), _ipv6(payload[24:40]), protocol, at
    return None


def _ipv6(packed: bytes) -> str:
    """As kproxy.addresses prints it, but an IPv4 address in IPv6 stays one of IPv6, as the packet is."""
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return text if packed[0] else ipaddress.IPv6Address(packed).compressed


def _transport(payload: bytes) -> tuple[int, int]:
    """The protocol after the extension headers of an IPv6 packet, and where its header begins; else 0."""
    protocol, at = payload[6], 40
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS and protocol != _FRAGMENT:
            break
        if len(payload) < at + 8:
            return protocol, 0
        if protocol in _EXTENSIONS:
            protocol, at = payload[at], at + (payload[at + 1] + 1) * 8
        else:
            if int.from_bytes(payload[at + 2 : at + 4], "big") >> 3:
                return payload[at], 0
            protocol, at = payload[at], at + 8
    return protocol, at


def _configure(sock: socket.socket, group: int, setting: bytes) -> None:
    body = _NFGENMSG.pack(socket.AF_UNSPEC, 0, group) + setting
    sock.sendto(message(_SUBSYSTEM << 8 | _CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, body), (0, 0))
    while True:
        for kind, _, _, content in each_message(sock.recv(_RECEIVE_BYTES)):
            if kind == NLMSG_ERROR:
                if code := error_code(content):
                    raise OSError(code, os.strerror(code))
                return


def _reason(error: OSError, group: int) -> str:
    """Why a group cannot be read, in words."""
    listener = _listener(group)
    if listener is not None and error.errno in {errno.EPERM, errno.EBUSY}:
        return f"another program reads NFLOG group {group} (netlink port {listener})"
    if error.errno in {errno.EPERM, errno.EACCES}:
        return f"NFLOG group {group} needs CAP_NET_ADMIN"
    if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
        return "the kernel has no NFLOG (module nfnetlink_log)"
    return f"NFLOG group {group}: {error.strerror or error}"


def _listener(group: int) -> int | None:
    """The netlink port of the listener of a group, usually the process; None if there is none to be seen."""
    try:
        lines = _LISTENERS.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines)
    return next((int(words[1]) for words in found if len(words) > 1 and words[0] == str(group)), None)


def _number(packed: bytes | None) -> int:
    return int.from_bytes(packed or b"", "big")
