"""Find the UDP conntrack entries that are stale after a service changed.

UDP has no connection end, so conntrack sends a flow where its first datagram went: to an endpoint that was
removed, or untranslated, if it began while there was no endpoint. The criteria are kube-proxy's
(pkg/proxy/conntrack/cleanup.go), and include services that lost their last endpoint (kubernetes#139628).
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from kproxy.addresses import join_host_port
from kproxy.plan.model import PortPlan, Protocol, ServicePlan

NODE_PORT = ""
"""Stands for every address of the node.

The addresses are not listed, because the kernel also accepts packets for local routes. See
`StaleConntrack.covers`.
"""

Frontend = tuple[str, int]
"""(address or NODE_PORT, port)"""


class StaleConntrack(msgspec.Struct, frozen=True):
    """A description of the stale flows.

    `kept`: frontends that are still served, with the `ip:port` of their endpoints; flows to other endpoints
    are stale. `gone`: frontends that no service has any more, with their former endpoints; flows to these are
    stale. `services`: whose change it was, by frontend, where that is known.
    """

    kept: Mapping[Frontend, frozenset[str]] = {}
    gone: Mapping[Frontend, frozenset[str]] = {}
    services: Mapping[Frontend, str] = {}

    @property
    def ports(self) -> frozenset[int]:
        """The destination ports of such flows."""
        return frozenset(port for _, port in (*self.kept, *self.gone))

    def covers(
        self, dst: str, dst_port: int, answers: str, answers_port: int, *, answered: bool = False
    ) -> bool:
        """Whether a flow is stale; see `frontend`."""
        return self.frontend(dst, dst_port, answers, answers_port, answered=answered) is not None

    def frontend(
        self, dst: str, dst_port: int, answers: str, answers_port: int, *, answered: bool = False
    ) -> Frontend | None:
        """The frontend because of which a flow is stale; None if it is not.

        It was sent to `dst`, and its replies come from `answers`. A flow that was `answered` without
        translation does not belong to a node port: it went to the same port number of another host.
        """
        endpoint = join_host_port(answers, answers_port)
        foreign = answered and (dst, dst_port) == (answers, answers_port)
        for frontend in ((dst, dst_port), (NODE_PORT, dst_port)):
            if foreign and frontend[0] == NODE_PORT:
                return None
            kept = self.kept.get(frontend)
            if kept is not None:
                return frontend if endpoint not in kept else None
            gone = self.gone.get(frontend)
            if gone is not None:
                return frontend if endpoint in gone else None
        return None

    def then(self, later: "StaleConntrack") -> "StaleConntrack":
        """The stale flows after this change and a later one; where both name a frontend, the later counts."""
        kept = {frontend: e for frontend, e in self.kept.items() if frontend not in later.gone}
        gone = {frontend: e for frontend, e in self.gone.items() if frontend not in later.kept}
        services = {**self.services, **later.services}
        return StaleConntrack({**kept, **later.kept}, {**gone, **later.gone}, services)


def together(changes: Iterable[StaleConntrack]) -> StaleConntrack:
    """The stale flows after simultaneous changes of several services, which may have exchanged frontends."""
    kept: dict[Frontend, frozenset[str]] = {}
    gone: dict[Frontend, frozenset[str]] = {}
    services: dict[Frontend, str] = {}
    for change in changes:
        kept.update(change.kept)
        gone.update(change.gone)
        services |= {f: key for f, key in change.services.items() if f in change.kept or f not in kept}
    lost = {frontend: endpoints for frontend, endpoints in gone.items() if frontend not in kept}
    return StaleConntrack(kept, lost, services)


def stale_after(before: ServicePlan | None, after: ServicePlan | None) -> StaleConntrack:
    """The flows that a change from one plan of a service to the next leaves stale.

    With `before` None, as at a start, the flows of the service are unknown: any may be stale.
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
            # Flows to a new address were sent elsewhere until now, most of them untranslated.
            had = set(_frontends(old))
            kept |= {frontend: port.serving for frontend in _frontends(port) if frontend not in had}
    standing = {frontend for port in now.values() for frontend in _frontends(port)}
    for port in was.values():
        gone |= {frontend: port.serving for frontend in _frontends(port) if frontend not in standing}
    return StaleConntrack(kept, gone)


class ConntrackTracker:
    """Holds one family's applied plans with UDP ports, to find the flows that the next plans leave stale."""

    def __init__(self) -> None:
        self._plans: dict[str, ServicePlan] = {}
        self._unknown: set[str] = set()
        """Services whose flows may have begun under other rules than those of their plan."""

    def invalidate(self) -> None:
        """Treat the flows of every service as unknown when it is applied next."""
        self._unknown.update(self._plans)

    def update(self, applied: Mapping[str, ServicePlan]) -> StaleConntrack:
        """Record plans, by key of service, that are now applied; return the flows that they leave stale."""
        changes = []
        for key, plan in applied.items():
            changes.append(_of_service(key, stale_after(self._plans.pop(key, None), plan)))
            if key in self._unknown:
                self._unknown.discard(key)
                changes.append(_of_service(key, stale_after(None, plan)))
            if any(_udp(plan)):
                self._plans[key] = plan
        return together(changes)


def _of_service(key: str, stale: StaleConntrack) -> StaleConntrack:
    if not stale.kept and not stale.gone:
        return stale
    return StaleConntrack(stale.kept, stale.gone, dict.fromkeys((*stale.kept, *stale.gone), key))


def _udp(plan: ServicePlan | None) -> Iterator[PortPlan]:
    for port in plan.ports if plan is not None else ():
        if port.protocol is Protocol.UDP:
            yield port


def _frontends(port: PortPlan) -> Iterable[Frontend]:
    for ip in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
        yield ip, port.port
    if port.node_port:
        yield NODE_PORT, port.node_port
