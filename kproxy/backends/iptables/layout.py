"""What a set of chains must offer so that one machinery can keep it in the kernel.

Which chains there are, how one leads to the other and what a service adds to them is a layout's business;
writing differences, isolating what the kernel refuses, noticing drift and taking away the chains of a former
layout is the same for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from kproxy.addresses import Family
from kproxy.backends.iptables.base_chains import JUMPS, SHARED, Jump, node_port_jumps, static_chains
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.hairpin import hairpin_chains
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.render import render_service
from kproxy.backends.iptables.rules import ServiceRules
from kproxy.backends.iptables.shared import Flat, Placement
from kproxy.plan.model import ServicePlan


class Layout(Protocol):
    """The chains of one family. Two layouts are equal if they want the same rules for the same plans."""

    @property
    def family(self) -> Family:
        """The family whose tables it describes."""

    @property
    def fixed(self) -> Mapping[ChainId, str | None]:
        """Chains that depend on no service, with their rules; None for one whose rules are not ours."""

    @property
    def shared(self) -> Mapping[str, Placement]:
        """Chains that services share, by the field of SharedLines that holds a service's lines in them."""

    @property
    def outgoing(self) -> Mapping[ChainId, str]:
        """Fixed chains of another layout that serve this one too, and stay until services are written."""

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """The rules of built-in chains that lead into these chains, in the order of their insertion."""

    @property
    def large_cluster_endpoints(self) -> int:
        """Above this many endpoints, comments are left out of endpoint rules."""

    @property
    def batch_size(self) -> int:
        """Services per restore of a big change with iptables-nft: as many as load quickest."""

    def render(self, plan: ServicePlan, *, comments: bool) -> ServiceRules:
        """The rules of one service."""


@dataclass(frozen=True)
class ConfiguredLayout:
    """What a layout takes from the settings as they are."""

    config: IptablesConfig

    @property
    def family(self) -> Family:
        """The family whose tables it describes."""
        return self.config.family

    @property
    def large_cluster_endpoints(self) -> int:
        """As set."""
        return self.config.large_cluster_endpoints


@dataclass(frozen=True)
class StandardLayout(ConfiguredLayout):
    """kube-proxy's chains of its iptables mode."""

    @cached_property
    def fixed(self) -> Mapping[ChainId, str | None]:
        """Chains that depend on no service."""
        return static_chains(self.config)

    @cached_property
    def shared(self) -> Mapping[str, Placement]:
        """Each kind of lines in one chain, and the node-port jumps at the end of nat KUBE-SERVICES."""
        tails = {"nat_services": node_port_jumps(self.config)}
        return {field: Flat(chain_id, tails.get(field, ())) for field, chain_id in SHARED.items()}

    @cached_property
    def outgoing(self) -> Mapping[ChainId, str]:
        """Those that do for all services what endpoints' chains do in this layout."""
        return hairpin_chains(self.config)

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """Those of kube-proxy."""
        return JUMPS

    @property
    def batch_size(self) -> int:
        """Pieces of 100 to 250 load quickest: each has a chain for each endpoint."""
        return 250

    def render(self, plan: ServicePlan, *, comments: bool) -> ServiceRules:
        """The rules of one service."""
        return render_service(plan, self.config, comments=comments)
