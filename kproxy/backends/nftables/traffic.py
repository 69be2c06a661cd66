"""Traffic per service port, read off the counters of the elements that lead to it.

Table nat sees the first packet of a connection only, so that is what they count. An element begins at
nothing, and another takes its place when its service gets another number of endpoints; so it is the
differences between readings that are added up. What comes after the last reading of an element that goes is
not counted.
"""

from collections.abc import Callable, Mapping

from kproxy.backends.core.base import PortTraffic
from kproxy.backends.nftables.names import PROTOCOL_NUMBERS
from kproxy.backends.nftables.render import canonical
from kproxy.plan.model import PortPlan, ServicePlan

Counts = tuple[int, int]
"""(packets, bytes)."""


class Traffic:
    """What was counted since this process began, and before it where an element is still the same."""

    def __init__(self) -> None:
        self._seen: dict[str, Counts] = {}
        self._totals: dict[tuple[str, str], Counts] = {}

    def read(
        self, counted: Mapping[str, Counts], port_at: Callable[[str], PortPlan | None]
    ) -> tuple[PortTraffic, ...]:
        """The traffic of each service port with a frontend among the elements of the services map.

        `port_at` tells whose a frontend is; None: nobody's any more. A port without frontends is forgotten.
        """
        seen: dict[str, Counts] = {}
        totals: dict[tuple[str, str], Counts] = {}
        for asked, (packets, octets) in counted.items():
            port = port_at(asked)
            if port is None:
                continue
            before = self._seen.get(asked, (0, 0))
            if packets < before[0]:
                before = 0, 0
            seen[asked] = packets, octets
            name = port.name, port.protocol.value
            total = totals.get(name) or self._totals.get(name, (0, 0))
            totals[name] = total[0] + packets - before[0], total[1] + octets - before[1]
        self._seen, self._totals = seen, totals
        return tuple(
            PortTraffic(name, protocol, counts[0], counts) for (name, protocol), counts in totals.items()
        )


def port_of(plan: ServicePlan, asked: str) -> PortPlan | None:
    """The port of a service that a frontend is of.

    One port's number may be another's node port: then the address decides.
    """
    ip, protocol, number = asked.split(" . ")
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
