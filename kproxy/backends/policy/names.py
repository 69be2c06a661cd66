"""Names and declarations of the table's maps and sets.

| name | kind | elements |
|---|---|---|
| egress, ingress | map | address of an isolated local pod : its group's chain |
| p-HASH | set | addresses of the pods of a selector |
| u-HASH | set | the members of several of these |
| c-HASH | set | ranges of addresses; never changed |
| n-HASH | set | address . protocol . port of a port name |
| d-HASH | set | ranges of ports; never changed |
| GROUP.ports | map | protocol . port : a chain with the rules of the group for that port; never changed |
| transports | set | the protocols that have ports |
| known | set | addresses of all local pods, where unknown ones are not let through |
| ended, ended-datagrams | set | answers of ended connections: source . port . destination . port . protocol |
| drops-DIRECTION | set | refused flows, filled by the kernel: source . destination . protocol . port |

Protocols and ports are numbers, so that nothing depends on /etc/protocols. For a protocol without ports, the
"port" of a refused flow is what the header begins with: the type and code of ICMP.
"""

import functools
import hashlib
from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction

TABLE = "kproxy-policy"

LAYOUT = "layout-1"
"""An empty chain that marks the version of the declarations: a table with another one is made again."""

EGRESS, INGRESS = Direction.EGRESS.value, Direction.INGRESS.value
TRANSPORTS = "transports"
KNOWN = "known"
ENDED, ENDED_DATAGRAMS = "ended", "ended-datagrams"
UNKNOWN = "unknown"
"""The chain for unknown addresses, and their word where a refused flow has a direction."""

ENDED_SIZE = 65536
"""The most ended connections whose answers are refused."""
ENDED_SECONDS = {ENDED: 86_400, ENDED_DATAGRAMS: 180}
"""Seconds in which they are: a server that keeps a connection alive sends every two hours by default, and a
datagram that answers comes within conntrack's timeout of UDP."""

DROPS_SIZE = 8192
"""The most refused flows that are remembered in a direction; further ones are refused, too."""
DROPS_SECONDS = 600
"""Seconds after its last packet in which a refused flow is remembered."""
_DROPS = "drops-"

PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IANA protocol numbers."""

_PORTS_SUFFIX = ".ports"


def port_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[str, dict[str, str]]:
    """The name and elements of the set of these ranges."""
    elements = dict.fromkeys((range_text(*each) for each in ranges), "")
    hashed = hashlib.sha256(" ".join(elements).encode()).hexdigest()[:20]
    return f"d-{hashed}", elements


def is_pod_set(name: str) -> bool:
    """Whether it is the set of the pods of a selector."""
    return name.startswith("p-")


def united(pod_sets: Iterable[str]) -> str:
    """The name of the set with the members of all of these."""
    return f"u-{hashlib.sha256(' '.join(pod_sets).encode()).hexdigest()[:20]}"


def range_text(first: int, last: int) -> str:
    """A range of ports as nft writes it."""
    return str(first) if first == last else f"{first}-{last}"


def ports_map(group: str) -> str:
    """The name of a group's map by port."""
    return f"{group}{_PORTS_SUFFIX}"


def end_of(group: str) -> str:
    """The chain with the end of a group that is divided by port."""
    return f"{group}.end"


def is_group(chain: str) -> bool:
    """Whether it is the chain of a group."""
    return chain[:2] in {"e-", "i-"} and "." not in chain


def drops(direction: str) -> str:
    """The name of the set of refused flows; its elements have counters."""
    return f"{_DROPS}{direction}"


def is_by_address(name: str) -> bool:
    """Whether its elements are addresses of local pods, or are filled by packets."""
    return name in {EGRESS, INGRESS, KNOWN} or name.startswith(_DROPS)


def kind_of(name: str) -> str:
    """`map` or `set`."""
    return "map" if name in {EGRESS, INGRESS} or name.endswith(_PORTS_SUFFIX) else "set"


@functools.lru_cache(maxsize=4096)
def declaration_of(family: Family, name: str) -> str | None:
    """The declaration of a map or set of that name; None if kproxy has no such map or set."""
    address = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    if name.endswith(_PORTS_SUFFIX):
        return "type inet_proto . inet_service : verdict;"
    fixed = {
        EGRESS: f"type {address} : verdict;",
        INGRESS: f"type {address} : verdict;",
        TRANSPORTS: "type inet_proto;",
        KNOWN: f"type {address};",
    }
    if name in ENDED_SECONDS:
        answer = f"type {address} . inet_service . {address} . inet_service . inet_proto;"
        return f"{answer} flags timeout; size {ENDED_SIZE}; timeout {ENDED_SECONDS[name]}s;"
    flow = f"type {address} . {address} . inet_proto . inet_service;"
    if name in map(drops, (EGRESS, INGRESS, UNKNOWN)):
        return f"{flow} flags dynamic,timeout; size {DROPS_SIZE}; timeout {DROPS_SECONDS}s; counter;"
    by_prefix = {
        "p-": f"type {address};",
        "u-": f"type {address};",
        "c-": f"type {address}; flags interval;",
        "n-": f"type {address} . inet_proto . inet_service;",
        "d-": "type inet_service; flags interval;",
    }
    return fixed.get(name) or by_prefix.get(name[:2])
