"""The table's maps and sets. A plain service needs only elements in them; chains.py reads them.

A frontend is `address . protocol number . port`. Protocols are numbers, so that neither nft nor the
comparison with what it lists depends on /etc/protocols.

Some maps and sets always exist; others exist as long as a chain reads them. The endpoint maps are divided by
a hash of the service port, because the kernel reads a map from its start for every 32 KB of a dump
(net/netfilter/nft_set_hash.c): a map of 500,000 elements takes 14 s, one of 20,000 takes 0.04 s.
"""

import functools
import re
import zlib
from collections.abc import Iterable

from kproxy.addresses import Family
from kproxy.plan.model import Protocol

KUBE_PROXY_TABLE = "kube-proxy"
"""The table of kube-proxy's nftables mode, in families ip and ip6 (pkg/proxy/nftables/proxier.go)."""

TABLE = "kproxy"

LAYOUT = "layout-3"
"""An empty chain that marks the version of the declarations: a table with another one is made again."""

SERVICES = "services"
ADMITTED = "admitted"
REFUSALS = "refusals"
ENDPOINT_0 = "endpoint-0"
LOCAL_ENDPOINT_0 = "local-endpoint-0"
HAIRPIN = "hairpin"
CLUSTER_IPS = "cluster-ips"

FRONTENDS = (SERVICES, ADMITTED, REFUSALS, CLUSTER_IPS)
"""The maps and sets that decide whether a frontend is answered."""

_BY_FRONTEND = frozenset({SERVICES, ADMITTED, REFUSALS, ENDPOINT_0, LOCAL_ENDPOINT_0})

SHARDS = 32
"""Parts of the endpoint maps: 10,000 services of 50 endpoints are 15,000 elements in each."""

SLOT_SHARDS = 1024
"""Parts of the map of slots. The kernel visits every element of a map when a new chain reads it
(nf_tables_bind_set in net/netfilter/nf_tables_api.c): 5,000 chains over a million elements cost 156 million
visits with 32 parts, and 5 million with these."""

AFFINITY_SIZE = 65536
"""Greatest number of pairs of client and endpoint of one service port.

The kernel allocates in advance for the low 16 bits of the size (`nelem_hint` of struct rhashtable_params), so
a multiple of 65,536 costs nothing before clients come; then about 200 bytes for each.
"""

_NUMBERED = re.compile(r"(?:local-)?endpoints-[0-9]{1,3}-[0-9]{1,2}")
_SLOTS = re.compile(r"slots-[0-9]{1,4}")
_RANGES = re.compile(r"ranges-[A-Z2-7]{16}")
_AFFINITY = re.compile(r"affinity-[A-Z2-7]{16}")
_READ = re.compile(r"@([a-zA-Z0-9-]+)")

PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IANA protocol numbers."""


def shard(port: str, protocol: str) -> int:
    """The part of the endpoint maps for a service port."""
    return zlib.crc32(f"{port} {protocol}".encode()) % SHARDS


def slot_shard(port: str, protocol: str) -> int:
    """The part of the map of slots for a service port."""
    return zlib.crc32(f"{port} {protocol}".encode()) % SLOT_SHARDS


def numbered(count: int, part: int, *, local: bool = False) -> str:
    """The name of the map with endpoints 1 to N-1 of every frontend with N; number 0 is in a common map.

    There is a map for each count in use, because nft 1.0 can write a rule that looks up such a key only if it
    declares the map in the same run.
    """
    return f"local-endpoints-{count}-{part}" if local else f"endpoints-{count}-{part}"


def slots(part: int) -> str:
    """The name of the map with the endpoints of service ports that have a list of their own."""
    return f"slots-{part}"


def ranges(digest: str) -> str:
    """The name of the set with a service's source ranges."""
    return f"ranges-{digest}"


def affinity(digest: str) -> str:
    """The name of the set with the clients of a service port and their endpoints."""
    return f"affinity-{digest}"


