"""What happens to a packet: one type for what is desired and for what the kernel would do.

`kproxy explain` compares two sets of outcomes of one packet: those of the plan, and those of an interpreter
that walks the rules in the kernel. They can be compared because both say it in the same words.
"""

import enum
from collections.abc import Callable
from typing import Protocol as Interface

import msgspec

from kproxy.addresses import Family
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol


class PacketVerdict(enum.StrEnum):
    """What becomes of a new connection's first packet.

    FORWARD: it goes to `endpoint`. REJECT: the client is answered with an error. DROP: no answer.
    UNTOUCHED ("pass"): no rule of kproxy's acts on it, it goes where its destination leads. UNKNOWN: a rule
    that is not modelled decides.
    """

    FORWARD = "forward"
    REJECT = "reject"
    DROP = "drop"
    UNTOUCHED = "pass"
    UNKNOWN = "unknown"


class Where(enum.StrEnum):
    """Where a packet comes from, as this node sees it: one of its processes, one of its pods, or outside."""

    NODE = "node"
    POD = "pod"
    OUTSIDE = "outside"


class Packet(msgspec.Struct, frozen=True):
    """The first packet of a connection. Addresses are canonical and of one family.

    `interface` is the device it arrives on, None if it is not known or for a process of the node. A
    `source_port` of 0 stands for any.
    """

    source: str
    protocol: Protocol
    destination: str
    port: int
    where: Where
    interface: str | None = None
    source_port: int = 0

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.IPV6 if ":" in self.destination else Family.IPV4


class Outcome(msgspec.Struct, frozen=True):
    """One way a packet can go, with the probability (0-1) that it goes it.

    `endpoint` is `ip:port` (`[ip]:port` in IPv6) for FORWARD, else None. `masquerade`: the endpoint sees an
    address of the node instead of the client's. `steps` are the rules on the way, first to last, each as
    `table chain: rule`. `reason` says in words why, for verdicts that need it.
    """

    verdict: PacketVerdict
    probability: float = 1.0
    endpoint: str | None = None
    masquerade: bool = False
    steps: tuple[str, ...] = ()
    reason: str = ""


def merged(outcomes: list[Outcome]) -> tuple[Outcome, ...]:
    """Join outcomes that differ in steps only: probabilities add up, the steps of the likeliest stay.

    The result is ordered by verdict, endpoint, masquerade: equal behaviour gives equal tuples but for steps.
    """
    joined: dict[tuple[str, str, bool, str], tuple[Outcome, float]] = {}
    for each in sorted(outcomes, key=lambda each: -each.probability):
        key = (each.verdict, each.endpoint or "", each.masquerade, each.reason)
        first, total = joined.get(key, (each, 0.0))
        joined[key] = (first, total + each.probability)
    return tuple(
        msgspec.structs.replace(first, probability=total) for _, (first, total) in sorted(joined.items())
    )


class FrontendKind(enum.StrEnum):
    """How a Service has an address and port."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IP = "ExternalIP"


Shares = Callable[[PortPlan, tuple[EndpointPlan, ...], int], tuple[float, ...]]
"""The share (0-1) of new connections of each of a port's endpoints, as a mode realizes the weights.

The endpoints are `cluster` or `local` of the port; the number is that of the ports of its Service.
"""


class ModeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The desired behaviour of one family where the modes differ; all of it is intended.

    `node_port_addresses` are the addresses that serve node ports; None: every address of the node except
    those of loopback, and these too if `loopback_node_ports`. `node_port_refusals_everywhere`: node ports
    without an endpoint are refused at every address of the node.

    `refuses_node_itself`: the node's own packets to external and load-balancer addresses that are not on the
    node are refused too, where packets of others are refused. `refuses_unallocated`: the kinds of addresses
    at which ports that no Service has are rejected. `admits_external_ips`: an address that is both an
    external and a load-balancer IP is not subject to source ranges. `masquerades_own`: the node's own packets
    to cluster IPs are masqueraded even where local pod traffic is not detected. `hairpin_anywhere`: a packet
    from an endpoint to itself is masqueraded even if the endpoint is on another node. `services_on_node`: the
    node has the addresses of services. `at_socket`: the client's socket gets its endpoint when it connects,
    so that its packets are not translated.

    `rules_for_local_policy`: where the external policy is Local, rules as in iptables mode lead pods and the
    node itself to all endpoints: by weight, with `hairpin_anywhere`; of these, the node is recognized first,
    also by an address of the pods' range.

    `shares`: see Shares; `scheduler` names what chooses an endpoint where that is not chance by weight.
    """

    shares: Shares
    node_port_addresses: tuple[str, ...] | None = None
    loopback_node_ports: bool = False
    node_port_refusals_everywhere: bool = False
    refuses_node_itself: bool = True
    refuses_unallocated: frozenset[FrontendKind] = frozenset()
    admits_external_ips: bool = False
    masquerades_own: bool = False
    services_on_node: bool = False
    hairpin_anywhere: bool = False
    rules_for_local_policy: bool = False
    scheduler: Callable[[PortPlan], str] = lambda _port: ""
    at_socket: Callable[[Packet, PortPlan], bool] = lambda _packet, _port: False


class Route(msgspec.Struct, frozen=True):
    """Where the kernel sends a packet: to a process of the node (`local`) or out of `interface`.

    `source` is the address that the kernel prefers for the node's own packets. Empty texts are not known.
    """

    interface: str = ""
    local: bool = False
    source: str = ""


class Routing(Interface):
    """The routes and addresses of a node, as its kernel or a description of it gives them."""

    def route(
        self, destination: str, source: str = "", mark: int = 0, interface: str | None = None
    ) -> Route | None:
        """The route of a packet; None if there is none. `interface` is where it arrived."""

    def is_local(self, address: str) -> bool:
        """Whether it is an address of the node (fib type local)."""
