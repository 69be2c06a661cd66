"""What a table of network policies says: rules of groups, their division by port, and the base chains."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.policy.alternatives import DIVIDE_FROM, FEW_RANGES, UNITE_FROM, Alternative, divide
from kproxy.backends.policy.chains import base_chains, fixed_chains
from kproxy.backends.policy.config import Unknown
from kproxy.backends.policy.render import GroupObjects, render_group
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, Group, PeerMatch, PortMatch, RuleMatch
from tests.backends.policy_node import CONFIG, named, pods, tcp, with_config
from tests.backends.strategies import SETTINGS

NAMED = {("http", Protocol.TCP): "n-http"}
PORTS = st.integers(1, 12)
RANGES = st.one_of(
    PORTS.map(lambda n: (n, n)), st.tuples(PORTS, PORTS).map(lambda pair: (min(pair), max(pair)))
)
ALTERNATIVES = st.builds(
    Alternative,
    peer=st.sampled_from(["", "a", "b", "c", "d"]),
    protocol=st.sampled_from([Protocol.TCP, Protocol.UDP]),
    ranges=st.lists(RANGES, max_size=3).map(lambda found: tuple(sorted(set(found)))),
) | st.builds(Alternative, peer=st.sampled_from(["a", "b"]))


def rendered(*rules: RuleMatch, direction: Direction = Direction.INGRESS) -> GroupObjects:
    """The objects of a group with these rules."""
    return render_group(Group(f"{direction.value[0]}-1", direction, ("a/b",), rules), CONFIG, NAMED)


def allowed(*rules: RuleMatch, direction: Direction = Direction.INGRESS) -> list[str]:
    """The rules of a group's own chain without its counter and its end."""
    chain = rendered(*rules, direction=direction).chains[f"{direction.value[0]}-1"]
    assert chain[0] == "counter"
    assert chain[-3].startswith(f"counter jump refused-{direction.value}")
    return list(chain[1:-3])


def allows(alternatives: list[Alternative], protocol: Protocol, port: int, peer: str) -> bool:
    """Whether one of the alternatives matches a packet."""
    return any(
        each.peer in {"", peer}
        and each.protocol in {None, protocol}
        and (not each.ranges or any(first <= port <= last for first, last in each.ranges))
        for each in alternatives
    )


@given(st.lists(ALTERNATIVES, min_size=DIVIDE_FROM, max_size=40, unique=True))
@settings(SETTINGS, max_examples=80)
def test_a_divided_group_allows_the_same_packets(alternatives: list[Alternative]) -> None:
    parts = divide(alternatives)
    if parts is None:
        return
    assert max(map(len, parts.by_port.values())) < len(alternatives)
    for protocol in (Protocol.TCP, Protocol.UDP):
        for port in range(14):
            asked = list(parts.by_port.get((protocol, port), parts.rest))
            for peer in ("a", "b", "c", "d", "e"):
                expected = allows(alternatives, protocol, port, peer)
                assert allows(asked, protocol, port, peer) == expected


def test_few_rules_are_not_divided_and_equal_parts_are_one_chain() -> None:
    few = [RuleMatch((tcp(n),), (pods("a"),)) for n in range(1, DIVIDE_FROM)]
    assert len(rendered(*few).chains) == 1
    found = rendered(*few, RuleMatch((tcp(99),), (pods("a"),)))
    assert found.chains["i-1"] == ("counter", "meta l4proto . th dport vmap @i-1.ports", "goto i-1.end")
    assert found.chains["i-1.0"] == ("ip saddr @p-a accept", "goto i-1.end")
    assert set(found.chains) == {"i-1", "i-1.0", "i-1.end"}
    assert found.own["i-1.ports"]["6 . 99"] == "goto i-1.0"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RuleMatch(), ["accept"]),
        (RuleMatch((PortMatch(Protocol.UDP),)), ["meta l4proto 17 accept"]),
        (RuleMatch((tcp(80),), (pods("x"),)), ["meta l4proto 6 th dport 80 ip saddr @p-x accept"]),
        (
            RuleMatch((tcp((80, 90), 443),)),
            ["meta l4proto 6 th dport 80-90 accept", "meta l4proto 6 th dport 443 accept"],
        ),
        (
            RuleMatch((tcp(80), tcp(82), PortMatch(Protocol.TCP), tcp(9, protocol=Protocol.SCTP))),
            ["meta l4proto 132 th dport 9 accept", "meta l4proto 6 accept"],
        ),
        (RuleMatch((), (pods("x"), pods("y"))), ["ip saddr @p-x accept", "ip saddr @p-y accept"]),
    ],
)
def test_each_pair_of_ports_and_peer_is_a_rule(rule: RuleMatch, expected: list[str]) -> None:
    assert allowed(rule) == expected
    assert allowed(rule, rule) == expected