def declarations(family: Family) -> dict[str, str]:
    """The declaration of each map and set that always exists, by `map NAME` or `set NAME`."""
    address = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    frontend = f"{address} . inet_proto . inet_service"
    return {
        f"map {SERVICES}": f"type {frontend} : verdict; counter;",
        f"map {ADMITTED}": f"type {frontend} : verdict;",
        f"map {REFUSALS}": f"type {frontend} : verdict;",
        f"map {ENDPOINT_0}": f"type {frontend} : {address} . inet_service;",
        f"map {LOCAL_ENDPOINT_0}": f"type {frontend} : {address} . inet_service;",
        f"set {HAIRPIN}": f"type {address} . {frontend};",
        f"set {CLUSTER_IPS}": f"type {address};",
    }


@functools.lru_cache(maxsize=4096)
def declaration_of(family: Family, name: str) -> str | None:
    """The declaration of a map or set of that name; None if kproxy has no such map or set."""
    base = _base_declarations(family).get(name)
    return base if base is not None else (_on_demand(family, name) or ("", None))[1]


@functools.lru_cache(maxsize=4096)
def object_of(name: str) -> str | None:
    """`map NAME` or `set NAME` for one that exists only while a chain reads it; None for any other name."""
    found = _on_demand(Family.IPV4, name)
    return None if found is None else f"{found[0]} {name}"


def is_filled(name: str) -> bool:
    """Whether kproxy fills a map or set of the table; packets fill those of clients, others are foreign."""
    return declaration_of(Family.IPV4, name) is not None and not is_affinity(name)


def is_affinity(name: str) -> bool:
    """Whether it is the name of a set of clients."""
    return _AFFINITY.fullmatch(name) is not None


def is_slots(name: str) -> bool:
    """Whether it is the name of a map of slots."""
    return _SLOTS.fullmatch(name) is not None


def is_by_frontend(name: str) -> bool:
    """Whether its keys begin with a frontend."""
    return name in _BY_FRONTEND or is_numbered(name)


@functools.lru_cache(maxsize=4096)
def is_numbered(name: str) -> bool:
    """Whether it is the name of a map with numbered endpoints, whose keys are `frontend . number`."""
    return _NUMBERED.fullmatch(name) is not None


@functools.lru_cache(maxsize=4096)
def most_elements(name: str) -> int:
    """The greatest number of elements that one frontend has in a map or set."""
    return max(1, int(name.split("-")[-2]) - 1) if is_numbered(name) else 1


def read_by(rules: Iterable[str]) -> frozenset[str]:
    """The maps and sets among those that exist only while a chain reads them, in a chain's rules."""
    found = {name for rule in rules for name in _READ.findall(rule)}
    return frozenset(name for name in found if object_of(name) is not None)


def _on_demand(family: Family, name: str) -> tuple[str, str] | None:
    """`map` or `set`, and the declaration."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    if _NUMBERED.fullmatch(name):
        key = f"{ip} daddr . meta l4proto . th dport . numgen random mod 2"
        return "map", f"typeof {key} : {ip} daddr . th dport;"
    if _SLOTS.fullmatch(name):
        key = "numgen inc mod 2 . numgen inc mod 2 . numgen random mod 2"
        return "map", f"typeof {key} : {ip} daddr . th dport;"
    if _RANGES.fullmatch(name):
        return "set", f"type {'ipv4_addr' if family is Family.IPV4 else 'ipv6_addr'}; flags interval;"
    if _AFFINITY.fullmatch(name):
        client = f"typeof {ip} saddr . numgen inc mod 2"
        return "set", f"{client}; flags dynamic,timeout; size {AFFINITY_SIZE};"
    return None


@functools.cache
def _base_declarations(family: Family) -> dict[str, str]:
    return {what.split(" ")[1]: declared for what, declared in declarations(family).items()}
