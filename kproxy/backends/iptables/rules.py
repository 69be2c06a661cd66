"""The iptables rules of a service as values: its own chains as text, and its lines in shared chains.

All modules of the backend use these types; the renderers decide which rules a service gets.
"""

import msgspec


class SharedLines(msgspec.Struct, frozen=True, gc=False):
    """A service's lines in chains that all services share, in order; the field names table and chain."""

    nat_services: tuple[str, ...] = ()
    nat_node_ports: tuple[str, ...] = ()
    filter_services: tuple[str, ...] = ()
    filter_external: tuple[str, ...] = ()
    filter_firewall: tuple[str, ...] = ()
    filter_node_ports: tuple[str, ...] = ()


class ServiceRules(msgspec.Struct, frozen=True, gc=False):
    """All rules of one service: `chains` maps its own nat chains to their rules, a line each, as one text."""

    chains: dict[str, str] = {}
    shared: SharedLines = SharedLines()

    @property
    def empty(self) -> bool:
        """Whether the service has no rule at all."""
        return not self.chains and self.shared == SharedLines()
