"""The lab's topology: namespaces, addresses and routes.

    pods 10.244.1.0/24 -- node -- fabric -- client 192.0.2.0/24
                                    |
    pods 10.244.2.0/24 -- peer -----+

Everything is dual-stack. The fabric is a plain router that translates nothing: it knows both pod ranges,
sends the service and load-balancer ranges to the node, and so carries every reply back untouched.
A pod has its own address only and reaches even its neighbours through its node. With a shared subnet a
neighbour's reply would cross the bridge directly and never be translated back, unless the machine has
br_netfilter; routed pods, as Kubernetes' point-to-point CNI plugins make them, need no such module.

With `LabSpec.plain_bridge` the bridge of the node under test is such a shared subnet, as CNI's bridge plugin
makes it (isDefaultGateway, ipMasq, hairpinMode); `LabSpec.routed_pods` adds pods without a bridge, as its ptp
plugin makes them.
"""

from dataclasses import dataclass
from typing import Final, Literal

from kproxy_lab.lab.namespaces import Namespace
from kproxy_lab.lab.wiring import Wiring

Family = Literal[4, 6]

BRIDGE: Final = "mynet0"
UPLINK: Final = "eth0"

NODE_IP4: Final = ("192.168.100.10", "192.168.100.11")
NODE_IP6: Final = ("fd00:192:168:100::10", "fd00:192:168:100::11")
PEER_IP4: Final = ("192.168.100.20",)
PEER_IP6: Final = ("fd00:192:168:100::20",)
FABRIC_IP4: Final = "192.168.100.1"
FABRIC_IP6: Final = "fd00:192:168:100::1"
CLIENT_GATEWAY_IP4: Final = "192.0.2.1"
CLIENT_GATEWAY_IP6: Final = "2001:db8:1::1"
FIRST_HOST: Final = 10
MOST_HOSTS: Final = 240
FIRST_ROUTED: Final = 130
"""The last digit of the first pod without a bridge: the second half of the node's range."""
MASQUERADE: Final = "lab-masquerade"
"""Name of the nftables tables that stand for the bridge plugin's ipMasq."""


@dataclass(frozen=True, slots=True)
class LabSpec:
    """Size of a lab, and the address ranges routed to its node.

    `client_addresses` source addresses are 192.0.2.10, .11, ... and 2001:db8:1::10, ::11, ...
    `service_cidrs` and `external_cidrs` (load balancers, external IPs) are routed to the node.
    `routed_pods` are further pods of the node, `routed-0` and so on, each on a link of its own without a
    bridge. `plain_bridge`: the local pods share the bridge's subnet, half of the node's range, and what
    leaves it is masqueraded. `cgroup`: the node has a cgroup of its own with its pods below (cgroups.py).
    """

    local_pods: int = 3
    remote_pods: int = 3
    client_addresses: int = 31
    node_name: str = "node-a"
    peer_name: str = "node-b"
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16", "fd00:10:96::/112")
    external_cidrs: tuple[str, ...] = ("203.0.113.0/24", "2001:db8:2::/64")
    routed_pods: int = 0
    plain_bridge: bool = False
    cgroup: bool = False

    def __post_init__(self) -> None:
        halved = MOST_HOSTS // 2
        most = dict.fromkeys(("remote_pods", "client_addresses"), MOST_HOSTS)
        most |= {"local_pods": halved if self.plain_bridge or self.routed_pods else MOST_HOSTS}
        most |= {"routed_pods": halved}
        for field, limit in most.items():
            if not 0 <= getattr(self, field) <= limit:
                raise ValueError(f"{field} must be between 0 and {limit}")

    @property
    def client_ip4(self) -> tuple[str, ...]:
        """The client's IPv4 source addresses; the first is the default."""
        return tuple(f"192.0.2.{FIRST_HOST + i}" for i in range(self.client_addresses))

    @property
    def client_ip6(self) -> tuple[str, ...]:
        """The client's IPv6 source addresses, with the same last digits as the IPv4 ones."""
        return tuple(f"2001:db8:1::{FIRST_HOST + i}" for i in range(self.client_addresses))


