"""What a service is as iptables rules: text in chains of its own, and lines in chains that all share.

Every part of the backend speaks in these; which rules a service gets is the renderers' business.
"""

import msgspec


class SharedLines(msgspec.Struct, frozen=True, gc=False):
    """The lines a service has in chains that all services share, in order; the field says table and chain."""

    nat_services: tuple[str, ...] = ()
    nat_node_ports: tuple[str, ...] = ()
    filter_services: tuple[str, ...] = ()
    filter_external: tuple[str, ...] = ()
    filter_firewall: tuple[str, ...] = ()
    filter_node_ports: tuple[str, ...] = ()


class ServiceRules(msgspec.Struct, frozen=True, gc=False):
    """All rules of one service: `chains` maps its own nat chains to their rules, a line each, in one text."""

    chains: dict[str, str] = {}
    shared: SharedLines = SharedLines()

    @property
    def empty(self) -> bool:
        """Whether the service has no rule at all."""
        return not self.chains and self.shared == SharedLines()
