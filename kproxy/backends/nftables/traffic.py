"""Traffic per service port, from the counters of its frontends' elements.

Table nat sees only the first packet of a connection, so the counters count those. A counter starts at zero,
and the element is replaced when its service gets another number of endpoints; so the differences between
readings are added up. Packets after the last reading of a deleted element are not counted.
"""

from collections.abc import Callable, Mapping

from kproxy.backends.core.base import PortTraffic
from kproxy.backends.nftables.names import PROTOCOL_NUMBERS
from kproxy.backends.nftables.render import canonical
from kproxy.plan.model import PortPlan, ServicePlan

Counts = tuple[int, int]
"""(packets, bytes)."""


class Traffic:
    """Totals since the start of this process, and before it for elements that were not replaced."""

    def __init__(self) -> None:
        self._seen: dict[str, Counts] = {}
        self._totals: dict[tuple[str, str], Counts] = {}

    def read(
        self, counted: Mapping[str, Counts], port_at: Callable[[str], PortPlan | None]
    ) -> tuple[PortTraffic, ...]:
        """Return the traffic of each service port with a frontend among the elements of the services map.

        `port_at` returns the port that owns a frontend, or None. Ports without frontends are dropped.
        """
        seen: dict[str, Counts] = {}
        totals: dict[tuple[str, str], Counts] = {}
        for frontend, (packets, size) in counted.items():
            port = port_at(frontend)
            if port is None:
                continue
            before = self._seen.get(frontend, (0, 0))
            if packets < before[0]:
                before = 0, 0
            seen[frontend] = packets, size
            name = port.name, port.protocol.value
            total = totals.get(name) or self._totals.get(name, (0, 0))
            totals[name] = total[0] + packets - before[0], total[1] + size - before[1]
        self._seen, self._totals = seen, totals
        return tuple(
            PortTraffic(name, protocol, counts[0], counts) for (name, protocol), counts in totals.items()
        )


def port_of(plan: ServicePlan, frontend: str) -> PortPlan | None:
    """Return the port of a service that has a frontend, or None.

    If one port's number is another's node port, the address decides.
    """
    ip, protocol, number = frontend.split(" . ")
    rivals = [
        port
        for port in plan.ports
        if str(PROTOCOL_NUMBERS[port.protocol]) == protocol
        and number in {str(port.port), str(port.node_port)}
    ]
    for port in rivals if len(rivals) > 1 else ():
        own = (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)
        if (str(port.port) == number) == (ip in map(canonical, own)):
            return port
    return rivals[0] if rivals else None