@dataclass(frozen=True, slots=True)
class Pod:
    """A server and client: a pod, or a host-network pod with the addresses of its node."""

    name: str
    ip4: str
    ip6: str
    node_name: str
    local: bool
    namespace: Namespace

    def ip(self, family: Family) -> str:
        """Its address of one family."""
        return self.ip4 if family == 4 else self.ip6


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """The addresses and links of one node of the lab."""

    ip4: tuple[str, ...]
    ip6: tuple[str, ...]
    pods_ip4: str
    pods_ip6: str

    @property
    def pod_cidrs(self) -> tuple[str, str]:
        """The node's pod ranges, both families."""
        return f"{self.pods_ip4}.0/24", f"{self.pods_ip6}::/64"

    @property
    def gateways(self) -> tuple[str, str]:
        """The addresses of the node's bridge, through which its pods reach everything."""
        return f"{self.pods_ip4}.1", f"{self.pods_ip6}::1"

    @property
    def bridge_cidrs(self) -> tuple[str, str]:
        """The subnets of a plain bridge; the node's other pods are routed."""
        return f"{self.pods_ip4}.0/25", f"{self.pods_ip6}::/80"

    @property
    def routed_gateways(self) -> tuple[str, str]:
        """The addresses of the node's end of each link to a routed pod."""
        return f"{self.pods_ip4}.{FIRST_ROUTED - 1}", f"{self.pods_ip6}:1::1"

    def pod(self, index: int) -> tuple[str, str]:
        """The addresses of the node's pod number `index`: 10.244.n.10 and fd00:10:244:n::10 upwards."""
        return f"{self.pods_ip4}.{FIRST_HOST + index}", f"{self.pods_ip6}::{FIRST_HOST + index}"

    def routed_pod(self, index: int) -> tuple[str, str]:
        """The addresses of its routed pod number `index`: 10.244.n.130 and fd00:10:244:n:1::10 upwards."""
        return f"{self.pods_ip4}.{FIRST_ROUTED + index}", f"{self.pods_ip6}:1::{FIRST_HOST + index}"


NODE: Final = NodeAddresses(NODE_IP4, NODE_IP6, "10.244.1", "fd00:10:244:1")
PEER: Final = NodeAddresses(PEER_IP4, PEER_IP6, "10.244.2", "fd00:10:244:2")


def wire_fabric(wiring: Wiring, fabric: Namespace) -> None:
    """Prepare the router: a bridge `nodes` for the nodes' segment; uplinks are plugged in later."""
    wiring.prepare(fabric, forwarding=True)
    wiring.bridge(fabric, "nodes")
    wiring.address(fabric, "nodes", f"{FABRIC_IP4}/24", f"{FABRIC_IP6}/64")


def wire_node(
    wiring: Wiring, fabric: Namespace, node: Namespace, own: NodeAddresses, port: str, *, plain: bool = False
) -> None:
    """A node: its uplink into the fabric's port `port`, the bridge for its pods, the default route."""
    wiring.prepare(node, forwarding=True)
    wiring.bridge(node, BRIDGE)
    wiring.address(node, BRIDGE, *_with_prefix(own.gateways, *((25, 80) if plain else (24, 64))))
    wiring.cable(fabric, port, node, UPLINK, bridge="nodes")
    wiring.address(node, UPLINK, *(f"{ip}/24" for ip in own.ip4), *(f"{ip}/64" for ip in own.ip6))
    wiring.route(node, "0.0.0.0/0", via=FABRIC_IP4)
    wiring.route(node, "::/0", via=FABRIC_IP6)
    for cidr, ip in zip(own.pod_cidrs, (own.ip4[0], own.ip6[0]), strict=True):
        wiring.route(fabric, cidr, via=ip)


def wire_neighbours(wiring: Wiring, node: Namespace, other: NodeAddresses) -> None:
    """Routes of `node` to the pods of `other`, straight over the segment both are on."""
    for cidr, ip in zip(other.pod_cidrs, (other.ip4[0], other.ip6[0]), strict=True):
        wiring.route(node, cidr, via=ip)


