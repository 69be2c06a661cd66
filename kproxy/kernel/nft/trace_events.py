"""Decode what the kernel reports of a traced packet: enum nft_trace_attributes of nf_tables.h.

The first report in each base chain has the headers of the packet as they are there, so the headers after a
translation are in the next base chain. Everything here is pure.
"""

import socket
import struct
from collections.abc import Mapping

import msgspec

from kproxy.kernel.netlink.messages import attributes
from kproxy.kernel.nft.decoding import text
from kproxy.kernel.nft.expressions import VERDICTS
from kproxy.kernel.nft.messages import NFGENMSG

MESSAGE = 17  # NFT_MSG_TRACE
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT = 8, 9
_POLICY = 16
_TYPES = {1: "policy", 2: "return", 3: "rule"}  # enum nft_trace_types
_CODE, _TARGET = 1, 2
_WORDS = {code: word for word, code in VERDICTS.items()} | {2: "stolen", 3: "queue", 4: "repeat", 5: "stop"}
_FAMILIES = {socket.AF_INET: "ip", socket.AF_INET6: "ip6", 1: "inet", 5: "netdev", 7: "bridge"}
_V4_HEADER, _V6_HEADER = 20, 40

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By their numbers: enum nf_inet_hooks."""


class Headers(msgspec.Struct, frozen=True):
    """Addresses and ports of a packet."""

    source: str
    source_port: int
    destination: str
    port: int


class TraceEvent(msgspec.Struct, frozen=True):
    """One report: `kind` is rule, policy or return; `verdict` is nft's word, with the chain of a jump.

    `table` has its family, `ip kproxy`. `handle` is that of the rule, 0 if it is none.
    """

    packet: int
    table: str
    chain: str
    kind: str
    verdict: str
    handle: int = 0
    headers: Headers | None = None


def decode(content: bytes) -> TraceEvent:
    """Decode the content of a message."""
    held = attributes(content[NFGENMSG.size :])
    family = _FAMILIES.get(content[0], f"family {content[0]}")
    return TraceEvent(
        packet=_number(held.get(_ID)),
        table=f"{family} {text(held.get(_TABLE, b''))}",
        chain=text(held.get(_CHAIN, b"")),
        kind=_TYPES.get(_number(held.get(_TYPE)), ""),
        verdict=_verdict(held),
        handle=_number(held.get(_HANDLE)),
        headers=headers_of(held.get(_NETWORK, b""), held.get(_TRANSPORT, b"")),
    )


def _verdict(held: Mapping[int, bytes]) -> str:
    if _VERDICT not in held:
        return _WORDS.get(_number(held.get(_POLICY)), "") if _POLICY in held else ""
    verdict = attributes(held[_VERDICT])
    code = int.from_bytes(verdict.get(_CODE, b""), "big", signed=True)
    word = _WORDS.get(code, f"verdict {code}")
    return f"{word} {text(verdict.get(_TARGET, b''))}".strip()


def headers_of(network: bytes, transport: bytes) -> Headers | None:
    """The headers of layers 3 and 4; None if they are not there, or not whole."""
    if len(transport) < 4 or len(network) < _V4_HEADER:
        return None
    ports = struct.unpack_from("!HH", transport)
    match network[0] >> 4:
        case 4:
            kind, first, last = socket.AF_INET, network[12:16], network[16:20]
        case 6 if len(network) >= _V6_HEADER:
            kind, first, last = socket.AF_INET6, network[8:24], network[24:40]
        case _:
            return None
    return Headers(socket.inet_ntop(kind, first), ports[0], socket.inet_ntop(kind, last), ports[1])


def _number(packed: bytes | None) -> int:
    return int.from_bytes(packed or b"", "big")
