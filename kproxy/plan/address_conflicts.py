"""Resolve conflicts: only one service can have a frontend (address, protocol and port).

kube-proxy writes rules for all claimants: DNAT rules act before REJECT rules, and otherwise the order of its
map decides. Here a cluster IP beats any other use of the same address (externalIPs of one service cannot
capture another's cluster traffic, CVE-2020-8554). An address of a load balancer, which a controller assigned,
beats one of spec.externalIPs, which any author of a Service can write. Among equals a port without an
endpoint anywhere, which would reject connections, loses to one with endpoints; then the older service wins,
then the one whose name sorts first. Policy Local on a node without an endpoint drops packets on purpose, so
that a load balancer uses other nodes: such a port does not lose, and every node finds the same winner. The
loser keeps its other frontends and is reported. A port that lost its cluster IP is not served at all, so its
other claims are void.

The healthCheckNodePort of a service with policy Local is taken at every address of the node. An externalIP or
a node port of a younger service cannot have it.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

import msgspec

from kproxy.plan.claims import Claims, Frontend, PortClaims, Rank
from kproxy.plan.model import PortPlan, Protocol, ServicePlan, Verdict, without_unused_endpoints
from kproxy.plan.problem_list import ProblemList

RIVAL_CLAIMS = 1_000
"""Claims of which `rivals` reads the service, for each service: many may share many addresses."""

_NEWEST = "~"
_NO_RANKS: dict[Frontend, Rank] = {}
"""Shared by all ports that have a cluster IP only."""


class AddressConflicts:
    """All claims of one family; decides which frontends of a plan its service may have."""

    def __init__(self) -> None:
        self._claims = Claims()
        self._health_checks: dict[int, list[tuple[str, str]]] = {}
        """healthCheckNodePort -> (created, service) of each service that has it, the oldest first."""
        self._health_check_of: dict[str, tuple[int, str]] = {}

    def update(self, plan: ServicePlan, local: Collection[str] = ()) -> set[str]:
        """Replace a service's claims; return the other services whose frontends may have changed.

        `local` are the node's own addresses.
        """
        affected = self._update_health_check(plan, local)
        affected |= self._claims.replace(plan.key, _claims_of(plan))
        affected.discard(plan.key)
        return affected

    def rivals(self, keys: Iterable[str]) -> set[str]:
        """The other services that claim a frontend of one of these services; see `RIVAL_CLAIMS`."""
        chosen = set(keys)
        found: set[str] = set()
        for key in chosen:
            found.update(islice(self._claims.beside(key), RIVAL_CLAIMS))
        return found - chosen

    def owner(self, frontend: Frontend) -> str | None:
        """The service that has a frontend, or None."""
        winner = self._claims.winner(frontend)
        return None if winner is None else winner.service

    def frontends_at(self, address: str) -> list[Frontend]:
        """The frontends at an address that some service has, in order."""
        return self._claims.frontends_at(address)

    def settle(self, plan: ServicePlan, local: Collection[str] = ()) -> ServicePlan:
        """Return the plan without the frontends that other services won; they are added as problems."""
        problems = ProblemList(f"Service {plan.key}")
        ports = tuple(
            settled
            for port in plan.ports
            if (settled := self._settle_port(plan, port, local, problems)) is not None
        )
        if not problems:
            return plan
        return msgspec.structs.replace(plan, ports=ports, problems=(*plan.problems, *problems.result()))

    def _settle_port(
        self, plan: ServicePlan, port: PortPlan, local: Collection[str], problems: ProblemList
    ) -> PortPlan | None:
        identity, protocol = _identity(port), port.protocol.value

        def mine(address: str, number: int, field: str) -> bool:
            winner = self._claims.winner((address, number, protocol))
            checked = self._checked_there(plan, port, number) if not address or address in local else None
            if winner is not None and winner.identity != identity:
                owner = winner.identity.rpartition(" ")[0]
                rival, reason = winner.service, f"{protocol} port {number} already belongs to {owner}"
            elif checked is not None and address != port.cluster_ip:
                rival = checked
                reason = f"{protocol} port {number} is already the healthCheckNodePort of {checked}"
            else:
                return True
            problems.add_similar((field, rival), field, address or number, reason, conflict=True)
            return False

        if not mine(port.cluster_ip, port.port, "spec.clusterIP"):
            return None
        if not port.externally_accessible:
            return port
        external = tuple(ip for ip in port.external_ips if mine(ip, port.port, "spec.externalIPs"))
        balancer = tuple(
            ip for ip in port.load_balancer_ips if mine(ip, port.port, "status.loadBalancer.ingress")
        )
        node_port = port.node_port if not port.node_port or mine("", port.node_port, "nodePort") else 0
        if (external, balancer, node_port) == (port.external_ips, port.load_balancer_ips, port.node_port):
            return port
        return without_unused_endpoints(
            msgspec.structs.replace(
                port, external_ips=external, load_balancer_ips=balancer, node_port=node_port
            )
        )

    def _update_health_check(self, plan: ServicePlan, local: Collection[str]) -> set[str]:
        """Replace a service's healthCheckNodePort; return services with claims to the old or new port."""
        number = next((p.health_check_node_port for p in plan.ports if p.health_check_node_port), 0)
        before = self._health_check_of.get(plan.key)
        after = (number, plan.created or _NEWEST) if number else None
        if before == after:
            return set()
        if before is not None:
            known = self._health_checks[before[0]]
            del known[bisect_left(known, (before[1], plan.key))]
            if not known:
                del self._health_checks[before[0]]
            del self._health_check_of[plan.key]
        if after is not None:
            insort(self._health_checks.setdefault(number, []), (after[1], plan.key))
            self._health_check_of[plan.key] = after
        return {
            service
            for port, _ in filter(None, (before, after))
            for address in ("", *local)
            for service in self._claims.services_at((address, port, Protocol.TCP.value))
        } - {plan.key}

    def _checked_there(self, plan: ServicePlan, port: PortPlan, number: int) -> str | None:
        """The older service that has this port as its healthCheckNodePort, or None."""
        if port.protocol is not Protocol.TCP:
            return None
        oldest = next((each for each in self._health_checks.get(number, ()) if each[1] != plan.key), None)
        return oldest[1] if oldest is not None and oldest < (plan.created or _NEWEST, plan.key) else None


def _identity(port: PortPlan) -> str:
    return f"{port.name} {port.protocol}"


def _claims_of(plan: ServicePlan) -> Iterator[PortClaims]:
    created = plan.created or _NEWEST
    for port in plan.ports:
        protocol = port.protocol.value
        cluster_ip_frontend = (port.cluster_ip, port.port, protocol)
        if not port.externally_accessible:
            yield PortClaims(created, _identity(port), plan.key, cluster_ip_frontend, _NO_RANKS)
            continue
        refused = port.external is Verdict.REJECT
        other = Rank.OTHER_REFUSED if refused else Rank.OTHER
        ranks: dict[Frontend, Rank] = {(ip, port.port, protocol): other for ip in port.external_ips}
        balancer = Rank.BALANCER_REFUSED if refused else Rank.BALANCER
        ranks |= {(ip, port.port, protocol): balancer for ip in port.load_balancer_ips}
        if port.node_port:
            ranks["", port.node_port, protocol] = other
        ranks.pop(cluster_ip_frontend, None)
        yield PortClaims(created, _identity(port), plan.key, cluster_ip_frontend, ranks)
