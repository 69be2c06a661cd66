"""Which UDP flows have to be forgotten when a service changes.

UDP has no end, so the kernel goes on sending a flow where its first datagram went: to an endpoint that left,
or nowhere, if it began while there was none. The rules are kube-proxy's (pkg/proxy/conntrack/cleanup.go), and
services that lost their last endpoint are no exception (kubernetes#139628).
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kproxy.addresses import join_host_port
from kproxy.plan.model import PortPlan, Protocol, ServicePlan

NODE_PORT = ""
"""Stands for every address of the node.

Which these are is not asked: the kernel takes routes for addresses, too. See `StaleConntrack.covers`.
"""

Frontend = tuple[str, int]
"""(address or NODE_PORT, port)"""


class StaleConntrack(msgspec.Struct, frozen=True):
    """Flows to look for.

    `kept`: frontends that stay, with the `ip:port` of the endpoints that may answer them; all others are
    stale. `gone`: frontends that nobody has any more, with the endpoints that used to answer them; these are
    stale.
    """

    kept: Mapping[Frontend, frozenset[str]] = {}
    gone: Mapping[Frontend, frozenset[str]] = {}

    @property
    def ports(self) -> frozenset[int]:
        """The ports that such a flow was sent to."""
        return frozenset(port for _, port in (*self.kept, *self.gone))

    def covers(
        self, dst: str, dst_port: int, answers: str, answers_port: int, *, answered: bool = False
    ) -> bool:
        """Whether a flow is stale that was sent to the one and is answered by the other.

        A flow that was `answered` untranslated is somebody else's, to another host's port of the number of
        a node port.
        """
        endpoint = join_host_port(answers, answers_port)
        foreign = answered and (dst, dst_port) == (answers, answers_port)
        for frontend in ((dst, dst_port), (NODE_PORT, dst_port)):
            if foreign and frontend[0] == NODE_PORT:
                return False
            kept = self.kept.get(frontend)
            if kept is not None:
                return endpoint not in kept
            gone = self.gone.get(frontend)
            if gone is not None:
                return endpoint in gone
        return False

    def then(self, later: "StaleConntrack") -> "StaleConntrack":
        """What to look for after a later change too, of which the outcome counts."""
        kept = {frontend: e for frontend, e in self.kept.items() if frontend not in later.gone}
        gone = {frontend: e for frontend, e in self.gone.items() if frontend not in later.kept}
        return StaleConntrack({**kept, **later.kept}, {**gone, **later.gone})


def together(changes: Iterable[StaleConntrack]) -> StaleConntrack:
    """What to look for after changes of several services at once, which may have exchanged frontends."""
    kept: dict[Frontend, frozenset[str]] = {}
    gone: dict[Frontend, frozenset[str]] = {}
    for change in changes:
        kept.update(change.kept)
        gone.update(change.gone)
    return StaleConntrack(kept, {frontend: e for frontend, e in gone.items() if frontend not in kept})


def stale_after(before: ServicePlan | None, after: ServicePlan | None) -> StaleConntrack:
    """What a change from one plan of a service to the next leaves behind.

    With `before` None, as at a start, nobody has looked at the flows of the service: any may be stale.
    """
    was = {port.name: port for port in _udp(before)}
    now = {port.name: port for port in _udp(after)}
    kept: dict[Frontend, frozenset[str]] = {}
    gone: dict[Frontend, frozenset[str]] = {}
    for name, port in now.items():
        old = was.get(name)
        served = old.serving if old is not None else frozenset()
        if old is None or not served.issubset(port.serving) or (port.serving and not served):
            kept |= dict.fromkeys(_frontends(port), port.serving)
        elif port.serving:
            # Flows to an address that is new went elsewhere until now, most of them nowhere.
            had = set(_frontends(old))
            kept |= {frontend: port.serving for frontend in _frontends(port) if frontend not in had}
    standing = {frontend for port in now.values() for frontend in _frontends(port)}
    for port in was.values():
        gone |= {frontend: port.serving for frontend in _frontends(port) if frontend not in standing}
    return StaleConntrack(kept, gone)


class ConntrackTracker:
    """The plans with UDP ports that one family's kernel holds, to tell what the next ones leave stale."""

    def __init__(self) -> None:
        self._plans: dict[str, ServicePlan] = {}
        self._doubtful = True

    def invalidate(self) -> None:
        """Flows may have gone elsewhere than the plans say; a turn of all plans has to follow."""
        self._doubtful = True

    def update(self, applied: Mapping[str, ServicePlan]) -> StaleConntrack:
        """Note plans by key of service that are in the kernel now; return what they leave stale."""
        changes = []
        for key, plan in applied.items():
            changes.append(stale_after(self._plans.pop(key, None), plan))
            if self._doubtful:
                changes.append(stale_after(None, plan))
            if any(_udp(plan)):
                self._plans[key] = plan
        self._doubtful = False
        return together(changes)


def _udp(plan: ServicePlan | None) -> Iterator[PortPlan]:
    for port in plan.ports if plan is not None else ():
        if port.protocol is Protocol.UDP:
            yield port


def _frontends(port: PortPlan) -> Iterable[Frontend]:
    for ip in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
        yield ip, port.port
    if port.node_port:
        yield NODE_PORT, port.node_port
