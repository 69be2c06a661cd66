"""What IPVS does with a packet: the virtual server that takes it, and the destinations that may get it.

IPVS takes packets at the end of INPUT, and those of the node itself in OUTPUT after the translation of
addresses (ip_vs_ops4 in net/netfilter/ipvs/ip_vs_core.c). A packet that it translates to another host passes
OUTPUT from the start.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from kproxy.addresses import join_host_port
from kproxy.backends.core.packets import Branch, Flow, Hook
from kproxy.kernel.ipvs.types import (
    PERSISTENT,
    DestinationId,
    DestinationState,
    ServerId,
    VirtualServer,
)
from kproxy.plan.outcomes import PacketVerdict, Routing

Destinations = Mapping[DestinationId, DestinationState]
Template = tuple[str, ServerId]
"""A client's address and the virtual server that it is bound to."""

_PLACES = {Hook.INPUT: 99, Hook.OUTPUT: -98}
"""NF_IP_PRI_NAT_SRC - 1, and NF_IP_PRI_NAT_DST + 2."""
EVEN = frozenset({"rr", "lc", "dh"})
"""The schedulers that look at a weight only to see whether it is 0."""
_BY_SOURCE = frozenset({"sh", "mh"})
_BY_DESTINATION = frozenset({"dh", "lblc", "lblcr"})


class Servers(msgspec.Struct, frozen=True):
    """The virtual servers of a family at one moment.

    `destinations` returns those of a server, in the kernel's order. `templates` are the destinations of
    clients with affinity (persistence); weights of 0 end it if `quiescent`. `local_marks` are the marks of
    virtual servers that lead to the node itself, `marks` those of others.
    """

    held: Mapping[ServerId, VirtualServer]
    destinations: Callable[[ServerId], Destinations]
    templates: Mapping[Template, DestinationId] = {}
    quiescent: bool = False
    local_marks: frozenset[int] = frozenset()
    marks: frozenset[int] = frozenset()


class ServersAtHook:
    """The virtual servers, as packets meet them at one hook; see HookChain."""

    table = "ipvs"
    translates = False

    def __init__(self, hook: Hook, servers: Servers) -> None:
        self.hook = hook
        self.priority = _PLACES[hook]
        self._servers = servers

    def walk(self, branch: Branch, routing: Routing) -> Sequence[Branch]:  # noqa: ARG002 - of HookChain
        """See HookChain.walk."""
        flow = branch.flow
        if flow.scheduled or flow.mark in self._servers.local_marks:
            return [branch]
        if flow.mark in self._servers.marks:
            text = f"ipvs: the virtual server of mark {flow.mark:#x}"
            return [branch.step(text).end(PacketVerdict.UNKNOWN, f"not modelled: {text}")]
        key = ServerId(flow.protocol.value, flow.destination, flow.port)
        server = self._servers.held.get(key)
        return [branch] if server is None else self._scheduled(branch, key, server)

    def _scheduled(self, branch: Branch, key: ServerId, server: VirtualServer) -> list[Branch]:
        known = self._servers.destinations(key)
        name = f"ipvs: {key.protocol} {join_host_port(key.ip, key.port)} {server.scheduler}"
        if server.flags & PERSISTENT:
            bound = self._servers.templates.get((branch.flow.source, key))
            if bound in known and bound is not None and (known[bound].weight or not self._servers.quiescent):
                return [_to(branch.step(f"{name}: persistent, bound to {_text(bound)}"), bound)]
        shares = shares_of(server.scheduler, known)
        if not shares:
            text = f"{name}: no destination of weight"
            return [branch.step(text).end(PacketVerdict.REJECT, text)]
        how = _chosen_by(server.scheduler)
        return [
            _to(
                branch.share(share).step(f"{name} -> {_text(chosen)} weight {known[chosen].weight}{how}"),
                chosen,
            )
            for chosen, share in shares.items()
        ]


def servers_at_hooks(servers: Servers) -> tuple[ServersAtHook, ...]:
    """The virtual servers at each hook where they take packets."""
    return tuple(ServersAtHook(hook, servers) for hook in _PLACES)


def shares_of(scheduler: str, known: Destinations) -> dict[DestinationId, float]:
    """The share of new connections of each destination that takes some."""
    weights = {each: state.weight for each, state in known.items() if state.weight > 0}
    if scheduler in EVEN:
        weights = dict.fromkeys(weights, 1)
    total = sum(weights.values())
    return {each: weight / total for each, weight in weights.items()}


def _chosen_by(scheduler: str) -> str:
    """What decides between destinations, where it is not the turn or the number of connections."""
    if scheduler in _BY_SOURCE:
        return " (the hash of the source decides)"
    return " (the hash of the destination decides)" if scheduler in _BY_DESTINATION else ""


def _to(branch: Branch, chosen: DestinationId) -> Branch:
    flow: Flow = msgspec.structs.replace(
        branch.flow,
        destination=chosen.ip,
        port=chosen.port or branch.flow.port,
        translated=True,
        scheduled=True,
    )
    return branch.to(flow)


def _text(destination: DestinationId) -> str:
    return join_host_port(destination.ip, destination.port)
