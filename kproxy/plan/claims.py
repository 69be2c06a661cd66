"""Who may have an address: two services that claim the same address, protocol and port cannot both be right.

kube-proxy writes both: what leads to endpoints acts before what refuses, and otherwise the order of its map
decides. Here a cluster IP beats any other use of the same address (nobody's externalIPs can capture another
service's cluster traffic, CVE-2020-8554), then a port that has an endpoint for outside traffic wins, then the
older service, then the one whose name sorts first; the other keeps everything else it has and is reported. A
port that lost its cluster IP is not served at all, so its other claims are void.
"""

from collections.abc import Iterable, Iterator

import msgspec

from kproxy.plan.model import PortPlan, ServicePlan, Verdict
from kproxy.state.problems import Problem, show

Frontend = tuple[str, int, str]
"""(address, or "" for a node port; port; protocol)."""

_NEWEST = "~"
_HOME, _ANSWERED, _REFUSED = range(3)
"""Ranks: a cluster IP, and any other address that leads to an endpoint, or nowhere."""


class Claim(msgspec.Struct, frozen=True, gc=False, order=True):
    """One service port's claim to a frontend; the smallest wins. `home` is the port's cluster IP frontend."""

    rank: int
    created: str
    port: str
    service: str
    home: Frontend


class Claims:
    """All claims of one family. Answers which parts of a plan its service may have."""

    def __init__(self) -> None:
        self._claims: dict[Frontend, Claim | tuple[Claim, ...]] = {}
        self._of: dict[str, tuple[tuple[Frontend, Claim], ...]] = {}

    def update(self, plan: ServicePlan) -> set[str]:
        """Take a service's new claims; return the other services whose standing may have changed."""
        before = self._of.get(plan.key, ())
        after = tuple(_claims_of(plan))
        if before == after:
            return set()
        affected: set[str] = set()
        at_home: set[str] = set()
        for frontend, claim in before:
            others = self._remove(frontend, claim)
            (affected if claim.rank != _HOME else at_home).update(others)
        for frontend, claim in after:
            others = self._add(frontend, claim)
            (affected if claim.rank != _HOME else at_home).update(others)
        if after:
            self._of[plan.key] = after
        else:
            self._of.pop(plan.key, None)
        for key in at_home:  # their other claims may have become void, or valid again
            affected.update(c.service for f, _ in self._of.get(key, ()) for c in self._held(f))
        affected.discard(plan.key)
        return affected

    def settle(self, plan: ServicePlan) -> ServicePlan:
        """Return the plan without the frontends that belong to others, each of them named as a problem."""
        problems: list[Problem] = []
        ports = tuple(
            settled for port in plan.ports if (settled := self._settle_port(plan, port, problems)) is not None
        )
        if not problems:
            return plan
        return msgspec.structs.replace(plan, ports=ports, problems=(*plan.problems, *problems))

    def _settle_port(self, plan: ServicePlan, port: PortPlan, problems: list[Problem]) -> PortPlan | None:
        def mine(address: str, number: int, field: str) -> bool:
            winner = self._winner((address, number, port.protocol.value))
            if winner is None or winner.port == _identity(port):
                return True
            reason = f"{port.protocol} port {number} already belongs to {winner.port.rpartition(' ')[0]}"
            problems.append(
                Problem(f"Service {plan.key}", field, show(address or number), reason, conflict=True)
            )
            return False

        if not mine(port.cluster_ip, port.port, "spec.clusterIP"):
            return None
        external = tuple(ip for ip in port.external_ips if mine(ip, port.port, "spec.externalIPs"))
        balancer = tuple(
            ip for ip in port.load_balancer_ips if mine(ip, port.port, "status.loadBalancer.ingress")
        )
        node_port = port.node_port if not port.node_port or mine("", port.node_port, "nodePort") else 0
        if (external, balancer, node_port) == (port.external_ips, port.load_balancer_ips, port.node_port):
            return port
        return _without_unused_endpoints(
            msgspec.structs.replace(
                port, external_ips=external, load_balancer_ips=balancer, node_port=node_port
            )
        )

    def _held(self, frontend: Frontend) -> tuple[Claim, ...]:
        held = self._claims.get(frontend, ())
        return held if isinstance(held, tuple) else (held,)

    def _winner(self, frontend: Frontend) -> Claim | None:
        held = self._claims.get(frontend)
        if not isinstance(held, tuple):
            return held
        first = min(held)
        if first.rank == _HOME:
            return first
        return min((c for c in held if self._is_served(c)), default=None)

    def _is_served(self, claim: Claim) -> bool:
        return min(self._held(claim.home)).port == claim.port

    def _add(self, frontend: Frontend, claim: Claim) -> set[str]:
        held = self._claims.get(frontend)
        if held is None:
            self._claims[frontend] = claim
            return set()
        others = held if isinstance(held, tuple) else (held,)
        self._claims[frontend] = (*others, claim)
        return {c.service for c in others}

    def _remove(self, frontend: Frontend, claim: Claim) -> set[str]:
        held = self._claims[frontend]
        if not isinstance(held, tuple):
            del self._claims[frontend]
            return set()
        rest = list(held)
        rest.remove(claim)
        self._claims[frontend] = rest[0] if len(rest) == 1 else tuple(rest)
        return {c.service for c in rest}


def _identity(port: PortPlan) -> str:
    return f"{port.name} {port.protocol}"


def _without_unused_endpoints(port: PortPlan) -> PortPlan:
    """With fewer addresses a port may use fewer policies; endpoints that no policy uses need no chains."""
    if not port.uses_cluster:
        return msgspec.structs.replace(port, cluster=(), reachable=port.local)
    if not port.uses_local:
        return msgspec.structs.replace(port, local=(), reachable=port.cluster)
    return port


def _claims_of(plan: ServicePlan) -> Iterator[tuple[Frontend, Claim]]:
    created = plan.created or _NEWEST
    for port in plan.ports:
        identity, protocol = _identity(port), port.protocol.value
        home = (port.cluster_ip, port.port, protocol)
        yield home, Claim(_HOME, created, identity, plan.key, home)
        rank = _ANSWERED if port.external is Verdict.FORWARD else _REFUSED
        for ip in _once((*port.external_ips, *port.load_balancer_ips), but=port.cluster_ip):
            yield (ip, port.port, protocol), Claim(rank, created, identity, plan.key, home)
        if port.node_port:
            yield ("", port.node_port, protocol), Claim(rank, created, identity, plan.key, home)


def _once(addresses: Iterable[str], *, but: str) -> Iterable[str]:
    return (ip for ip in dict.fromkeys(addresses) if ip != but)
