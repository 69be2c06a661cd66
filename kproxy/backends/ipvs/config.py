"""What an operator and the node decide about the IPVS mode of one family, resolved before rendering."""

import msgspec

from kproxy.addresses import Family
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.plan.schedulers import Scheduler


class IpvsConfig(msgspec.Struct, frozen=True):
    """Settings of one family.

    `rules` is what the accompanying iptables rules need to know. `node_addresses` are the local addresses
    that accept node ports; `local_addresses` all addresses of other interfaces: an external address among
    them is not bound a second time. `graceful_period`: seconds that a destination which left is kept for the
    connections it still has, at most. `exclude_cidrs`: virtual servers in them are never removed.
    `look_period`: seconds between looks at what the kernel does not tell changes of.
    """

    rules: IptablesConfig
    scheduler: Scheduler
    node_addresses: tuple[str, ...] = ()
    local_addresses: frozenset[str] = frozenset()
    graceful_period: float = 3600.0
    exclude_cidrs: tuple[str, ...] = ()
    look_period: float = 30.0

    @property
    def family(self) -> Family:
        """The family these settings are of."""
        return self.rules.family
