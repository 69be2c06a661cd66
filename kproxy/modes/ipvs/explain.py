"""What `explain` needs of the IPVS mode: its intended peculiarities."""

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.modes.base import exact_shares
from kproxy.modes.ipvs.mode import ipvs_config, rules_config
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import EndpointPlan, PortPlan
from kproxy.plan.outcomes import FrontendKind, ModeFacts

_EVEN = frozenset({"rr", "lc", "dh"})
"""The schedulers that use a weight of 0 only (net/netfilter/ipvs)."""


def facts(config: ProxyConfig, family: Family, node: FamilyFacts) -> ModeFacts:
    """The intended peculiarities of the mode for a family."""
    settings = ipvs_config(config, rules_config(config, family, node, random_fully=True), node)

    def scheduler(port: PortPlan) -> str:
        return (port.scheduler or settings.scheduler).name

    def shares(port: PortPlan, endpoints: tuple[EndpointPlan, ...], ports: int) -> tuple[float, ...]:
        if scheduler(port) not in _EVEN:
            return exact_shares(port, endpoints, ports)
        usable = [bool(endpoint.weight) for endpoint in endpoints]
        if not any(usable):
            usable = [True] * len(endpoints)
        return tuple(each / sum(usable) for each in usable)

    return ModeFacts(
        shares=shares,
        node_port_addresses=settings.node_addresses,
        refuses_unallocated=frozenset(
            {FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER}
        ),
        masquerades_own=True,
        scheduler=scheduler,
    )
