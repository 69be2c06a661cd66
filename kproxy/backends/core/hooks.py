"""The way of a packet through all hooks of the kernel, whatever program wrote the rules there.

The order is that of the kernel: net/ipv4/ip_input.c, ip_forward.c and ip_output.c call the hooks, and
net/netfilter/nf_nat_core.c asks the chains that translate addresses until one decides.
"""

from collections.abc import Sequence

import msgspec

from kproxy.backends.core.packets import (
    IGNORED,
    Branch,
    Flow,
    Hook,
    HookChain,
    outcomes_of,
)
from kproxy.plan.outcomes import Outcome, Packet, PacketVerdict, Route, Routing, Where

_NAT = {Hook.PREROUTING: -100, Hook.OUTPUT: -100, Hook.INPUT: 100, Hook.POSTROUTING: 100}
"""NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC: the core of nat has these, whatever the chains' priorities are."""
_LOOPBACK = "lo"


def walk(chains: Sequence[HookChain], packet: Packet, routing: Routing) -> tuple[Outcome, ...]:
    """What becomes of a packet that meets these chains."""
    return outcomes_of(_Way(chains, routing).of(packet))


class _Way:
    """All ways of one packet; `_ended` are those that have come to an end."""

    def __init__(self, chains: Sequence[HookChain], routing: Routing) -> None:
        self._routing = routing
        self._chains = {
            hook: sorted((chain for chain in chains if chain.hook is hook), key=_place) for hook in Hook
        }
        self._ended: list[Branch] = []

    def of(self, packet: Packet) -> list[Branch]:
        """The branches of a packet, each with its verdict."""
        flow = Flow(
            packet.source,
            packet.destination,
            packet.protocol,
            packet.port,
            packet.source_port,
            incoming=None,
            client=packet.where,
        )
        if packet.where is Where.NODE:
            self._from_node(Branch(msgspec.structs.replace(flow, incoming="")))
        else:
            self._arriving(Branch(msgspec.structs.replace(flow, incoming=packet.interface)))
        return self._ended

    def _arriving(self, start: Branch) -> None:
        for branch in self._hook(Hook.PREROUTING, [start]):
            flow = branch.flow
            route = self._route(flow, flow.incoming)
            if route is None:
                self._unreachable(branch)
            elif route.local:
                self._input([branch])
            else:
                leaving = branch.to(msgspec.structs.replace(flow, outgoing=route.interface or None))
                self._leave(self._hook(Hook.FORWARD, [leaving]))

    def _from_node(self, start: Branch) -> None:
        route = self._routing.route(start.flow.destination, start.flow.source)
        if route is None:
            self._unreachable(start)
            return
        before = start.to(msgspec.structs.replace(start.flow, outgoing=_outgoing(route)))
        for branch in self._hook(Hook.OUTPUT, [before]):
            flow = branch.flow
            if (flow.destination, flow.mark) == (before.flow.destination, before.flow.mark):
                again: Route | None = route
            else:  # ip_route_me_harder
                again = self._route(flow)
            if again is None:
                self._unreachable(branch)
                continue
            leaving = branch.to(msgspec.structs.replace(flow, outgoing=_outgoing(again)))
            if not again.local:
                self._leave([leaving])
                continue
            for looped in self._hook(Hook.POSTROUTING, [leaving]):
                entering = msgspec.structs.replace(looped.flow, incoming=_LOOPBACK, outgoing="")
                self._input(self._hook(Hook.PREROUTING, [looped.to(entering)]))

    def _input(self, branches: Sequence[Branch]) -> None:
        """Deliver to the node, unless IPVS takes the packet."""
        for branch in self._hook(Hook.INPUT, branches):
            if not branch.flow.scheduled or branch.flow.incoming == _LOOPBACK:
                self._done(branch)
                continue
            route = self._routing.route(branch.flow.destination)
            if route is None:
                self._unreachable(branch)
            elif route.local:
                self._done(branch)
            else:
                flow = msgspec.structs.replace(branch.flow, incoming="", outgoing=route.interface or None)
                self._leave(self._hook(Hook.OUTPUT, [branch.to(flow)]))

    def _leave(self, branches: Sequence[Branch]) -> None:
        for branch in self._hook(Hook.POSTROUTING, branches):
            self._done(branch)

    def _hook(self, hook: Hook, branches: Sequence[Branch]) -> list[Branch]:
        """Pass all chains of a hook; branches that end there are kept aside.

        A packet of the node that IPVS has translated to another host passes the hook once more. One that is
        received and that IPVS takes meets no further chain of INPUT.
        """
        again_from_start: list[Branch] = []
        stolen: list[Branch] = []
        going = list(branches)
        for chain in self._chains[hook]:
            after: list[Branch] = []
            for branch in going:
                for each in self._chain(hook, chain, branch):
                    newly = each.flow.scheduled and not branch.flow.scheduled
                    if newly and hook is Hook.INPUT:
                        stolen.append(each)
                    elif newly and hook is Hook.OUTPUT and not self._routing.is_local(each.flow.destination):
                        again_from_start.append(_decided(each, hook))
                    else:
                        after.append(each)
            going = after
        if again_from_start:
            going += self._hook(hook, again_from_start)
        going += stolen
        if hook not in _NAT:
            return going
        before_nat = hook is Hook.INPUT  # IPVS takes packets before table nat of INPUT
        return [
            branch if before_nat and branch.flow.scheduled else _decided(branch, hook) for branch in going
        ]

    def _chain(self, hook: Hook, chain: HookChain, branch: Branch) -> list[Branch]:
        if chain.translates and (branch.flow.untracked or branch.flow.bound[hook in _SOURCE_HOOKS]):
            return [branch]
        going = []
        for each in chain.walk(branch, self._routing):
            if each.probability <= IGNORED:
                continue
            if each.verdict is not None:
                self._ended.append(each)
            elif chain.translates and _is_translated(branch.flow, each.flow):
                going.append(_decided(each, hook))
            else:
                going.append(each)
        return going

    def _route(self, flow: Flow, interface: str | None = None) -> Route | None:
        source = flow.source if interface else ""
        return self._routing.route(flow.destination, source, flow.mark, interface or None)

    def _unreachable(self, branch: Branch) -> None:
        reason = f"no route to {branch.flow.destination}"
        self._ended.append(branch.step(f"routing: {reason}").end(PacketVerdict.REJECT, reason))

    def _done(self, branch: Branch) -> None:
        served = branch.flow.translated or branch.flow.connected
        self._ended.append(branch.end(PacketVerdict.FORWARD if served else PacketVerdict.UNTOUCHED))


_SOURCE_HOOKS = frozenset({Hook.INPUT, Hook.POSTROUTING})


def _place(chain: HookChain) -> tuple[int, int]:
    if chain.translates:
        return _NAT.get(chain.hook, chain.priority), chain.priority
    return chain.priority, 0


def _is_translated(before: Flow, after: Flow) -> bool:
    return (before.destination, before.port, before.source, before.masqueraded) != (
        after.destination,
        after.port,
        after.source,
        after.masqueraded,
    ) or (after.translated and not before.translated)


def _decided(branch: Branch, hook: Hook) -> Branch:
    to, source = branch.flow.bound
    bound = (to, True) if hook in _SOURCE_HOOKS else (True, source)
    return (
        branch if bound == branch.flow.bound else branch.to(msgspec.structs.replace(branch.flow, bound=bound))
    )


def _outgoing(route: Route) -> str | None:
    return _LOOPBACK if route.local else route.interface or None