def wire_pod(wiring: Wiring, node: Namespace, own: NodeAddresses, pod: Pod, port: str) -> None:
    """A pod: a cable into its node's bridge, its own addresses, everything else through the node."""
    wiring.prepare(pod.namespace, forwarding=False)
    wiring.cable(node, port, pod.namespace, UPLINK, bridge=BRIDGE)
    wiring.address(pod.namespace, UPLINK, f"{pod.ip4}/32", f"{pod.ip6}/128")
    for gateway, everything in zip(own.gateways, ("0.0.0.0/0", "::/0"), strict=True):
        wiring.route(pod.namespace, gateway, dev=UPLINK)
        wiring.route(pod.namespace, everything, via=gateway)


def wire_bridged_pod(wiring: Wiring, node: Namespace, own: NodeAddresses, pod: Pod, port: str) -> None:
    """A pod of a plain bridge, which shares its subnet and may reach itself through it."""
    wiring.prepare(pod.namespace, forwarding=False)
    wiring.cable(node, port, pod.namespace, UPLINK, bridge=BRIDGE, hairpin=True)
    wiring.address(pod.namespace, UPLINK, *_with_prefix((pod.ip4, pod.ip6), 25, 80))
    for gateway, everything in zip(own.gateways, ("0.0.0.0/0", "::/0"), strict=True):
        wiring.route(pod.namespace, everything, via=gateway)


def wire_routed_pod(wiring: Wiring, node: Namespace, own: NodeAddresses, pod: Pod, port: str) -> None:
    """A pod on a link of its own, whose other end has the gateway's address and is no port of a bridge."""
    wiring.prepare(pod.namespace, forwarding=False)
    wiring.cable(node, port, pod.namespace, UPLINK)
    wiring.address(node, port, *_with_prefix(own.routed_gateways, 32, 128))
    wiring.address(pod.namespace, UPLINK, f"{pod.ip4}/32", f"{pod.ip6}/128")
    for ip, gateway, everything in zip(
        (f"{pod.ip4}/32", f"{pod.ip6}/128"), own.routed_gateways, ("0.0.0.0/0", "::/0"), strict=True
    ):
        wiring.route(node, ip, dev=port)
        wiring.route(pod.namespace, gateway, dev=UPLINK)
        wiring.route(pod.namespace, everything, via=gateway)


def masquerade(own: NodeAddresses) -> str:
    """Rules as of the bridge plugin's ipMasq, for nft: what leaves the subnet gets the node's address."""
    tables = []
    for family, cidr, multicast in zip(
        ("ip", "ip6"), own.bridge_cidrs, ("224.0.0.0/4", "ff00::/8"), strict=True
    ):
        tables.append(
            f"table {family} {MASQUERADE} {{\n"
            " chain postrouting {\n"
            "  type nat hook postrouting priority 100;\n"
            f"  {family} saddr {cidr} {family} daddr != {{ {cidr}, {multicast} }} masquerade\n"
            " }\n"
            "}\n"
        )
    return "".join(tables)


def wire_client(wiring: Wiring, fabric: Namespace, client: Namespace, spec: LabSpec) -> None:
    """The outside: a segment of its own behind the fabric, with many source addresses."""
    wiring.prepare(client, forwarding=False)
    wiring.cable(fabric, "client", client, UPLINK)
    wiring.address(fabric, "client", f"{CLIENT_GATEWAY_IP4}/24", f"{CLIENT_GATEWAY_IP6}/64")
    wiring.address(client, UPLINK, *(f"{ip}/24" for ip in spec.client_ip4))
    wiring.address(client, UPLINK, *(f"{ip}/64" for ip in spec.client_ip6))
    wiring.route(client, "0.0.0.0/0", via=CLIENT_GATEWAY_IP4)
    wiring.route(client, "::/0", via=CLIENT_GATEWAY_IP6)


def wire_ranges(wiring: Wiring, fabric: Namespace, cidrs: tuple[str, ...]) -> None:
    """Have the fabric send service and load-balancer ranges to the node under test."""
    for cidr in cidrs:
        wiring.route(fabric, cidr, via=NODE_IP6[0] if ":" in cidr else NODE_IP4[0])


def _with_prefix(addresses: tuple[str, str], bits4: int, bits6: int) -> tuple[str, str]:
    return f"{addresses[0]}/{bits4}", f"{addresses[1]}/{bits6}"
