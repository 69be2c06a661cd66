"""What kproxy writes to nftables is, in the kernel, what nft writes of the same text."""

from __future__ import annotations

import functools
import ipaddress
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.nftables import names
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.script import Script
from kproxy.backends.nftables.text import whole_table
from kproxy.kernel.nft.commands import (
    AddChain,
    AddContainer,
    AddElements,
    AddRule,
    AddTable,
    Command,
    DeleteTable,
    FlushChain,
    Transaction,
)
from kproxy.kernel.nft.describe import describe
from kproxy.kernel.nft.listed import listed, listed_hook
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.rules import compile_rule
from kproxy.kernel.nft.ruleset import read
from kproxy.kernel.nft.types import NftError, NftFailure
from tests.backends.strategies import SETTINGS
from tests.builders import endpoint, endpoint_slice, plan_of, port, service
from tests.kernel import nft_oracle
from tests.kernel.namespace import enter_new, fresh_network
from tests.kernel.nft_raw import RawTable, raw_table
from tests.kernel.test_nft_reading import HASHED, chains_of, tables

V4, V6 = Family.IPV4, Family.IPV6
FAMILIES = pytest.mark.parametrize("family", list(Family))


def _ip(family: Family, number: int, net: int = 96) -> str:
    return f"10.{net}.0.{number}" if family is V4 else f"fd00:{net}::{number:x}"


def _cidr(family: Family, length: int) -> str:
    """A prefix; of IPv6, of four times the length."""
    prefix = f"10.96.240.255/{length}" if family is V4 else f"fd00:96:1:f0f0::f/{length * 4}"
    return str(ipaddress.ip_network(prefix, strict=False))


CONFIGS: list[dict[str, Any]] = [
    {},
    {"masquerade_all": True, "masquerade_bit": 0, "reject_unallocated": False},
    {"local_traffic": 16, "service_cidrs": (16,)},
    {"local_traffic": 13, "service_cidrs": (13, 29), "masquerade_bit": 31},
    {"local_traffic": 32, "service_cidrs": (32, 24, 8), "masquerade_bit": 7},
    {"local_traffic": "veth+"},
    {"local_traffic": "cbr0", "service_cidrs": (1,)},
    {"local_traffic": "a-long-name.123", "service_cidrs": (31, 30, 29, 3)},
]
"""Settings; numbers are the lengths of prefixes."""


def _config(family: Family, given: dict[str, Any]) -> NftablesConfig:
    found = dict(given)
    local = found.pop("local_traffic", None)
    if local is not None:
        by_interface = isinstance(local, str)
        found["local_traffic"] = (
            LocalTraffic(interface=local) if by_interface else LocalTraffic(cidr=_cidr(family, local))
        )
    found["service_cidrs"] = tuple(_cidr(family, length) for length in given.get("service_cidrs", ()))
    return NftablesConfig(family, node_addresses=(_ip(family, 200, 168),), **found)


def _services(family: Family) -> list[Any]:
    """Plans of services of every kind."""
    weighted = {"annotations": {"kproxy.io/weights": '{"node:node2": 4, "*": 2}'}}
    ranges = ["198.18.0.0/15", "255.255.255.255/32"] if family is V4 else ["fd07::/48", "ff00::/8"]
    kinds: list[dict[str, Any]] = [
        {"type": "NodePort"},
        {"sessionAffinity": "ClientIP", "type": "NodePort"},
        {"externalTrafficPolicy": "Local", "type": "LoadBalancer", "ingress": [_ip(family, 3, 97)]},
        {"loadBalancerSourceRanges": ranges, "type": "LoadBalancer", "ingress": [_ip(family, 4, 97)]},
        {"internalTrafficPolicy": "Local", "externalIPs": [_ip(family, 5, 98)]},
        {
            "sessionAffinity": "ClientIP",
            "externalTrafficPolicy": "Local",
            "externalIPs": [_ip(family, 6, 98)],
        },
        weighted,
        {"sessionAffinity": "ClientIP", **weighted},
    ]
    plans = []
    for number, fields in enumerate(kinds, 1):
        name = f"s{number}"
        node_port = 30000 + number if fields.get("type") == "NodePort" else 0
        ports = [port(80, None, nodePort=node_port), port(53, "dns", "UDP"), port(9, "sctp", "SCTP")]
        ends = [endpoint(_ip(family, n, number), node=f"node{n % 2 + 1}") for n in range(1, number % 4 + 2)]
        ends.append(endpoint(_ip(family, 99, number), node="node2", ready=False, serving=False))
        plans.append(
            plan_of(
                service(name, _ip(family, number), ports=ports, **fields),
                endpoint_slice(
                    *ends,
                    service=name,
                    ports=[port(8080, None), port(5353, "dns", "UDP"), port(9999, "sctp", "SCTP")],
                ),
                family=family,
            )
        )
    nothing = service("none", _ip(family, 77)), endpoint_slice(service="none")
    plans.append(plan_of(*nothing, family=family))
    return plans