def test_many_pod_sets_with_the_same_ports_are_looked_up_in_one() -> None:
    few = [RuleMatch((tcp(80),), (pods(name),)) for name in "abcdefghi"[: UNITE_FROM - 1]]
    assert len(allowed(*few)) == UNITE_FROM - 1
    many = [*few, RuleMatch((tcp(80), tcp(82)), (pods("y"), pods("z"), PeerMatch(ranges="c-1")))]
    united = rendered(*many).united
    (name,) = united
    assert united[name] == ("p-a", "p-b", "p-c", "p-d", "p-e", "p-f", "p-g", "p-y", "p-z")
    assert allowed(*many) == [
        f"meta l4proto 6 th dport 80 ip saddr @{name} accept",
        "meta l4proto 6 th dport 80 ip saddr @c-1 accept",
        "meta l4proto 6 th dport 82 ip saddr @p-y accept",
        "meta l4proto 6 th dport 82 ip saddr @p-z accept",
        "meta l4proto 6 th dport 82 ip saddr @c-1 accept",
    ]
    assert rendered(*many).reads == {name, "p-y", "p-z", "c-1"}
    assert allowed(*many, RuleMatch((tcp(80),)))[0] == "meta l4proto 6 th dport 80 accept"
    assert rendered(*many, RuleMatch((tcp(80),))).united == {}


def test_many_ranges_of_ports_are_looked_up_in_a_set() -> None:
    few, many = (RuleMatch((tcp(*range(1, 2 * n, 2)),)) for n in (FEW_RANGES, FEW_RANGES + 1))
    assert len(allowed(few)) == FEW_RANGES
    rule = allowed(many)[0]
    name = re.fullmatch(r"meta l4proto 6 th dport @(d-\w+) accept", rule)
    assert name is not None
    assert rendered(many).own == {name[1]: {"1": "", "3": "", "5": "", "7": "", "9": ""}}


def test_egress_returns_to_the_judgement_of_the_other_end_and_names_are_looked_up_there() -> None:
    rule = RuleMatch((named("http"),), (pods("x"),))
    assert allowed(rule, direction=Direction.EGRESS) == [
        "ip daddr . meta l4proto . th dport @n-http ip daddr @p-x return"
    ]
    assert rendered(rule, direction=Direction.EGRESS).reads == {"p-x", "n-http"}


def test_the_base_chains_judge_at_three_hooks() -> None:
    chains = base_chains(CONFIG)
    assert {name: chain.hook for name, chain in chains.items()} == {
        "forward": "type filter hook forward priority -5;",
        "input": "type filter hook input priority 110;",
        "output": "type filter hook output priority -5;",
    }
    replies, egress, ingress = (
        "ct state established,related accept",
        "ip saddr vmap @egress",
        "ip daddr vmap @ingress",
    )
    answer = "ip saddr . th sport . ip daddr . th dport . meta l4proto"
    ended = (f"meta l4proto 17 {answer} @ended-datagrams drop", f"{answer} @ended drop")
    assert chains["forward"].rules == (replies, *ended, egress, ingress)
    assert chains["input"].rules == (replies, *ended, egress)
    assert chains["output"].rules == (replies, "fib saddr type local accept", egress, ingress)


def test_neighbour_and_listener_discovery_always_pass_on_their_link() -> None:
    for chain in base_chains(with_config(family=Family.IPV6)).values():
        assert chain.rules[1:4] == (
            "meta l4proto 58 icmpv6 type 133-137 ip6 hoplimit 255 accept",
            "meta l4proto 58 icmpv6 type 130-132 ip6 daddr ff00::/8 accept",
            "meta l4proto 58 icmpv6 type 143 ip6 daddr ff00::/8 accept",
        )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"unknown": Unknown.ALLOW}, None),
        ({"unknown": Unknown.DROP, "pod_cidrs": ("fd00::/64",)}, None),
        ({"unknown": Unknown.DROP}, "drop"),
        ({"unknown": Unknown.DROP, "reject": True}, "reject"),
        ({"unknown": Unknown.HOLD, "queue": 7}, "ct state new queue num 7"),
        ({"unknown": Unknown.HOLD, "queue": 7, "queue_by_target": True}, "ct state new NFQUEUE num 7"),
    ],
)
def test_unknown_addresses_of_the_pod_ranges(settings: dict[str, object], expected: str | None) -> None:
    config = with_config(**({"pod_cidrs": ("10.1.0.0/16", "fd00::/64")} | settings))
    base, fixed = base_chains(config), fixed_chains(config)
    asked = [rule for chain in base.values() for rule in chain.rules if "@known" in rule]
    if expected is None:
        assert asked == []
        assert "unknown" not in fixed
        return
    assert "ip saddr 10.1.0.0/16 ip saddr != @known jump unknown" in base["input"].rules
    assert "ip daddr 10.1.0.0/16 ip daddr != @known jump unknown" not in base["input"].rules
    assert "ip daddr 10.1.0.0/16 ip daddr != @known jump unknown" in base["forward"].rules
    assert fixed["unknown"][0] == "fib saddr type local return"
    assert expected in fixed["unknown"]


def test_another_end_of_refused_packets_changes_every_chain_that_refuses() -> None:
    rejecting = msgspec.structs.replace(CONFIG, reject=True)
    for chains in (
        fixed_chains(rejecting),
        render_group(Group("i-1", Direction.INGRESS, ()), rejecting, {}).chains,
    ):
        assert not any(rule.endswith("drop") for rules in chains.values() for rule in rules)
        assert any(rule.endswith("reject") for rules in chains.values() for rule in rules)
