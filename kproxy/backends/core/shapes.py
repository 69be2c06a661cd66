"""What refused services have in common: the kind of their rules, and the kind of the error.

A kernel without a match refuses every service that needs it, with the same error at other addresses. So an
error that was proven for some services can be assumed for others with rules of the same kind.
"""

import re
from collections.abc import Hashable, Iterable
from typing import Protocol

from kproxy.plan.model import PortPlan, ServicePlan

Shape = Hashable
"""Equal for services whose rules use the same matches, targets, maps and sets."""


class Shapes(Protocol):
    """The kinds of rules of the services that there are."""

    def shape(self, key: str) -> Shape | None:
        """The kind of a service's rules; None for an unknown service."""

    def having(self, shape: Shape) -> Iterable[str]:
        """The services with rules of a kind."""


_PARTICULAR = re.compile(r'"[^"]*"|\S*[\d/]\S*|\bKUBE-[A-Z]+-[A-Z2-7]{16}\b')
"""Matches what is particular to one service in an error: addresses, numbers, names, hashed chains."""


def shape_of(plan: ServicePlan) -> Shape:
    """The kind of a service's rules: which kinds of ports it has, however many of each."""
    return frozenset(map(_port_shape, plan.ports))


def error_kind(reason: str) -> str:
    """An error without what is particular to one service."""
    return _PARTICULAR.sub("#", reason)


def _port_shape(port: PortPlan) -> Shape:
    return (
        port.protocol,
        port.affinity_seconds is not None,
        bool(port.node_port),
        bool(port.external_ips),
        bool(port.load_balancer_ips),
        None if port.source_ranges is None else bool(port.source_ranges),
        port.node_in_source_ranges,
        bool(port.health_check_node_port),
        port.internal_local,
        port.external_local,
        port.internal,
        port.external,
        bool(port.local),
        len(port.reachable) > 1,
        any(each.may_be_here for each in port.reachable),
        any(each.weight != 1 for each in port.reachable),
    )