def _both_ways(script: Script, family: Family) -> tuple[RawTable, RawTable]:
    """What the kernel holds after kproxy has written a script, and after nft has."""
    removal = Script(NftablesConfig(family))
    removal.remove_table()
    NetlinkNft().commit(removal.transaction())
    NetlinkNft().commit(script.transaction())
    ours = raw_table(family, names.TABLE)
    NetlinkNft().commit(removal.transaction())
    nft_oracle.write(str(script))
    return ours, raw_table(family, names.TABLE)


@pytest.mark.parametrize("given", CONFIGS, ids=lambda given: " ".join(map(str, given.values())) or "plain")
@FAMILIES
def test_a_whole_table_is_the_one_that_nft_makes(family: Family, given: dict[str, Any]) -> None:
    _whole(family, given)


@fresh_network
def _whole(family: Family, given: dict[str, Any]) -> None:
    ours, theirs = _both_ways(whole_table(_services(family), _config(family, given)), family)
    assert ours.rules == theirs.rules
    assert ours == theirs
    assert sum(map(len, ours.rules.values())) > 60
    assert sum(len(each.elements) for each in ours.sets.values()) > 100


@fresh_network
def test_any_elements_are_written_as_nft_writes_them_and_deleted() -> None:
    @given(tables())
    @settings(SETTINGS, max_examples=40)
    def compare(drawn: tuple[Family, dict[str, dict[str, str]]]) -> None:
        family, elements = drawn
        script = Script(NftablesConfig(family))
        script.declare(NftablesConfig(family))
        script.base(NftablesConfig(family))
        script.chains(chains_of(family))
        for name, content in elements.items():
            script.add_elements(name, content)
        ours, theirs = _both_ways(script, family)
        assert ours == theirs
        deletion = Script(NftablesConfig(family))
        for name, content in elements.items():
            deletion.delete_elements(name, content)
        NetlinkNft().commit(deletion.transaction())
        left = {name: each.elements for name, each in raw_table(family, names.TABLE).sets.items()}
        assert len(left.pop(names.ranges(HASHED))) <= 1  # the bound at zero, with which no range begins
        assert not any(left.values())

    compare()


def _addresses(family: Family) -> st.SearchStrategy[int]:
    most = 2 ** (32 if family is V4 else 128) - 1
    return st.one_of(st.integers(0, most), st.sampled_from([0, 1, most - 1, most]))


@st.composite
def apart(draw: st.DrawFn) -> tuple[Family, list[str]]:
    """A family, and ranges of its addresses that neither overlap nor touch, as `first-last`."""
    family = draw(st.sampled_from(list(Family)))
    bounds = sorted(draw(st.sets(_addresses(family), max_size=12)))
    kind = ipaddress.IPv4Address if family is V4 else ipaddress.IPv6Address
    found, end = [], -2
    for first, last in zip(bounds[::2], bounds[1::2], strict=False):
        if first > end + 1:
            found.append(f"{kind(first)}-{kind(last)}")
            end = last
    return family, found


