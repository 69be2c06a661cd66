"""Random histories in IPVS mode: the kernel ends as after a fresh sync, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.kernel.ipvs.types import ServerId
from kproxy.plan.planner import Planner
from tests.backends.cluster import CONTESTED
from tests.backends.ipvs_node import IpvsNode, with_config
from tests.backends.strategies import CHANGE, HISTORY, SERVICES, SETTINGS, START, change
from tests.builders import NODE


def _is_as_fresh(node: IpvsNode) -> None:
    node.drained()
    assert node.state() == node.fresh()
    node.forget()
    assert node.done().changes == {}
    assert (node.messages, node.reads) == (0, 0)
    assert node.backend.check(thorough=True) == ()


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=80)
def test_any_history_ends_as_a_fresh_sync(start: list[Any], history: list[Any]) -> None:
    node = IpvsNode()
    change(node, start)
    for changes, then in history:
        change(node, changes)
        if then == "restart":
            node.start()
        elif then == "check":
            assert node.backend.check(thorough=True) == ()
            continue
        node.done()
    node.done()
    _is_as_fresh(node)


_OWN = st.sets(st.sampled_from(["192.168.0.2", "192.168.0.3", *CONTESTED, "198.51.100.1"]))
_MOVES = st.lists(st.tuples(st.lists(CHANGE, max_size=4), _OWN, st.booleans()), min_size=1, max_size=6)


@given(start=START, history=_MOVES)
@settings(SETTINGS, max_examples=120)
def test_addresses_may_become_the_nodes_own_and_cease_to_be(start: list[Any], history: list[Any]) -> None:
    node = IpvsNode()
    change(node, start)
    for changes, own, busy in history:
        change(node, changes)
        node.config = with_config(node_addresses=tuple(sorted(own)), local_addresses=frozenset(own))
        node.backend.reconfigure(node.config)
        node.done()
        for server, (_, destinations) in node.ipvs.table.items():
            node.ipvs.connections |= {(server, destination): int(busy) for destination in destinations}
        wanted = {ip for ip in node.device.addresses(node.config.family) if ip in own}
        assert wanted <= {server.ip for server in node.ipvs.table if not node.serving(server)}
    node.ipvs.connections.clear()
    _is_as_fresh(node)


_FAULT = st.one_of(
    st.none(), st.tuples(st.just("lose"), st.integers(0, 12)), st.tuples(st.just("refuse"), st.integers(1, 4))
)
_FAULTY = st.lists(st.tuples(st.lists(CHANGE, max_size=4), _FAULT, st.booleans()), min_size=1, max_size=6)


@given(start=START, history=_FAULTY)
@settings(SETTINGS, max_examples=120)
def test_no_failure_loses_anything(start: list[Any], history: list[Any]) -> None:
    node = IpvsNode()
    change(node, start)
    for changes, fault, restart in history:
        change(node, changes)
        if fault is not None and fault[0] == "lose":
            node.faults.lose_soon(fault[1])
        elif fault is not None:
            node.faults.refuse = lambda text, ip=f"10.1.{fault[1]}.": ip in text  # type: ignore[misc]
        node.sync()
        node.faults.lose_at = None
        node.faults.refuse = lambda _: False
        if restart:
            node.start()
    node.backend.retry()
    node.done()
    _is_as_fresh(node)


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=80)
def test_what_stands_is_listed_and_what_stays_is_served_at_every_moment(
    start: list[Any], history: list[Any]
) -> None:
    node = IpvsNode()
    change(node, start)
    node.done()
    for changes, _ in history:
        served = {server for server in node.ipvs.table if node.serving(server)}
        change(node, changes)
        stays = served & set(_wanted(node))

        def look(stays: set[ServerId] = stays) -> None:
            assert set(node.ipvs.table) <= node.listed()
            assert all(node.serving(server) for server in stays)

        node.faults.after = look
        node.done()
        node.faults.after = lambda: None


def _wanted(node: IpvsNode) -> list[ServerId]:
    """The virtual servers that serve once the objects of now are applied to a new node."""
    keys = {*node.plans, *(f"ns1/{name}" for name in SERVICES)}
    other = IpvsNode(node.config)
    plans = Planner(node.config.family).update([node.tables.read(key) for key in sorted(keys)], NODE)
    other.backend.update(plans.values())
    assert other.backend.sync().error is None
    return [server for server in other.ipvs.table if other.serving(server)]
