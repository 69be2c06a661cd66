"""Claims of services to frontends: the winner is that of a plain search, and finding it takes little work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.claims import Claims, Frontend, PortClaims, Rank
from kproxy.plan.limits import EXAMPLES, PROBLEMS_PER_SERVICE
from kproxy.plan.planner import Planner
from kproxy.state.tables import ServiceInput
from tests.builders import NODE, endpoint, endpoint_slice, port, service
from tests.builders import given as planned_from
from tests.suite.matrix import examples
from tests.support.work import calls, growth

_FRONTENDS: list[Frontend] = [(ip, 80, "TCP") for ip in ("10.0.0.1", "10.0.0.2", "1.2.3.4", "1.2.3.5", "")]
_ANY_RANK = st.sampled_from([rank for rank in Rank if rank is not Rank.CLUSTER_IP])


def _winner(ports: Mapping[str, PortClaims], frontend: Frontend) -> str | None:
    """The rule in the plainest words: the smallest claim of a port that has its own cluster IP."""

    def smallest(at: Frontend, found: list[PortClaims]) -> PortClaims | None:
        def order(each: PortClaims) -> tuple[int, str, str]:
            rank = Rank.CLUSTER_IP if each.cluster_ip_frontend == at else each.ranks[at]
            return int(rank), each.created, each.identity

        return min(found, key=order, default=None)

    def is_served(each: PortClaims) -> bool:
        return (
            smallest(
                each.cluster_ip_frontend,
                [other for other in ports.values() if other.cluster_ip_frontend == each.cluster_ip_frontend],
            )
            is each
        )

    found = [
        each
        for each in ports.values()
        if (each.cluster_ip_frontend == frontend or frontend in each.ranks) and is_served(each)
    ]
    winner = smallest(frontend, found)
    return winner.identity if winner is not None else None


@st.composite
def _port_claims(draw: st.DrawFn, owner: str, name: str) -> PortClaims:
    cluster_ip_frontend = draw(st.sampled_from(_FRONTENDS[:3]))
    ranks = draw(st.dictionaries(st.sampled_from(_FRONTENDS), _ANY_RANK, max_size=4))
    ranks.pop(cluster_ip_frontend, None)
    return PortClaims(draw(st.sampled_from("xyz")), f"{owner}:{name} TCP", owner, cluster_ip_frontend, ranks)


_EVENT = st.sampled_from("abcd").flatmap(
    lambda owner: st.tuples(
        st.just(owner),
        st.tuples(_port_claims(owner, "p"), _port_claims(owner, "q")).map(list)
        | _port_claims(owner, "p").map(lambda each: [each])
        | st.just([]),
    )
)


@given(st.lists(_EVENT, max_size=14))
@settings(max_examples=examples(400), deadline=None)
def test_the_winner_is_that_of_a_plain_search_and_every_service_that_it_concerns_is_named(
    events: list[tuple[str, list[PortClaims]]],
) -> None:
    claims = Claims()
    ports: dict[str, PortClaims] = {}
    for owner, new in events:
        before = {frontend: _winner(ports, frontend) for frontend in _FRONTENDS}
        ports = {name: each for name, each in ports.items() if each.service != owner}
        ports |= {each.identity: each for each in new}
        affected = claims.replace(owner, new)
        concerned = set()
        for frontend in _FRONTENDS:
            winner = claims.winner(frontend)
            assert (winner.identity if winner else None) == _winner(ports, frontend)
            if before[frontend] != _winner(ports, frontend):
                concerned |= {
                    each.service
                    for each in ports.values()
                    if frontend == each.cluster_ip_frontend
                    or (frontend in each.ranks and _winner(ports, each.cluster_ip_frontend) == each.identity)
                }
        assert affected >= concerned - {owner}


def _input(name: str, number: int, ips: int, ports: int, *, ready: bool = True) -> ServiceInput:
    numbers = [port(1000 + n, f"p{n}") for n in range(ports)]
    document = service(
        name,
        f"10.96.0.{number}",
        ports=numbers,
        externalIPs=[f"1.2.3.{n}" for n in range(ips)],
        created=f"2026-01-01T00:00:{number:02}Z",
    )
    return planned_from(
        document, endpoint_slice(endpoint("10.1.0.1", ready=ready), service=name, ports=numbers)
    )


def _flip(rivals: int, ips: int, ports: int) -> Callable[[], object]:
    """The oldest of `rivals` services that share all their addresses loses its only endpoint."""
    planner = Planner(Family.IPV4)
    planner.update([_input(f"s{n}", 1 + n, ips, ports) for n in range(rivals)], NODE)
    changed = _input("s0", 1, ips, ports, ready=False)
    return lambda: planner.update([changed], NODE)


@pytest.mark.parametrize("axis", ["rivals", "ips", "ports"])
def test_work_of_a_readiness_flip_is_linear(axis: str) -> None:
    fixed = {"rivals": 3, "ips": 8, "ports": 8}

    def work(size: int) -> Callable[[], object]:
        return _flip(**(fixed | {axis: size}))

    assert growth(work, 12) < 2.3


def test_what_many_services_share_is_decided_with_few_steps_a_frontend() -> None:
    rivals, ips, ports = 12, 10, 10
    assert calls(_flip(rivals, ips, ports)) < 60 * rivals * ips * ports


def test_a_thousand_lost_addresses_are_a_few_problems() -> None:
    ips, ports = 40, 40
    planner = Planner(Family.IPV4)
    plans = planner.update([_input(name, n, ips, ports) for n, name in enumerate("abc", 1)], NODE)
    assert plans["ns1/a"].problems == ()
    for key in ("ns1/b", "ns1/c"):
        problems = plans[key].problems
        assert len(problems) == EXAMPLES + 1
        assert all(each.conflict and each.field == "spec.externalIPs" for each in problems)
        assert [each.value for each in problems[:2]] == ['"1.2.3.0"', '"1.2.3.1"']
        assert problems[-1].value == f"({ips * ports - EXAMPLES} more)"
        assert "already belongs to ns1/a" in problems[-1].reason
        assert all(each.external_ips == () for each in plans[key].ports)


def test_addresses_that_many_services_have_are_bounded_problems() -> None:
    planner = Planner(Family.IPV4)
    owners = [planned_from(service(f"o{n}", f"10.96.1.{n}", externalIPs=[f"1.2.3.{n}"])) for n in range(200)]
    loser = service("z", "10.96.2.1", externalIPs=[f"1.2.3.{n}" for n in range(200)], created=None)
    plan = planner.update([*owners, planned_from(loser)], NODE)["ns1/z"]
    assert len(plan.problems) == PROBLEMS_PER_SERVICE + 1
    assert (plan.problems[-1].field, plan.problems[-1].value) == ("(others)", "100")


def test_a_service_without_endpoints_of_many_leaves_every_other_as_it_was() -> None:
    planner = Planner(Family.IPV4)
    planner.update([_input(f"s{n}", 1 + n, 4, 4) for n in range(5)], NODE)
    youngest = msgspec.structs.replace(_input("s4", 5, 4, 4, ready=False))
    assert planner.update([youngest], NODE).keys() == {"ns1/s4"}
