"""The expected outcome of a packet in kube-proxy 1.36, from the objects alone: an independent model.

Written from the description of pkg/proxy (topology.go, iptables/proxier.go), with plain sets, independent of
kproxy's planner and backends. For one packet it returns which pods may get it and whether they see this node
instead of the sender, or how it is refused.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.packets.objects import Ep

Kind = Literal["cluster", "external", "balancer", "node"]
Vantage = Literal["outside", "node", "pod"]

REFUSED, DROPPED = "Refused", "NoAnswer"


@dataclass(frozen=True)
class Site:
    """The node and the settings of its proxy, for one family.

    `tells_pods` is False where the proxy cannot detect local pod traffic.
    """

    node: str
    zone: str
    node_ip: str
    tells_pods: bool = True
    masquerade_all: bool = False


@dataclass(frozen=True)
class Outcome:
    """`pods` by name, and whether each sees the node as the sender; or how the packet is refused."""

    pods: frozenset[str] = frozenset()
    masqueraded: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class Pools:
    """The endpoints of one service port, by policy; `any` tells whether there is one anywhere."""

    cluster: frozenset[str]
    local: frozenset[str]
    any: bool


@dataclass(frozen=True)
class Exposure:
    """A service's spec with its endpoints."""

    spec: Mapping[str, Any]
    endpoints: Sequence[Ep]


def pools(endpoints: Sequence[Ep], site: Site) -> Pools:
    """Return the endpoints that may serve under the policy Cluster, and those under Local."""
    ready = [e for e in endpoints if e.ready is not False]
    draining = [e for e in endpoints if e.serving is not False and e.terminating is True]
    chosen = ready or draining
    if ready and all(e.nodes for e in ready) and any(site.node in e.nodes for e in ready):
        chosen = [e for e in ready if site.node in e.nodes]
    elif ready and all(e.zones for e in ready) and any(site.zone in e.zones for e in ready):
        chosen = [e for e in ready if site.zone in e.zones]
    here = [e for e in ready if e.pod.local] or [e for e in draining if e.pod.local]
    return Pools(_names(chosen), _names(here), bool(chosen))


def outcome(exposure: Exposure, site: Site, kind: Kind, vantage: Vantage, source: str) -> Outcome:
    """Return the outcome of a packet from `source` to an address of this kind."""
    spec, found = exposure.spec, pools(exposure.endpoints, site)
    inside = kind == "cluster"
    policy = spec.get("internalTrafficPolicy" if inside else "externalTrafficPolicy", "Cluster")
    if not found.any:
        return Outcome(refusal=REFUSED)
    if kind == "balancer" and not _admitted(spec, site, source):
        return Outcome(refusal=DROPPED)
    if inside:
        pool = found.local if policy == "Local" else found.cluster
        off_cluster = site.tells_pods and vantage != "pod"
        return _to(pool, masqueraded=site.masquerade_all or off_cluster)
    if policy == "Cluster":
        return _to(found.cluster, masqueraded=True)
    if vantage == "pod" and site.tells_pods:
        return _to(found.cluster, masqueraded=False)
    if vantage == "node":
        return _to(found.cluster, masqueraded=True)
    return _to(found.local, masqueraded=False)


def _to(pool: frozenset[str], *, masqueraded: bool) -> Outcome:
    return Outcome(pool, masqueraded) if pool else Outcome(refusal=DROPPED)


def _admitted(spec: Mapping[str, Any], site: Site, source: str) -> bool:
    address = ipaddress.ip_address(source)
    texts = spec.get("loadBalancerSourceRanges", ())
    ranges = [ipaddress.ip_network(text.strip(), strict=False) for text in texts]
    own = [r for r in ranges if r.version == address.version]
    return not own or any(r.prefixlen == 0 or address in r for r in own)


def _names(endpoints: Sequence[Ep]) -> frozenset[str]:
    return frozenset(e.pod.name for e in endpoints)
