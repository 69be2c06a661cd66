"""Traffic per service port: the sum of the counters of its virtual servers."""

from collections.abc import Collection, Iterable, Mapping

from kproxy.backends.core.base import PortTraffic
from kproxy.kernel.ipvs.types import ServerId, Statistics
from kproxy.plan.model import PortPlan, ServicePlan


def port_traffic(
    plans: Iterable[ServicePlan], statistics: Mapping[ServerId, Statistics], node_addresses: Collection[str]
) -> tuple[PortTraffic, ...]:
    """The traffic of every service port that has a virtual server."""
    taken: set[ServerId] = set()
    ports = [port for plan in plans for port in plan.ports]
    found: list[PortTraffic] = []
    # A service's own address wins over a node port of the same frontend, as in Desired.owner.
    named = [_named(port) for port in ports]
    taken.update(server for servers in named for server in servers)
    for port, own in zip(ports, named, strict=True):
        protocol = port.protocol.value
        servers = set(own)
        if port.node_port:
            servers |= {ServerId(protocol, ip, port.node_port) for ip in node_addresses} - taken
        counted = [statistics[server] for server in servers if server in statistics]
        if counted:
            found.append(
                PortTraffic(
                    port.name,
                    protocol,
                    sum(each.connections for each in counted),
                    (sum(each.packets_in for each in counted), sum(each.bytes_in for each in counted)),
                    (sum(each.packets_out for each in counted), sum(each.bytes_out for each in counted)),
                )
            )
    return tuple(found)


def _named(port: PortPlan) -> list[ServerId]:
    addresses = dict.fromkeys((port.cluster_ip, *port.external_ips, *port.load_balancer_ips))
    return [ServerId(port.protocol.value, ip, port.port) for ip in addresses]
