"""Configuration of the IPVS mode of one family, from settings and node facts."""

from typing import Protocol

import msgspec

from kproxy.addresses import Family
from kproxy.plan.schedulers import Scheduler


class RuleSettings(Protocol):
    """The settings of the iptables rules around the virtual servers; only their writer reads them."""

    @property
    def family(self) -> Family:
        """The family of the tables."""


class IpvsConfig(msgspec.Struct, frozen=True):
    """Settings of one family.

    `rules`: settings of the accompanying iptables rules. `node_addresses`: the local addresses that accept
    node ports. `local_addresses`: all addresses of other interfaces; an external address among them is not
    assigned to the device. `graceful_period`: greatest number of seconds that a removed destination is kept
    for its connections. `exclude_cidrs`: foreign virtual servers in them are never removed.
    `drift_check_interval`: seconds between quick checks of objects for which the kernel sends no events.
    """

    rules: RuleSettings
    scheduler: Scheduler
    node_addresses: tuple[str, ...] = ()
    local_addresses: frozenset[str] = frozenset()
    graceful_period: float = 3600.0
    exclude_cidrs: tuple[str, ...] = ()
    drift_check_interval: float = 30.0

    @property
    def family(self) -> Family:
        """The family of the settings."""
        return self.rules.family
