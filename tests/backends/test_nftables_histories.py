"""Random histories in nftables mode: the table ends as after a fresh sync, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.histories import faulty, play, play_faults, play_watched
from tests.backends.nftables_node import NftablesNode
from tests.backends.strategies import HISTORY, SETTINGS, START
from tests.suite.matrix import examples


def _is_as_fresh(node: NftablesNode) -> None:
    assert node.state() == node.fresh()
    scripts, readings = len(node.fake.scripts), node.fake.readings
    assert node.done().changes == {}
    assert (len(node.fake.scripts), node.fake.readings) == (scripts, readings)
    assert node.backend.check(full=True) == ()


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(80))
def test_any_history_ends_as_a_fresh_sync(start: list[Any], history: list[Any]) -> None:
    node = NftablesNode()
    play(node, start, history, node.done)
    _is_as_fresh(node)


FAULT = st.one_of(
    st.none(), st.sampled_from(["before", "after"]), st.tuples(st.just("refuse"), st.integers(1, 4))
)


@given(start=START, history=faulty(FAULT))
@settings(SETTINGS, max_examples=examples(120))
def test_no_failure_loses_anything(start: list[Any], history: list[Any]) -> None:
    node = NftablesNode()

    def arrange(fault: str | tuple[str, int]) -> None:
        if isinstance(fault, str):
            node.fake.lose = fault
        else:
            node.fake.refuse = lambda line: f"10.1.{fault[1]}." in line

    def clear() -> None:
        node.fake.lose = None
        node.fake.refuse = lambda _: False

    play_faults(node, start, history, arrange, clear)
    _is_as_fresh(node)


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(80))
def test_what_stays_is_served_at_every_moment(start: list[Any], history: list[Any]) -> None:
    node = NftablesNode()
    play_watched(node, node.fake, start, history)
