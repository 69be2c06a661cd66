"""Random histories in IPVS mode: the kernel ends as after a fresh sync, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.histories import faulty, play, play_faults, play_watched
from tests.backends.iptables_node import CONTESTED
from tests.backends.ipvs_node import IpvsNode, with_config
from tests.backends.strategies import CHANGE, HISTORY, SETTINGS, START, change
from tests.suite.matrix import examples


def _is_as_fresh(node: IpvsNode) -> None:
    node.drained()
    assert node.state() == node.fresh()
    node.forget()
    assert node.done().changes == {}
    assert (node.messages, node.reads) == (0, 0)
    assert node.backend.check(full=True) == ()


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(80))
def test_any_history_ends_as_a_fresh_sync(start: list[Any], history: list[Any]) -> None:
    node = IpvsNode()
    play(node, start, history, node.done)
    _is_as_fresh(node)


_OWN = st.sets(st.sampled_from(["192.168.0.2", "192.168.0.3", *CONTESTED, "198.51.100.1"]))
_MOVES = st.lists(st.tuples(st.lists(CHANGE, max_size=4), _OWN, st.booleans()), min_size=1, max_size=6)


@given(start=START, history=_MOVES)
@settings(SETTINGS, max_examples=examples(120))
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
        assert not own & node.device.addresses(node.config.family)
    node.ipvs.connections.clear()
    _is_as_fresh(node)


FAULT = st.one_of(
    st.none(), st.tuples(st.just("lose"), st.integers(0, 12)), st.tuples(st.just("refuse"), st.integers(1, 4))
)


@given(start=START, history=faulty(FAULT))
@settings(SETTINGS, max_examples=examples(120))
def test_no_failure_loses_anything(start: list[Any], history: list[Any]) -> None:
    node = IpvsNode()

    def arrange(fault: tuple[str, int]) -> None:
        if fault[0] == "lose":
            node.faults.lose_soon(fault[1])
        else:
            node.faults.refuse = lambda text: f"10.1.{fault[1]}." in text

    def clear() -> None:
        node.faults.lose_at = None
        node.faults.refuse = lambda _: False

    play_faults(node, start, history, arrange, clear)
    _is_as_fresh(node)


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(80))
def test_what_stands_is_listed_and_what_stays_is_served_at_every_moment(
    start: list[Any], history: list[Any]
) -> None:
    node = IpvsNode()
    play_watched(node, node.faults, start, history)
