"""Layouts: which chains there are, how they refer to each other, and the rules of a service in them.

Writing differences, bisecting refused restores, drift detection and deletion of a former layout's chains are
the same for all layouts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from kproxy.addresses import Family
from kproxy.backends.iptables.base_chains import JUMPS, SHARED, Jump, base_chains, node_port_jumps
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.hairpin import hairpin_chains
from kproxy.backends.iptables.names import ChainId
from kproxy.backends.iptables.render import render_service
from kproxy.backends.iptables.rules import ServiceRules
from kproxy.backends.iptables.shared import Flat, Placement
from kproxy.plan.model import ServicePlan


class Layout(Protocol):
    """The chains of one family. Two layouts are equal if they render the same rules for the same plans."""

    @property
    def family(self) -> Family:
        """The family of the tables."""

    @property
    def base(self) -> Mapping[ChainId, str | None]:
        """Chains that depend on no service, with their rules; None for a chain whose rules others write."""

    @property
    def shared(self) -> Mapping[str, Placement]:
        """Chains that services share, by the field of SharedLines with a service's lines in them."""

    @property
    def transitional(self) -> Mapping[ChainId, str]:
        """Base chains of another layout that also serve this one; kept until services are written."""

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """The rules of built-in chains that jump to these chains, in the order of their insertion."""

    @property
    def large_cluster_endpoints(self) -> int:
        """Above this many endpoints, comments are left out of endpoint rules."""

    @property
    def batch_size(self) -> int:
        """Services per restore of a big change with iptables-nft: the fastest size."""

    def render(self, plan: ServicePlan, *, comments: bool) -> ServiceRules:
        """The rules of one service."""


@dataclass(frozen=True)
class ConfiguredLayout:
    """Base of layouts: properties that are settings."""

    config: IptablesConfig

    @property
    def family(self) -> Family:
        """The family of the tables."""
        return self.config.family

    @property
    def large_cluster_endpoints(self) -> int:
        """The setting."""
        return self.config.large_cluster_endpoints


@dataclass(frozen=True)
class StandardLayout(ConfiguredLayout):
    """kube-proxy's chains of its iptables mode."""

    @cached_property
    def base(self) -> Mapping[ChainId, str | None]:
        """Chains that depend on no service."""
        return base_chains(self.config)

    @cached_property
    def shared(self) -> Mapping[str, Placement]:
        """Each kind of lines in one chain, and the node-port jumps at the end of nat KUBE-SERVICES."""
        tails = {"nat_services": node_port_jumps(self.config)}
        return {field: Flat(chain_id, tails.get(field, ())) for field, chain_id in SHARED.items()}

    @cached_property
    def transitional(self) -> Mapping[ChainId, str]:
        """The chains with hairpin masquerade for all services; in this layout, endpoint chains do that."""
        return hairpin_chains(self.config)

    @property
    def jumps(self) -> tuple[Jump, ...]:
        """kube-proxy's jumps."""
        return JUMPS

    @property
    def batch_size(self) -> int:
        """Batches of 100 to 250 services load fastest: each service has a chain for each endpoint."""
        return 250

    def render(self, plan: ServicePlan, *, comments: bool) -> ServiceRules:
        """The rules of one service."""
        return render_service(plan, self.config, comments=comments)
