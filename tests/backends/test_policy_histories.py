"""Random histories of network policies: the table ends as after a fresh sync, and no pod is open on it."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.backends.policy.config import Unknown
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, PortMatch, RuleMatch
from tests.backends.policy_node import PolicyNode, Tables, ip, named, pods, tcp, with_config
from tests.backends.strategies import SETTINGS
from tests.kernel.namespace import fresh_network
from tests.kernel.nft_raw import raw_table
from tests.suite.matrix import examples

RULES: dict[Direction, list[tuple[RuleMatch, ...]]] = {
    Direction.INGRESS: [
        (),
        (RuleMatch((tcp(80),), (pods("a"),)),),
        (RuleMatch((tcp(80, 443),), (pods("a"), pods("b"))),),
        (RuleMatch((tcp(*range(1, 20, 2)),), (pods("b"),)),),
        tuple(RuleMatch((tcp(n % 5),), (pods("abcdefgh"[n % 8]),)) for n in range(80)),
    ],
    Direction.EGRESS: [
        (),
        (RuleMatch((named("http"),), (pods("a"),)),),
        (RuleMatch((), tuple(map(pods, "abcdefghi"))), RuleMatch((PortMatch(Protocol.UDP),))),
        tuple(
            RuleMatch((tcp(n, named_port), named("dns", Protocol.UDP))) for n, named_port in ((5, 6), (7, 8))
        ),
    ],
}
NUMBERS = st.integers(1, 6)
SOME = st.sets(NUMBERS, max_size=4)
CHANGE = st.one_of(
    st.tuples(st.just("pod"), NUMBERS, st.none() | st.integers(0, 4), st.none() | st.integers(0, 3)),
    st.tuples(st.just("gone"), NUMBERS),
    st.tuples(st.just("members"), st.sampled_from("abcdefghi"), SOME),
    st.tuples(st.just("ports"), st.sampled_from([("http", Protocol.TCP), ("dns", Protocol.UDP)]), SOME),
)
CHANGES = st.lists(CHANGE, max_size=5)
FAULT = st.one_of(
    st.none(),
    st.sampled_from(["before", "after"]),
    st.sampled_from(["@p-a", "@p-b", "th dport 5", "delete chain", "delete set"]),
)


def change(tables: Tables, changes: list[tuple[Any, ...]], family: Family = Family.IPV4) -> None:
    """Change objects as the planner would: groups are those of the pods, sets those of the groups."""
    for kind, *of in changes:
        if kind == "pod":
            number, ingress, egress = of
            led = {
                direction: None
                if choice is None
                else tables.group(direction, *RULES[direction][choice], policy=f"default/{choice}")
                for direction, choice in ((Direction.INGRESS, ingress), (Direction.EGRESS, egress))
            }
            tables.pod(ip(number, family), ingress=led[Direction.INGRESS], egress=led[Direction.EGRESS])
        elif kind == "gone" and ip(of[0], family) in tables.table.local:
            tables.drop_pod(ip(of[0], family))
        elif kind == "members":
            tables.members(f"p-{of[0]}", {ip(number, family) for number in of[1]})
        elif kind == "ports":
            name, protocol = of[0]
            found = {(ip(number, family), port) for number in of[1] for port in (80, 8080)[: number % 2 + 1]}
            tables.table.named_protocols.setdefault(tables.name_of(name, protocol), of[0])
            tables.ports(name, protocol, found)
    used = {group for led in tables.table.isolated.values() for group in led.values()}
    for name in set(tables.table.groups) - used:
        tables.drop_group(name)


def is_as_fresh(node: PolicyNode) -> None:
    """The table is what a new node would have, and nothing is left to be done."""
    assert node.state() == node.fresh()
    scripts, readings = len(node.fake.scripts), node.fake.readings
    assert node.done().changes == {}
    assert (len(node.fake.scripts), node.fake.readings) == (scripts, readings)
    assert node.backend.check(full=True) == ()


@given(st.lists(st.tuples(CHANGES, st.sampled_from(["sync", "restart", "check", "settings"])), max_size=8))
@settings(SETTINGS, max_examples=examples(80))
def test_any_history_ends_as_a_fresh_sync(history: list[tuple[list[Any], str]]) -> None:
    node = PolicyNode()
    for changes, then in history:
        change(node.tables, changes)
        if then == "restart":
            node.start()
        elif then == "settings":
            reject = not node.config.reject
            node.config = with_config(reject=reject, unknown=Unknown.DROP, pod_cidrs=("10.1.0.0/24",))
            node.backend.reconfigure(node.config)
        elif then == "check":
            node.backend.update(node.tables.table, node.tables.touched())
            assert node.backend.check(full=True) == ()
            continue
        scripts = len(node.fake.scripts)
        node.done()
        assert len(node.fake.scripts) <= scripts + 1
    node.done()
    is_as_fresh(node)


def refused(word: str, line: str) -> bool:
    """Whether a fault concerns a line."""
    return word in line and not line.startswith("delete table")


@given(st.lists(st.tuples(CHANGES, FAULT, st.booleans()), min_size=1, max_size=6))
@settings(SETTINGS, max_examples=examples(120))
def test_no_failure_loses_anything_or_opens_a_pod(history: list[tuple[list[Any], Any, bool]]) -> None:
    node = PolicyNode()
    node.done()

    def look() -> None:
        """Every pod that is isolated before and after a change is so at each moment."""
        table = node.fake.tables.get(f"ip {names.TABLE}")
        assert table is not None
        for direction in Direction:
            assert stays[direction] <= table.containers[direction.value].elements.keys()

    stays: dict[Direction, set[str]] = {direction: set() for direction in Direction}
    enforced: dict[Direction, set[str]] = {direction: set() for direction in Direction}
    node.fake.after = look
    for changes, fault, restart in history:
        change(node.tables, changes)
        for direction, led in node.tables.table.isolated.items():
            stays[direction] = enforced[direction] & led.keys()
        if fault in {"before", "after"}:
            node.fake.lose = fault
        elif fault is not None:
            node.fake.refuse = functools.partial(refused, str(fault))
        report = node.sync()
        if report.error is None:
            enforced = {direction: set(led) for direction, led in node.tables.table.isolated.items()}
            table = node.fake.table(Family.IPV4, names.TABLE)
            for direction, led in node.tables.table.isolated.items():
                assert table.containers[direction.value].elements.keys() == led.keys()
        node.fake.lose = None
        node.fake.refuse = lambda _: False
        if restart:
            node.start()
    node.fake.after = lambda: None
    node.backend.retry()
    node.done()
    is_as_fresh(node)


@fresh_network
def test_any_history_ends_as_a_fresh_sync_in_the_kernel() -> None:
    @given(
        st.sampled_from(list(Family)),
        st.lists(st.tuples(CHANGES, st.sampled_from(["sync", "restart"])), min_size=1, max_size=6),
    )
    @settings(SETTINGS, max_examples=examples(15))
    def compare(family: Family, history: list[tuple[list[Any], str]]) -> None:
        nft = NetlinkNft()
        node = PolicyNode(with_config(family=family), nft)
        for changes, then in history:
            change(node.tables, changes, family)
            if then == "restart":
                node.start()
            node.done()
        before = nft.generation()
        node.start()
        assert node.done().changes == {}
        assert nft.generation() == before
        assert node.backend.check(full=True) == ()
        ours = raw_table(family, names.TABLE)
        fresh = PolicyNode(node.config, nft)
        fresh.tables = node.tables
        fresh.replace()
        theirs = raw_table(family, names.TABLE)
        assert ours.rules == theirs.rules
        assert ours.sets == theirs.sets
        fresh.remove()

    compare()