@fresh_network
def test_any_ranges_are_written_as_nft_writes_them_and_change() -> None:
    kernel = NetlinkNft()

    @given(apart(), st.randoms(use_true_random=False))
    @settings(SETTINGS, max_examples=25)
    def compare(drawn: tuple[Family, list[str]], random: Random) -> None:
        family, ranges = drawn
        config, container = NftablesConfig(family), names.ranges(HASHED)
        script = Script(config)
        script.declare(config)
        script.declare_missing([container])
        script.add_elements(container, dict.fromkeys(ranges, ""))
        ours, theirs = _both_ways(script, family)
        assert ours == theirs
        held = set(_held(kernel, family, container))
        assert len(held) == len(ranges)
        for _ in range(4):
            gone = set(random.sample(sorted(held), len(held) // 2))
            script = Script(config)
            script.delete_elements(container, sorted(gone))
            back = set(random.sample(sorted(gone), len(gone) // 2))
            script.add_elements(container, dict.fromkeys(sorted(back), ""))
            kernel.commit(script.transaction())
            held = held - gone | back
            assert set(_held(kernel, family, container)) == held

    compare()


def _held(kernel: NetlinkNft, family: Family, container: str) -> dict[str, str]:
    reading = kernel.reading(family, names.TABLE)
    assert reading is not None
    assert reading.elements is not None
    return reading.elements[container]


@st.composite
def prefixes(draw: st.DrawFn) -> tuple[Family, list[str]]:
    """A family, and some of its prefixes, which may overlap."""
    family = draw(st.sampled_from(list(Family)))
    kind = ipaddress.IPv4Network if family is V4 else ipaddress.IPv6Network
    some = st.tuples(_addresses(family), st.integers(0, 32 if family is V4 else 128))
    drawn = draw(st.lists(some.map(lambda pair: str(kind(pair, strict=False))), min_size=1, max_size=6))
    return family, sorted(set(drawn))


@fresh_network
def test_any_prefixes_are_matched_as_nft_matches_them() -> None:
    @given(prefixes())
    @settings(SETTINGS, max_examples=40)
    def compare(drawn: tuple[Family, list[str]]) -> None:
        family, cidrs = drawn
        config = NftablesConfig(family, service_cidrs=tuple(cidrs), local_traffic=LocalTraffic(cidr=cidrs[0]))
        ours, theirs = _both_ways(whole_table(_services(family)[:1], config), family)
        assert ours.rules == theirs.rules

    compare()


@FAMILIES
def test_many_elements_go_in_many_messages_of_one_transaction(family: Family) -> None:
    _many(family)


@fresh_network
def _many(family: Family) -> None:
    first = ipaddress.ip_address("10.0.0.0" if family is V4 else "2001:db8::")
    asked = [f"{first + number} . 6 . 80" for number in range(1500)]
    elements = {
        names.SERVICES: dict.fromkeys(asked, "goto refuse"),
        names.ENDPOINT_0: {key: f"{key.split()[0]} . 8080" for key in asked},
        names.ranges(HASHED): {key.split()[0]: "" for key in asked[::2]},
        names.CLUSTER_IPS: {key.split()[0]: "" for key in asked},
    }
    config = NftablesConfig(family)
    nft, script = NetlinkNft(), Script(config)
    script.declare(config)
    script.base(config)
    script.declare_missing([names.ranges(HASHED)])
    for name, content in elements.items():
        script.add_elements(name, content)
    generation = nft.generation()
    nft.commit(script.transaction())
    assert generation is not None
    assert nft.generation() == type(generation)(
        ("nft", (generation.commits or 0) + 1), (generation.commits or 0) + 1
    )
    reading = nft.reading(family, names.TABLE)
    assert reading is not None
    assert {name: content for name, content in (reading.elements or {}).items() if content} == elements
    wrong = Script(config)
    wrong.delete_elements(names.ENDPOINT_0, asked[:1400])
    wrong.add_elements(names.SERVICES, {asked[0]: "goto refuse", asked[1321]: "drop"})
    with pytest.raises(NftError, match="File exists") as caught:
        nft.commit(wrong.transaction())
    assert asked[1321] in caught.value.message
    after = nft.reading(family, names.TABLE)
    assert after is not None
    assert after.elements == reading.elements
    script = Script(config)
    script.delete_elements(names.SERVICES, asked)
    script.delete_elements(names.ranges(HASHED), elements[names.ranges(HASHED)])
    nft.commit(script.transaction())
    found = nft.reading(family, names.TABLE)
    assert found is not None
    held = {name for name, content in (found.elements or {}).items() if content}
    assert held == {names.ENDPOINT_0, names.CLUSTER_IPS}


FLOW = "{ip} saddr . {ip} daddr . meta l4proto . th dport"
STATEMENTS = [
    "ct state established,related accept",
    "ct state new drop",
    "meta l4proto 58 icmpv6 type 130-137 accept",
    "meta l4proto 58 icmpv6 type 143 accept",
    "counter",
    "counter jump other",
    "{ip} saddr != @addresses drop",
    "{ip} saddr vmap @verdicts",
    "meta l4proto . th dport vmap @by-port",
    "meta l4proto 6 th dport 80 {ip} saddr @addresses return",
    "meta l4proto 17 th dport 0-65535 {ip} saddr @ranges accept",
    "meta l4proto 132 th dport @ports accept",
    "{ip} daddr . meta l4proto . th dport @named accept",
    f"{FLOW} @flows drop",
    f"update @flows {{{{ {FLOW} }}}}",
    "update @flows {{ {ip} saddr . {ip} daddr . meta l4proto . th sport }}",
    'limit rate 25/second burst 50 packets log prefix "i-0123456789abcdef" group 7',
    'log prefix "with words" group 65535',
    "fib saddr type local return",
    "reject",
]
STATEMENTS_OF_IPV6 = [
    "meta l4proto 58 icmpv6 type 133-137 ip6 hoplimit 255 accept",
    "meta l4proto 58 icmpv6 type 143 ip6 daddr ff00::/8 accept",
]
TUPLE = "type {address} . {address} . inet_proto . inet_service"
CONTAINERS = {
    "addresses": ("set", "type {address};"),
    "ranges": ("set", "type {address}; flags interval;"),
    "ports": ("set", "type inet_service; flags interval;"),
    "named": ("set", "type {address} . inet_proto . inet_service;"),
    "verdicts": ("map", "type {address} : verdict;"),
    "by-port": ("map", "type inet_proto . inet_service : verdict;"),
    "flows": (
        "set",
        f"{TUPLE}; flags dynamic,timeout; size 8192; timeout 600s; counter;",
    ),
}


@FAMILIES
def test_rules_of_network_policies_are_those_that_nft_makes(family: Family) -> None:
    _statements(family)


@fresh_network
def _statements(family: Family) -> None:
    """Every statement is written and read as nft does, and recognised and described."""
    ip, address = ("ip", "ipv4_addr") if family is V4 else ("ip6", "ipv6_addr")
    rules = [rule.format(ip=ip) for rule in STATEMENTS] + (STATEMENTS_OF_IPV6 if family is V6 else [])
    declared = {name: (kind, words.format(address=address)) for name, (kind, words) in CONTAINERS.items()}
    commands: list[Command] = [AddTable()]
    commands += [AddContainer(kind, name, words) for name, (kind, words) in declared.items()]
    commands += [AddChain("other"), AddChain("base", "type filter hook input priority 110;")]
    commands += [AddRule("base", rule) for rule in rules]
    commands += [
        AddElements("ports", declared["ports"][1], dict.fromkeys(["0", "53-55", "443", "65000-65535"], "")),
        AddElements("by-port", declared["by-port"][1], {"6 . 80": "goto other"}),
    ]
    made = Transaction(family, "kproxy-trial", commands)
    kernel = NetlinkNft()
    kernel.commit(made)
    ours = raw_table(family, made.table)
    found = kernel.reading(family, made.table)
    assert found is not None
    assert [line.partition(" ")[2] for line in found.chains["base"][1:]] == list(listed(family, rules) or ())
    assert found.chains["base"][0] == listed_hook("type filter hook input priority 110;")
    assert (found.elements or {})["ports"].keys() == {"0", "53-55", "443", "65000-65535"}
    assert found.unreadable == {}
    table = next(each for each in read(family) if each.name == made.table)
    keys = {name: each.key_length for name, each in table.sets.items()}
    shown = [describe(rule, keys) for rule in table.chains["base"].rules]
    words = {"icmpv6 type": "@th,0,8", "25/second burst 50 packets ": ""}
    expected = [
        functools.reduce(lambda text, pair: text.replace(*pair), words.items(), rule) for rule in rules
    ]
    assert shown == expected
    kernel.commit(Transaction(family, made.table, [DeleteTable()]))
    nft_oracle.write(str(made))
    theirs = raw_table(family, made.table)
    assert ours.rules == theirs.rules
    assert ours == theirs


@fresh_network
def test_a_thread_that_changes_its_namespace_writes_to_the_new_one() -> None:
    nft = NetlinkNft()
    table = Transaction(V4, "kproxy", [AddTable()])
    nft.commit(table)
    first = nft.generation()
    assert nft.reading(V4, "kproxy") is not None
    enter_new()
    assert nft.reading(V4, "kproxy") is None
    assert nft.generation() != first
    with pytest.raises(NftError, match="delete table ip kproxy: No such file"):
        nft.commit(Transaction(V4, "kproxy", [DeleteTable()]))
    nft.commit(table)
    assert nft.reading(V4, "kproxy") is not None


@fresh_network
def test_a_thread_keeps_one_socket_and_takes_it_with_it() -> None:
    nft = NetlinkNft()
    nft.commit(Transaction(V4, "kproxy", [AddTable()]))

    def sockets() -> int:
        found = Path("/proc/thread-self/fd").iterdir()
        return sum(str(each.readlink()).startswith("socket:") for each in found if each.is_symlink())

    before = sockets()

    def body() -> None:
        for number in range(20):
            nft.commit(Transaction(V4, "kproxy", [AddChain(f"c{number}")]))
            with pytest.raises(NftError, match="No such file"):
                nft.commit(Transaction(V4, "kproxy", [AddRule("nowhere", "drop")]))
            assert nft.generation() is not None
        during.append(sockets())

    during: list[int] = []
    with ThreadPoolExecutor(1) as pool:  # its thread begins in the namespace of this one
        pool.submit(body).result()
    assert during == [before + 1]
    assert sockets() == before


@fresh_network
def test_a_rule_that_is_refused_is_named() -> None:
    rule = "ip daddr . meta l4proto . th dport vmap @services"
    commands: list[Command] = [
        AddTable(),
        AddChain("c"),
        FlushChain("c"),
        AddRule("c", "drop"),
        AddRule("c", rule),
    ]
    nft = NetlinkNft()
    with pytest.raises(NftError) as caught:
        nft.commit(Transaction(V4, "kproxy", commands))
    assert caught.value.kind is NftFailure.REFUSED
    assert caught.value.message == f"add rule ip kproxy c {rule}: No such file or directory"
    assert nft.reading(V4, "kproxy") is None


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "drop  drop",
        "tcp dport 80 drop",
        "ip saddr . ip daddr 10.0.0.1",
        "ip saddr fd00::/8 drop",
        "ip saddr 10.0.0.1/33 drop",
        "meta l4proto tcp drop",
        "goto",
        'iifname < "eth0" drop',
        "dnat ip to 10.0.0.1",
        "ip daddr { 10.0.0.1, nonsense } drop",
        "update @affinity { ip saddr timeout 1h }",
    ],
)
def test_a_rule_in_other_words_is_refused_by_name(rule: str) -> None:
    if not rule:
        assert compile_rule(V4, rule).expressions == (b"",)
        return
    with pytest.raises(ValueError, match="cannot compile the rule") as caught:
        compile_rule(V4, rule)
    assert repr(rule) in str(caught.value)
