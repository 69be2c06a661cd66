"""The table's maps and sets. A service without affinity needs only elements in them; chains.py reads them.

A frontend is `address . protocol number . port`. Protocols are numbers, so that neither nft nor the
comparison with what it lists depends on /etc/protocols.
"""

import functools
import re

from kproxy.addresses import Family
from kproxy.plan.model import Protocol

PEER_TABLE = "kube-proxy"
"""The table of kube-proxy's nftables mode, in families ip and ip6 (pkg/proxy/nftables/proxier.go)."""

TABLE = "kproxy"

LAYOUT = "layout-2"
"""An empty chain that marks the version of the declarations: a table with another one is made again."""

SERVICES = "services"
ADMITTED = "admitted"
REFUSALS = "refusals"
ENDPOINT_0 = "endpoint-0"
LOCAL_ENDPOINT_0 = "local-endpoint-0"
SOURCE_RANGES = "source-ranges"
HAIRPIN = "hairpin"
CLUSTER_IPS = "cluster-ips"
AFFINITY = "affinity"

FRONTENDS = (SERVICES, ADMITTED, REFUSALS, CLUSTER_IPS)
"""The maps and sets that decide whether a frontend is answered."""

AFFINITY_SIZE = 131072
"""Greatest number of pairs of client and endpoint; the kernel allocates 16 bytes for each in advance."""

_NUMBERED = re.compile(r"(?:local-)?endpoints-[0-9]{1,5}")

PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IANA protocol numbers."""


def numbered(count: int, *, local: bool = False) -> str:
    """The name of the map with endpoints 1 to N-1 of every frontend with N; number 0 is in a common map.

    There is a map for each count in use, because nft 1.0 can write a rule that looks up such a key only if it
    declares the map in the same run: map and rule are made together, and neither changes.
    """
    return f"local-endpoints-{count}" if local else f"endpoints-{count}"


def declarations(family: Family) -> dict[str, str]:
    """The declaration of each fixed map and set, by `map NAME` or `set NAME`."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    address = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    frontend = f"{address} . inet_proto . inet_service"
    return {
        f"map {SERVICES}": f"type {frontend} : verdict; counter;",
        f"map {ADMITTED}": f"type {frontend} : verdict;",
        f"map {REFUSALS}": f"type {frontend} : verdict;",
        f"map {ENDPOINT_0}": f"type {frontend} : {address} . inet_service;",
        f"map {LOCAL_ENDPOINT_0}": f"type {frontend} : {address} . inet_service;",
        f"set {SOURCE_RANGES}": f"type {frontend} . {address}; flags interval;",
        f"set {HAIRPIN}": f"type {address} . {frontend};",
        f"set {CLUSTER_IPS}": f"type {address};",
        f"set {AFFINITY}": (
            f"typeof {ip} saddr . numgen inc mod 2; flags dynamic,timeout; size {AFFINITY_SIZE};"
        ),
    }


@functools.lru_cache(maxsize=4096)
def declaration_of(family: Family, name: str) -> str | None:
    """The declaration of a map or set of that name; None if kproxy has no such map or set."""
    fixed = _fixed_declarations(family).get(name)
    return numbered_declaration(family) if fixed is None and _NUMBERED.fullmatch(name) else fixed


def is_filled(name: str) -> bool:
    """Whether kproxy fills a map or set of the table; packets fill `affinity`, others are foreign."""
    return name != AFFINITY and declaration_of(Family.IPV4, name) is not None


def numbered_declaration(family: Family) -> str:
    """The declaration of a map of numbered endpoints."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    return f"typeof {ip} daddr . meta l4proto . th dport . numgen random mod 2 : {ip} daddr . th dport;"


@functools.cache
def _fixed_declarations(family: Family) -> dict[str, str]:
    return {what.split(" ")[1]: declared for what, declared in declarations(family).items()}
