"""Endpoint selection against a second, plainer statement of kube-proxy's rules, and its table by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.plan.model import EndpointPlan, NodeView
from kproxy.plan.topology import Candidate, Usable, select
from tests.suite.matrix import examples

NODE = NodeView("n1", "z1")


def _candidate(
    number: int,
    state: str,
    *,
    local: bool = False,
    zones: frozenset[str] = frozenset(),
    nodes: frozenset[str] = frozenset(),
) -> Candidate:
    """`state` holds r(eady), s(erving), t(erminating)."""
    ip = f"10.0.0.{number}"
    plan = EndpointPlan(ip, 80, local)
    return Candidate(plan, "r" in state, "s" in state, "t" in state, zones, nodes)


def _oracle(endpoints: list[Candidate], node: NodeView, uses_cluster: bool, uses_local: bool) -> Usable:
    """CategorizeEndpoints, step by step as the reference document has it."""
    if not endpoints:
        return Usable()
    mode = ""
    cluster: list[Candidate] = []
    has_any = False
    if uses_cluster:
        ready = [e for e in endpoints if e.ready]
        if ready and all(e.nodes for e in ready) and any(node.name in e.nodes for e in ready):
            mode = "PreferSameNode"
        elif ready and all(e.zones for e in ready) and any(node.zone in e.zones for e in ready):
            mode = "PreferSameZone"
        available = {
            "": ready,
            "PreferSameNode": [e for e in ready if node.name in e.nodes],
            "PreferSameZone": [e for e in ready if node.zone in e.zones],
        }
        cluster = available[mode]
        if not cluster:
            cluster = [e for e in endpoints if e.serving and e.terminating]
        has_any = len(cluster) > 0
    if not uses_local:
        return _usable(cluster, [], cluster, has_any)
    has_any = has_any or any(e.ready or (e.serving and e.terminating) for e in endpoints)
    here = [e for e in endpoints if e.plan.local]
    local = [e for e in here if e.ready]
    terminating = False
    if not local:
        local = [e for e in here if e.serving and e.terminating]
        terminating = len(local) > 0
    if not uses_cluster:
        return _usable([], local, local, has_any)
    if mode == "" and not terminating:
        return _usable(cluster, local, cluster, has_any)
    union = {e.plan.address_port: e for e in cluster + local}
    return _usable(cluster, local, [union[text] for text in sorted(union)], has_any)


def _usable(
    cluster: list[Candidate], local: list[Candidate], reachable: list[Candidate], has_any: bool
) -> Usable:
    groups = [tuple(c.plan for c in group) for group in (cluster, local, reachable)]
    return Usable(groups[0], groups[1], groups[2], has_any)


_STATES = ["", "r", "s", "t", "rs", "rt", "st", "rst"]
_HINTS = st.sampled_from([frozenset[str](), frozenset({"z1"}), frozenset({"z2"}), frozenset({"z1", "z2"})])
_NODES = st.sampled_from([frozenset[str](), frozenset({"n1"}), frozenset({"n2"})])


@st.composite
def _clusters(draw: st.DrawFn) -> list[Candidate]:
    hinted = draw(st.booleans())
    numbers = draw(st.lists(st.integers(1, 99), unique=True, max_size=5))
    built = [
        _candidate(
            n,
            draw(st.sampled_from(_STATES)),
            local=draw(st.booleans()),
            zones=draw(_HINTS) if hinted else frozenset(),
            nodes=draw(_NODES) if hinted else frozenset(),
        )
        for n in numbers
    ]
    return sorted(built, key=lambda c: c.plan.address_port)


@given(
    _clusters(), st.sampled_from([NODE, NodeView("n2", "z3"), NodeView("n3")]), st.booleans(), st.booleans()
)
@settings(max_examples=examples(1500), deadline=None)
def test_selection_is_what_kube_proxy_selects(
    endpoints: list[Candidate], node: NodeView, uses_cluster: bool, uses_local: bool
) -> None:
    if not (uses_cluster or uses_local):
        uses_cluster = True
    assert select(endpoints, node, uses_cluster=uses_cluster, uses_local=uses_local) == _oracle(
        endpoints, node, uses_cluster, uses_local
    )


@pytest.mark.parametrize(("uses_cluster", "uses_local"), [(True, False), (True, True), (False, True)])
def test_selection_for_every_pair_of_states(uses_cluster: bool, uses_local: bool) -> None:
    for first, second, here, there in itertools.product(_STATES, _STATES, (True, False), (True, False)):
        endpoints = [_candidate(1, first, local=here), _candidate(2, second, local=there)]
        assert select(endpoints, NODE, uses_cluster=uses_cluster, uses_local=uses_local) == _oracle(
            endpoints, NODE, uses_cluster, uses_local
        ), (first, second, here, there)


def _chosen(endpoints: list[Candidate], node: NodeView = NODE) -> list[str]:
    return [e.ip for e in select(endpoints, node, uses_cluster=True, uses_local=False).cluster]


Z1, Z2, N1, N2 = frozenset({"z1"}), frozenset({"z2"}), frozenset({"n1"}), frozenset({"n2"})


def test_zone_hints() -> None:
    endpoints = [_candidate(1, "rs", zones=Z1), _candidate(2, "rs", zones=Z2), _candidate(3, "rs", zones=Z1)]
    assert _chosen(endpoints) == ["10.0.0.1", "10.0.0.3"]
    assert _chosen(endpoints, NodeView("n1", "z2")) == ["10.0.0.2"]
    assert len(_chosen(endpoints, NodeView("n1", "z9"))) == 3
    assert len(_chosen(endpoints, NodeView("n1"))) == 3


def test_one_ready_endpoint_without_a_hint_switches_hints_off() -> None:
    assert len(_chosen([_candidate(1, "rs", zones=Z1), _candidate(2, "rs")])) == 2
    assert _chosen([_candidate(1, "rs", zones=Z1), _candidate(2, "s"), _candidate(3, "rs", zones=Z2)]) == [
        "10.0.0.1"
    ]


def test_node_hints_come_before_zone_hints() -> None:
    endpoints = [_candidate(1, "rs", zones=Z1, nodes=N2), _candidate(2, "rs", zones=Z1, nodes=N1)]
    assert _chosen(endpoints) == ["10.0.0.2"]
    assert _chosen(endpoints, NodeView("n3", "z1")) == ["10.0.0.1", "10.0.0.2"]


def test_draining_endpoints_are_used_regardless_of_hints_when_nothing_is_ready() -> None:
    assert _chosen([_candidate(1, "st", zones=Z2), _candidate(2, "", zones=Z1)]) == ["10.0.0.1"]


def test_a_local_policy_ignores_hints() -> None:
    endpoints = [_candidate(1, "rs", local=True, zones=Z2), _candidate(2, "rs", zones=Z1)]
    usable = select(endpoints, NODE, uses_cluster=True, uses_local=True)
    assert [e.ip for e in usable.cluster] == ["10.0.0.2"]
    assert [e.ip for e in usable.local] == ["10.0.0.1"]
    assert [e.ip for e in usable.reachable] == ["10.0.0.1", "10.0.0.2"]
