"""Claims of service ports to frontends, kept in order, so that a winner is known without a search.

Each frontend has a list of its valid claims, the winner first. A change withdraws and adds the claims of the
ports that changed, and only services at frontends with another winner are affected. The work is linear in the
claims of the changed ports and of the affected services, however many services share an address.
"""

import enum
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

import msgspec

Frontend = tuple[str, int, str]
"""(address, or "" for a node port; port; protocol)."""


class Rank(enum.IntEnum):
    """The smallest wins: a cluster IP, then a load balancer's address, then any other."""

    CLUSTER_IP = 0
    BALANCER = 1
    BALANCER_REFUSED = 2
    OTHER = 3
    OTHER_REFUSED = 4


class Claim(msgspec.Struct, frozen=True, gc=False, order=True):
    """A service port's claim to a frontend; the smallest wins. `identity` is the name of the port."""

    rank: int
    created: str
    identity: str
    service: str


class PortClaims(msgspec.Struct, frozen=True, gc=False):
    """All claims of one port: to its cluster IP, `cluster_ip_frontend`, and to its other frontends."""

    created: str
    identity: str
    service: str
    cluster_ip_frontend: Frontend
    ranks: Mapping[Frontend, Rank]

    def claim(self, rank: Rank) -> Claim:
        """The port's claim of this rank."""
        return Claim(int(rank), self.created, self.identity, self.service)

    def claims(self) -> Iterator[tuple[Frontend, Claim]]:
        """Every claim except that to the cluster IP; equal ones share one object."""
        if self.ranks:
            of_rank = {rank: self.claim(rank) for rank in set(self.ranks.values())}
            for frontend, rank in self.ranks.items():
                yield frontend, of_rank[rank]


InOrder = tuple[Claim, ...]
"""Claims to one frontend in order. Most frontends have one, for which a tuple is the smallest object."""


def _with(claims: InOrder, claim: Claim) -> InOrder:
    at = bisect_left(claims, claim)
    return (*claims[:at], claim, *claims[at:])


def _without(claims: InOrder, claim: Claim) -> InOrder:
    at = bisect_left(claims, claim)
    return claims[:at] + claims[at + 1 :]


class Claims:
    """The claims of all services of one family. Those of a port that lost its cluster IP are not valid."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[PortClaims, ...]] = {}
        """Service -> the claims of its ports."""
        self._ports: dict[str, PortClaims] = {}
        self._at_cluster_ips: dict[Frontend, InOrder] = {}
        """The claims to each cluster IP, also those that are not valid, in order."""
        self._held: dict[Frontend, InOrder] = {}
        """The valid claims to each frontend, in order."""

    def winner(self, frontend: Frontend) -> Claim | None:
        """The claim that has a frontend. It may be asked from any thread while claims change."""
        return next(iter(self._held.get(frontend, ())), None)

    def frontends_at(self, address: str) -> list[Frontend]:
        """The frontends at an address that have a claim, in order; as `winner` from any thread."""
        return sorted([each for each in list(self._held) if each[0] == address])

    def services_at(self, frontend: Frontend) -> set[str]:
        """The services with a valid claim to a frontend."""
        return {claim.service for claim in self._held.get(frontend, ())}

    def beside(self, service: str) -> Iterator[str]:
        """The services of all claims, this one's included, to the frontends that a service claims."""
        for port in self._of.get(service, ()):
            for frontend in (port.cluster_ip_frontend, *port.ranks):
                claims = self._at_cluster_ips if frontend == port.cluster_ip_frontend else self._held
                yield from (claim.service for claim in claims.get(frontend, ()))

    def replace(self, service: str, ports: Iterable[PortClaims]) -> set[str]:
        """Replace the claims of a service; return the services at frontends that have another winner now."""
        before = {each.identity: each for each in self._of.pop(service, ())}
        after = {each.identity: each for each in ports}
        if after:
            self._of[service] = tuple(after.values())
        changes = _Changes(self._held, self._at_cluster_ips)
        for identity, known in before.items():
            if after.get(identity) != known:
                self._withdraw(known, changes)
        for identity, new in after.items():
            if before.get(identity) != new:
                self._add(new, changes)
        return changes.affected()

    def _add(self, port: PortClaims, changes: "_Changes") -> None:
        self._ports[port.identity] = port
        claim = port.claim(Rank.CLUSTER_IP)
        rivals = self._at_cluster_ips[port.cluster_ip_frontend] = _with(
            self._at_cluster_ips.get(port.cluster_ip_frontend, ()), claim
        )
        if rivals[0] is not claim:
            return
        if len(rivals) > 1:
            changes.withdraw(self._ports[rivals[1].identity], rivals[1])
        changes.add(port, claim)

    def _withdraw(self, port: PortClaims, changes: "_Changes") -> None:
        del self._ports[port.identity]
        before = self._at_cluster_ips[port.cluster_ip_frontend]
        rivals = _without(before, port.claim(Rank.CLUSTER_IP))
        if rivals:
            self._at_cluster_ips[port.cluster_ip_frontend] = rivals
        else:
            del self._at_cluster_ips[port.cluster_ip_frontend]
        if before[0].identity != port.identity:
            return
        changes.withdraw(port, before[0])
        if rivals:
            changes.add(self._ports[rivals[0].identity], rivals[0])


class _Changes:
    """Changes lists of valid claims, and remembers which frontends had which winner before."""

    def __init__(self, held: dict[Frontend, InOrder], rivals: Mapping[Frontend, InOrder]) -> None:
        self._held = held
        self._at_cluster_ips = rivals
        self._before: dict[Frontend, Claim | None] = {}
        self._noted: set[str] = set()

    def add(self, port: PortClaims, of_cluster_ip: Claim) -> None:
        """Make all claims of a port valid; `of_cluster_ip` is that to its cluster IP."""
        self._noted.add(port.service)
        for frontend, claim in ((port.cluster_ip_frontend, of_cluster_ip), *port.claims()):
            held = self._held.get(frontend, ())
            self._before.setdefault(frontend, held[0] if held else None)
            self._held[frontend] = _with(held, claim)

    def withdraw(self, port: PortClaims, of_cluster_ip: Claim) -> None:
        """Make all claims of a port void."""
        self._noted.add(port.service)
        for frontend, claim in ((port.cluster_ip_frontend, of_cluster_ip), *port.claims()):
            held = self._held[frontend]
            self._before.setdefault(frontend, held[0])
            left = _without(held, claim)
            if left:
                self._held[frontend] = left
            else:
                del self._held[frontend]

    def affected(self) -> set[str]:
        """The services that were changed, and those at frontends that have another winner than before."""
        found = self._noted
        for frontend, before in self._before.items():
            held = self._held.get(frontend, ())
            now = held[0] if held else None
            if (now and now.identity) == (before and before.identity):
                continue
            found.update(claim.service for claim in held)
            found.update(claim.service for claim in self._at_cluster_ips.get(frontend, ()))
        return found
