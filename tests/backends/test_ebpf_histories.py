"""Random histories of the socket table: it ends as after a fresh sync, and nothing is lost on the way."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.kernel.bpf.types import Sizes
from tests.backends.ebpf_node import LARGE, TINY, EbpfNode
from tests.backends.histories import faulty, play, play_watched
from tests.backends.strategies import HISTORY, SETTINGS, START, change
from tests.suite.matrix import examples


def _is_as_fresh(node: EbpfNode) -> None:
    assert node.state() == node.fresh()
    writes = node.table.faults.writes
    assert node.done().changes == {}
    assert node.backend.check(full=True) == ()
    assert node.table.faults.writes == writes
    writer = node.backend.operations.writer
    assert writer.blocks.used == sum(each.room for each in writer.standing.values())


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(120))
def test_any_history_ends_as_a_fresh_sync(start: list[Any], history: list[Any]) -> None:
    node = EbpfNode()
    play(node, start, history, node.done)
    _is_as_fresh(node)


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(40))
def test_a_restart_writes_nothing(start: list[Any], history: list[Any]) -> None:
    node = EbpfNode()
    play(node, start, history, node.done)
    writes = node.table.faults.writes
    node.start()
    assert node.done().changes == {}
    assert node.table.faults.writes == writes
    _is_as_fresh(node)


@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(40))
def test_what_serves_before_and_after_serves_all_the_time(start: list[Any], history: list[Any]) -> None:
    node = EbpfNode()
    play_watched(node, node.table.faults, start, history)
    _is_as_fresh(node)


FAULT = st.one_of(
    st.none(),
    st.tuples(st.just("lose"), st.integers(0, 4)),
    st.tuples(st.just("refuse"), st.integers(1, 4)),
    st.tuples(st.just("refuse some"), st.integers(1, 4)),
    st.tuples(st.just("growth"), st.just(0)),
)


@given(start=START, history=faulty(FAULT), sizes=st.sampled_from([TINY, LARGE]))
@settings(SETTINGS, max_examples=examples(160))
def test_no_failure_loses_anything_or_leaves_anything_behind(
    start: list[Any], history: list[Any], sizes: Sizes
) -> None:
    node = EbpfNode(sizes=sizes)
    faults = node.table.faults

    def arrange(fault: tuple[str, int]) -> None:
        what, number = fault
        if what == "lose":
            faults.lose_at = number
        elif what == "growth":
            faults.growth = True
        elif what == "refuse":
            faults.refuse = lambda text: f"10.96.0.{number}:" in text
        else:
            asked = itertools.count(1)
            faults.refuse = lambda _: next(asked) % (number + 1) == 0

    change(node, start)
    for changes, fault, restart in history:
        change(node, changes)
        if fault is not None:
            arrange(fault)
        report = node.sync()
        faults.lose_at, faults.growth = None, False
        faults.refuse = lambda _: False
        if report.error is None:
            assert node.state().items() <= node.fresh().items()
            assert node.backend.check(full=True) == ()
        if restart:
            node.start()
    node.backend.retry()
    node.done()
    _is_as_fresh(node)
