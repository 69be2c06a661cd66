"""Chains for large clusters: a third of the rules, and a packet crosses tens of them.

Three things differ from kube-proxy's chains. What leads to services is a tree of small chains. A service's
chain translates itself, without a chain for each endpoint. And a pod that reaches itself through its service
is told by one rule after translation, when its source is its destination, instead of one rule for each
endpoint before it; a classic BPF program compares the two (xt_bpf), as iptables has no match for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kproxy.addresses import Family
from kproxy.backends.iptables import names
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.dispatch import Tree
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.render import ServiceRules, render_service
from kproxy.backends.iptables.shared import Placement
from kproxy.backends.iptables.static import JUMPS, SHARED, Jump, node_port_jumps, static_chains
from kproxy.plan.model import ServicePlan

_LOAD_X, _TAX, _MATCH, _NO_MATCH = "32 0 0 {}", "7 0 0 0", "6 0 0 1", "6 0 0 0"


@dataclass(frozen=True)
class ScalableLayout:
    """The layout for many services."""

    config: IptablesConfig

    @property
    def family(self) -> Family:
        """The family whose tables it describes."""
        return self.config.family

    @cached_property
    def fixed(self) -> Mapping[ChainId, str | None]:
        """Chains that depend on no service."""
        mark, match = self.config.mark, hairpin_match(self.family)
        return static_chains(
            self.config,
            first=f"-A {names.KUBE_POSTROUTING} {match}-j MARK --set-xmark {mark}/{mark}\n",
            after_forward=f"-A {names.KUBE_FORWARD} {match}-j ACCEPT\n",
        )

    @cached_property
    def shared(self) -> Mapping[str, Placement]:
        """A tree for each kind of lines."""
        family = self.family
        tail = node_port_jumps(self.config)
        by_address, by_port = names.DISPATCH, names.NODE_PORT_DISPATCH
        return {
            "nat_services": Tree(SHARED["nat_services"], by_address, family, tail=tail),
            "nat_node_ports": Tree(SHARED["nat_node_ports"], by_port, family, by_address=False),
            "filter_services": Tree(SHARED["filter_services"], by_address, family),
            "filter_external": Tree(SHARED["filter_external"], names.EXTERNAL_DISPATCH, family, local=True),
            "filter_firewall": Tree(SHARED["filter_firewall"], names.FIREWALL_DISPATCH, family),
            "filter_node_ports": Tree(SHARED["filter_node_ports"], by_port, family, by_address=False),
        }

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """Those of kube-proxy."""
        return JUMPS

    @property
    def large_cluster_endpoints(self) -> int:
        """As set."""
        return self.config.large_cluster_endpoints

    def render(self, plan: ServicePlan, *, comments: bool) -> ServiceRules:
        """The rules of one service."""
        return render_service(plan, self.config, comments=comments, compact=True)


def hairpin_match(family: Family) -> str:
    """What matches a translated packet that goes back to where it came from.

    The program loads each word of the source and compares it with that of the destination: at bytes 12 and 16
    of an IPv4 header (RFC 791), 8 and 24 of an IPv6 header (RFC 8200).
    """
    source, destination, words = (12, 16, 1) if family is Family.IPV4 else (8, 24, 4)
    program: list[str] = []
    for n in range(words):
        to_end = 4 * (words - n - 1) + 1
        program += [
            _LOAD_X.format(source + 4 * n),
            _TAX,
            _LOAD_X.format(destination + 4 * n),
            f"29 0 {to_end} 0",
        ]
    program += [_MATCH, _NO_MATCH]
    return (
        '-m conntrack --ctstate DNAT -m comment --comment "kubernetes endpoint that reaches itself" '
        f'-m bpf --bytecode "{len(program)},{",".join(program)}" '
    )
