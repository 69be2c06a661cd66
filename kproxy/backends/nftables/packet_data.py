"""What rules load: headers and metadata of a packet, in the bytes in which the kernel loads them."""

import socket
import struct
from collections.abc import Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.packets import NUMBERS, Flow
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Routing

_ETHERTYPES = {Family.IPV4: b"\x08\x00", Family.IPV6: b"\x86\xdd"}
_NEW, _UNTRACKED = 8, 64
_SNAT, _DNAT = 16, 32
_LOCAL, _UNICAST = 2, 1
_SOME_INDEX = b"\xff" * 4
_SYN = b"\x02"
"""The flags of the first packet of a TCP connection, byte 13 of the header."""


class Surroundings:
    """What a packet of a family meets: the names of devices by index, and the routes."""

    def __init__(self, family: Family, interfaces: Mapping[int, str], routing: Routing) -> None:
        self.family = family
        self._interfaces = interfaces
        self.routing = routing

    def load(self, flow: Flow, what: str, length: int) -> bytes | None:
        """The bytes of something, in nft's words; None if they are not known.

        `@nh 12` and `@th 0` are `length` bytes of the network and transport header from there.
        """
        if what.startswith("@"):
            return _header(flow, what, length)
        match what:
            case "ip saddr" | "ip6 saddr":
                return packed(flow.source)
            case "ip daddr" | "ip6 daddr":
                return packed(flow.destination)
            case "th sport":
                return struct.pack("!H", flow.source_port) if flow.source_port else None
            case "th dport":
                return struct.pack("!H", flow.port)
            case "meta l4proto" | "ip protocol" | "ip6 nexthdr":
                return bytes([NUMBERS[flow.protocol]])
            case "meta nfproto":
                return bytes([2 if self.family is Family.IPV4 else 10])
            case "meta protocol":
                return _ETHERTYPES[self.family]
            case "meta mark":
                return struct.pack("=I", flow.mark)
            case "meta nftrace":
                return b"\0"
            case "meta pkttype":
                return b"\0" if flow.incoming else None
            case "iifname" | "oifname":
                name = flow.incoming if what == "iifname" else flow.outgoing
                return None if name is None else name.encode().ljust(16, b"\0")
            case "iif" | "oif":
                return self._index(flow.incoming if what == "iif" else flow.outgoing)
            case "ct state":
                return struct.pack("=I", _UNTRACKED if flow.untracked else _NEW)
            case "ct status":
                return struct.pack(
                    "=I", _DNAT * (flow.translated and not flow.scheduled) | _SNAT * flow.masqueraded
                )
            case "ct direction":
                return b"\0"
            case "ct mark":
                return struct.pack("=I", flow.connection_mark)
            case "fib saddr type":
                return self._type(flow.source)
            case "fib daddr type":
                return self._type(flow.destination)
            case "fib saddr . iif oif" | "fib saddr . mark . iif oif":
                return self._way_back(flow)
        return None

    def _index(self, name: str | None) -> bytes | None:
        if name == "":
            return bytes(4)
        index = next((number for number, each in self._interfaces.items() if each == name), None)
        return None if index is None else struct.pack("=I", index)

    def _type(self, address: str) -> bytes | None:
        if not address:
            return None
        return struct.pack("=I", _LOCAL if self.routing.is_local(address) else _UNICAST)

    def _way_back(self, flow: Flow) -> bytes | None:
        """The device to which answers go if it is the one that the packet came from, else none (rpfilter)."""
        if flow.incoming is None or not flow.source:
            return None
        if flow.incoming == "":
            return bytes(4)
        route = self.routing.route(flow.source)
        if route is None or (route.interface and route.interface != flow.incoming and not route.local):
            return bytes(4)
        if not route.interface:
            return None
        return self._index(flow.incoming) or _SOME_INDEX


def _header(flow: Flow, what: str, length: int) -> bytes | None:
    """Bytes of a header; None if one of them is not known."""
    base, _, start = what.partition(" ")
    number = bytes([NUMBERS[flow.protocol]])
    if base == "@th":
        ports = {2: struct.pack("!H", flow.port)}
        if flow.source_port:
            ports[0] = struct.pack("!H", flow.source_port)
        fields = ports | ({13: _SYN} if flow.protocol is Protocol.TCP else {})
    elif ":" in flow.destination:
        fields = {6: number, 8: packed(flow.source) or b"", 24: packed(flow.destination) or b""}
    else:
        fields = {9: number, 12: packed(flow.source) or b"", 16: packed(flow.destination) or b""}
    known = {at + n: value[n : n + 1] for at, value in fields.items() for n in range(len(value))}
    wanted = [known.get(at) for at in range(int(start), int(start) + length)]
    found = [each for each in wanted if each is not None]
    return b"".join(found) if len(found) == length else None


def redirected(flow: Flow, port: int, around: Surroundings) -> Flow:
    """The flow after a redirection to the node; the address is "" where it is not known."""
    if flow.incoming == "":
        address = "127.0.0.1" if around.family is Family.IPV4 else "::1"
    else:
        route = around.routing.route(flow.source)
        address = "" if route is None else route.source
    return msgspec.structs.replace(flow, destination=address, port=port, translated=True)


def packed(address: str) -> bytes | None:
    """The bytes of an address; None for ""."""
    if not address:
        return None
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def unpacked(value: bytes) -> str:
    """The address of these bytes."""
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)
