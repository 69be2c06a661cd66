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

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

import msgspec

from kproxy.plan.model import PortPlan, Protocol, ServicePlan, Verdict, without_unused_endpoints
from kproxy.state.problems import Problem, show

Frontend = tuple[str, int, str]
"""(address, or "" for a node port; port; protocol)."""

RIVAL_CLAIMS = 1_000
"""Claims of which `rivals` reads the service, for each service: many may share many addresses."""

_NEWEST = "~"
_HOME, _BALANCER, _BALANCER_REFUSED, _OTHER, _OTHER_REFUSED = range(5)
"""Ranks: a cluster IP, a load balancer's address, any other; the latter two with endpoints or without."""


class Claim(msgspec.Struct, frozen=True, gc=False, order=True):
    """One service port's claim to a frontend; the smallest wins. `home` is the port's cluster IP frontend."""

    rank: int
    created: str
    port: str
    service: str
    home: Frontend


class AddressConflicts:
    """All claims of one family; decides which frontends of a plan its service may have."""

    def __init__(self) -> None:
        self._claims: dict[Frontend, Claim | tuple[Claim, ...]] = {}
        self._of: dict[str, tuple[tuple[Frontend, Claim], ...]] = {}
        self._health_checks: dict[int, frozenset[tuple[str, str]]] = {}
        """healthCheckNodePort -> (created, service) of each service that has it."""
        self._health_check_of: dict[str, tuple[int, str]] = {}

    def update(self, plan: ServicePlan, local: Collection[str] = ()) -> set[str]:
        """Replace a service's claims; return the other services whose frontends may have changed.

        `local` are the node's own addresses.
        """
        before = self._of.get(plan.key, ())
        after = tuple(_claims_of(plan))
        affected = self._update_health_check(plan, local)
        if before == after:
            return affected
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

    def rivals(self, keys: Iterable[str]) -> set[str]:
        """The other services that claim a frontend of one of these services; see `RIVAL_CLAIMS`."""
        chosen = set(keys)
        found: set[str] = set()
        for key in chosen:
            claims = (c.service for frontend, _ in self._of.get(key, ()) for c in self._held(frontend))
            found.update(islice(claims, RIVAL_CLAIMS))
        return found - chosen

    def settle(self, plan: ServicePlan, local: Collection[str] = ()) -> ServicePlan:
        """Return the plan without the frontends that other services won; each is added as a problem."""
        problems: list[Problem] = []
        ports = tuple(
            settled
            for port in plan.ports
            if (settled := self._settle_port(plan, port, local, problems)) is not None
        )
        if not problems:
            return plan
        return msgspec.structs.replace(plan, ports=ports, problems=(*plan.problems, *problems))

    def _settle_port(
        self, plan: ServicePlan, port: PortPlan, local: Collection[str], problems: list[Problem]
    ) -> PortPlan | None:
        def mine(address: str, number: int, field: str) -> bool:
            winner = self._winner((address, number, port.protocol.value))
            checked = self._checked_there(plan, port, number) if not address or address in local else None
            if winner is not None and winner.port != _identity(port):
                owner = winner.port.rpartition(" ")[0]
                reason = f"{port.protocol} port {number} already belongs to {owner}"
            elif checked is not None and address != port.cluster_ip:
                reason = f"{port.protocol} port {number} is already the healthCheckNodePort of {checked}"
            else:
                return True
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
            rest = self._health_checks[before[0]] - {(before[1], plan.key)}
            if rest:
                self._health_checks[before[0]] = rest
            else:
                del self._health_checks[before[0]]
            del self._health_check_of[plan.key]
        if after is not None:
            known = self._health_checks.get(number, frozenset())
            self._health_checks[number] = known | {(after[1], plan.key)}
            self._health_check_of[plan.key] = after
        return {
            claim.service
            for port, _ in filter(None, (before, after))
            for address in ("", *local)
            for claim in self._held((address, port, Protocol.TCP.value))
        } - {plan.key}

    def _checked_there(self, plan: ServicePlan, port: PortPlan, number: int) -> str | None:
        """The older service that has this port as its healthCheckNodePort, or None."""
        if port.protocol is not Protocol.TCP:
            return None
        others = [each for each in self._health_checks.get(number, ()) if each[1] != plan.key]
        oldest = min(others, default=None)
        return oldest[1] if oldest is not None and oldest < (plan.created or _NEWEST, plan.key) else None

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


def _claims_of(plan: ServicePlan) -> Iterator[tuple[Frontend, Claim]]:
    created = plan.created or _NEWEST
    for port in plan.ports:
        identity, protocol = _identity(port), port.protocol.value
        home = (port.cluster_ip, port.port, protocol)
        yield home, Claim(_HOME, created, identity, plan.key, home)
        refused = port.external is Verdict.REJECT
        ranks = dict.fromkeys(port.external_ips, _OTHER_REFUSED if refused else _OTHER)
        ranks |= dict.fromkeys(port.load_balancer_ips, _BALANCER_REFUSED if refused else _BALANCER)
        ranks.pop(port.cluster_ip, None)
        for ip, rank in ranks.items():
            yield (ip, port.port, protocol), Claim(rank, created, identity, plan.key, home)
        if port.node_port:
            rank = _OTHER_REFUSED if refused else _OTHER
            yield ("", port.node_port, protocol), Claim(rank, created, identity, plan.key, home)
