"""The destinations that IPVS keeps for clients of virtual servers with persistence (session affinity).

/proc/net/ip_vs_conn lists them beside the connections, with a client port of 0 (ip_vs_conn_seq_show in
net/netfilter/ipvs/ip_vs_conn.c).
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

from kproxy.kernel.ipvs.types import DestinationId, ServerId

_LIST = Path("/proc/thread-self/net/ip_vs_conn")
_TEMPLATE = re.compile(r"^(TCP|UDP|SCTP)\s+(\S+) 0000 (\S+) ([0-9A-F]{4}) (\S+) ([0-9A-F]{4}) ", re.MULTILINE)


def templates() -> Mapping[tuple[str, ServerId], DestinationId]:
    """The destination of each client and virtual server. Empty where the kernel does not show them."""
    try:
        text = _LIST.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return dict(parse(text))


def parse(text: str) -> list[tuple[tuple[str, ServerId], DestinationId]]:
    """Parse what the file shows."""
    return [
        (
            (_address(client), ServerId(protocol, _address(ip), int(port, 16))),
            DestinationId(_address(to), int(to_port, 16)),
        )
        for protocol, client, ip, port, to, to_port in _TEMPLATE.findall(text)
    ]


def _address(text: str) -> str:
    """An IPv4 address in hexadecimal, or an IPv6 address in full."""
    if ":" in text:
        return str(ipaddress.ip_address(text.strip("[]")))
    return str(ipaddress.IPv4Address(int(text, 16)))
