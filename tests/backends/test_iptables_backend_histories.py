"""Random histories: whatever happens in whatever order, the kernel ends as after a fresh sync.

Failing examples are not shrunk: that takes minutes here. The failing history is printed as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.kernel.xtables.types import FailureKind, Variant
from tests.backends.histories import faulty, play
from tests.backends.iptables_node import IptablesNode, State, config_with, divided, sync_checked
from tests.backends.strategies import HISTORY, SERVICES, SETTINGS, START, change
from tests.suite.matrix import examples

ways = pytest.mark.parametrize(
    ("variant", "piece", "layout"),
    [
        (Variant.LEGACY, None, StandardLayout),
        (Variant.NFT, None, StandardLayout),
        (Variant.NFT, 1, StandardLayout),
        (Variant.NFT, 2, StandardLayout),
        (Variant.LEGACY, None, divided),
        (Variant.NFT, None, divided),
        (Variant.NFT, 2, divided),
    ],
)
Layouts = Callable[[IptablesConfig], Layout]


def _printed(state: State) -> list[str]:
    """A dump as lines, so that a difference reads well; chains as the kernel orders them."""
    return [
        f"{table} {line}"
        for table, chains in sorted(state.items())
        for chain, rules in chains.items()
        for line in (f":{chain}", *rules)
    ]


def _is_as_fresh(cluster: IptablesNode) -> None:
    assert _printed(cluster.state()) == _printed(cluster.fresh())
    before = len(cluster.fake.restores)
    report = cluster.sync()
    assert (report.error, report.failed) == (None, {})
    assert len(cluster.fake.restores) == before
    assert cluster.backend.check(full=True) == ()
    assert cluster.sync().error is None
    assert len(cluster.fake.restores) == before


@ways
@given(start=START, history=HISTORY)
@settings(SETTINGS, max_examples=examples(60))
def test_any_history_ends_as_a_fresh_sync(
    variant: Variant, piece: int | None, layout: Layouts, start: list[Any], history: list[Any]
) -> None:
    cluster = IptablesNode(variant, piece=piece, layout=layout)

    def sync() -> None:
        report = sync_checked(cluster)
        assert (report.error, report.failed) == (None, {})

    play(cluster, start, history, sync)
    _is_as_fresh(cluster)


_FAULT = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["locked", "other", "before", "after", "refuse"]), st.integers(0, 4)),
)


def _inject(cluster: IptablesNode, fault: tuple[str, int] | None, lines: list[str]) -> None:
    """Arrange one failure, `number` restores from now; what to refuse is remembered in `lines`."""
    if fault is None:
        return
    kind, number = fault
    if kind == "refuse":
        lines.append(SERVICES[number])
        cluster.fake.refuse_new_rules_of(f"ns1/{SERVICES[number]}")
        return
    cluster.fake.spare(number)
    if kind == "locked":
        cluster.fake.lock_for(1)
    elif kind == "other":
        cluster.fake.fail_next(FailureKind.OTHER)
    else:
        cluster.fake.kill_after_tables(1 if kind == "after" else 0)


@ways
@given(start=START, history=faulty(_FAULT))
@settings(SETTINGS, max_examples=examples(80))
def test_no_failure_loses_anything(
    variant: Variant, piece: int | None, layout: Layouts, start: list[Any], history: list[Any]
) -> None:
    cluster = IptablesNode(variant, piece=piece, layout=layout)
    change(cluster, start)
    cluster.sync()
    at_fault: list[str] = []
    for changes, fault, restart in history:
        change(cluster, changes)
        cluster.fake.clear_faults()
        _inject(cluster, fault, at_fault)
        if restart:
            cluster.start()
        report = cluster.sync()
        assert set(report.failed) <= {f"ns1/{name}" for name in at_fault}
        if fault is None or fault[0] == "refuse":
            assert report.error is None
        if report.error is None:
            healthy = [k for k, p in cluster.plans.items() if p.ports and k not in report.failed]
            assert [k for k in healthy if not cluster.holds(k)] == []
        if restart:
            cluster.backend.retry()
            at_fault.clear()
    cluster.fake.clear_faults()
    cluster.backend.retry()
    report = cluster.sync()
    assert (report.error, report.failed) == (None, {})
    _is_as_fresh(cluster)


@ways
@given(start=START, history=faulty(_FAULT))
@settings(SETTINGS, max_examples=examples(60))
def test_addresses_that_stay_are_never_lost_on_the_way(
    variant: Variant, piece: int | None, layout: Layouts, start: list[Any], history: list[Any]
) -> None:
    """As above, with every intermediate state of the kernel looked at; the services at fault included."""
    cluster = IptablesNode(variant, piece=piece, config=config_with(large_cluster_endpoints=4), layout=layout)
    change(cluster, start)
    cluster.sync()
    for changes, fault, restart in history:
        change(cluster, changes)
        if restart:
            cluster.start()
        _inject(cluster, fault, [])
        sync_checked(cluster, contested=fault is None or fault[0] != "refuse")
        cluster.fake.clear_faults()
        if restart:
            cluster.backend.retry()
    cluster.backend.retry()
    sync_checked(cluster)
    _is_as_fresh(cluster)
