"""Random histories in nftables mode: the table ends as after a fresh sync, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.plan.planner import Planner
from tests.backends.nftables_node import NftablesNode
from tests.backends.strategies import CHANGE, HISTORY, SERVICES, SETTINGS, START, change
from tests.builders import NODE


def _is_as_fresh(node: NftablesNode) -> None:
    assert node.state() == node.fresh()
    scripts, readings = len(node.fake.scripts), node.fake.readings
    assert node.done().changes == {}
    assert (len(node.fake.scripts), node.fake.readings) == (scripts, readings)
    assert node.backend.check(thorough=True) == ()


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=80)
def test_any_history_ends_as_a_fresh_sync(start: list[Any], history: list[Any]) -> None:
    node = NftablesNode()
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


_FAULT = st.one_of(
    st.none(),
    st.sampled_from(["before", "after"]),
    st.tuples(st.just("refuse"), st.integers(1, 4)),
)
_FAULTY = st.lists(st.tuples(st.lists(CHANGE, max_size=4), _FAULT, st.booleans()), min_size=1, max_size=6)


@given(start=START, history=_FAULTY)
@settings(SETTINGS, max_examples=120)
def test_no_failure_loses_anything(start: list[Any], history: list[Any]) -> None:
    node = NftablesNode()
    change(node, start)
    for changes, fault, restart in history:
        change(node, changes)
        if isinstance(fault, str):
            node.fake.lose = fault
        elif fault is not None:
            node.fake.refuse = lambda line, ip=f"10.1.{fault[1]}.": ip in line  # type: ignore[misc]
        node.sync()
        node.fake.lose = None
        node.fake.refuse = lambda _: False
        if restart:
            node.start()
    node.backend.retry()
    node.done()
    _is_as_fresh(node)


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=80)
def test_what_stays_is_served_at_every_moment(start: list[Any], history: list[Any]) -> None:
    node = NftablesNode()
    change(node, start)
    node.done()
    for changes, _ in history:
        served = node.served()
        change(node, changes)
        stays = served & _wanted(node)

        def look(stays: set[str] = stays) -> None:
            assert stays <= node.served()

        node.fake.after = look
        node.done()
        node.fake.after = lambda: None


def _wanted(node: NftablesNode) -> set[str]:
    """The frontends that are served once the objects of now are applied to a new node."""
    keys = {*node.plans, *(f"ns1/{name}" for name in SERVICES)}
    other = NftablesNode(node.config)
    plans = Planner(node.config.family).update([node.tables.read(key) for key in sorted(keys)], NODE)
    other.backend.update(plans.values())
    assert other.backend.sync().error is None
    return other.served()
