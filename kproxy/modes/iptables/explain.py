"""What `explain` needs of the iptables mode: its intended peculiarities."""

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.modes.base import exact_shares
from kproxy.modes.iptables.mode import Capabilities, iptables_config
from kproxy.node.facts import FamilyFacts
from kproxy.plan.outcomes import ModeFacts


def facts(config: ProxyConfig, family: Family, node: FamilyFacts) -> ModeFacts:
    """The intended peculiarities of the mode for a family."""
    settings = iptables_config(config, family, node, Capabilities(config.iptables_layout))
    return ModeFacts(
        shares=exact_shares,
        node_port_addresses=settings.node_port_addresses,
        loopback_node_ports=settings.localhost,
        node_port_refusals_everywhere=True,
        refuses_node_itself=False,
        admits_external_ips=True,
        hairpin_anywhere=True,
    )
