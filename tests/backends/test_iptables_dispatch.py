"""Trees of chains: every line is met by its packets, and a change ends where a full division would."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import random
import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.iptables.dispatch import Tree
from kproxy.backends.iptables.names import LONGEST_CHAIN_NAME
from kproxy.backends.iptables.shared import Entry, changed_chains, entries_of, replaced
from tests.suite.matrix import SEED, examples

Chains = Mapping[str, tuple[str, ...]]

ROOT = ("nat", "KUBE-SERVICES")
IPV4 = Tree(ROOT, "KUBE-AT-", Family.IPV4, longest=3)
IPV6 = Tree(ROOT, "KUBE-AT-", Family.IPV6, longest=3)
PORTS = Tree(ROOT, "KUBE-NP-", Family.IPV4, by_address=False, longest=3)
EITHER = Tree(ROOT, "KUBE-XT-", Family.IPV4, local=True, longest=3)


def line(address: str | None, port: int, protocol: str = "tcp", owner: str = "ns/a") -> str:
    """A service's line as it would stand in the root."""
    to = "" if address is None else f"-d {ipaddress.ip_interface(address)} "
    told = f'-m comment --comment "{owner}:p cluster IP"'
    return f"-A KUBE-SERVICES {to}-p {protocol} {told} -m {protocol} --dport {port} -j KUBE-SVC-{port}\n"


_WORDS = re.compile(
    r"-A \S+ (?:-d (?P<net>\S+) )?(?:-p (?P<proto>\S+) )?(?:-m comment --comment \"[^\"]*\" )?"
    r"(?P<local>-m addrtype --dst-type LOCAL )?"
    r"(?:-m \S+ --dport (?P<low>\d+)(?::(?P<high>\d+))? )?-j (?P<to>\S+)\n"
)


def reached(chains: Chains, chain: str, address: str, protocol: str, port: int) -> tuple[list[str], int]:
    """The targets outside the tree that a packet meets, and how many rules it is compared with on its way."""
    found: list[str] = []
    compared = 0
    for rule in chains[chain]:
        words = _WORDS.fullmatch(rule)
        assert words is not None, rule
        compared += 1
        if words["net"] and ipaddress.ip_address(address) not in ipaddress.ip_network(words["net"]):
            continue
        if words["proto"] not in (None, protocol):
            continue
        if words["low"] and not int(words["low"]) <= port <= int(words["high"] or words["low"]):
            continue
        if words["to"] in chains:
            inside, more = reached(chains, words["to"], address, protocol, port)
            found += inside
            compared += more
        else:
            found.append(words["to"])
    return found, compared


def place(entry: Entry) -> tuple[str | None, str, int]:
    """Address, protocol and port of a line."""
    words = _WORDS.fullmatch(entry[3])
    assert words is not None
    return words["net"] and words["net"].partition("/")[0], words["proto"], int(words["low"])


def addresses(family: Family) -> st.SearchStrategy[str]:
    """Some addresses that lie close together, and some from anywhere."""
    if family is Family.IPV4:
        near = st.integers(0, 300).map(lambda n: str(ipaddress.IPv4Address("10.96.0.0") + n))
        return st.one_of(near, st.ip_addresses(v=4).map(str))
    near = st.integers(0, 300).map(lambda n: str(ipaddress.IPv6Address("fd00:10:96::") + n))
    return st.one_of(near, st.ip_addresses(v=6).map(str))


def services(tree: Tree) -> st.SearchStrategy[dict[str, tuple[str, ...]]]:
    """Services with lines that this tree divides."""
    address: st.SearchStrategy[str | None] = addresses(tree.family)
    if not tree.by_address:
        address = st.none()
    elif tree.local:
        address = st.one_of(st.none(), address)
    port = st.one_of(st.integers(1, 65535), st.sampled_from([80, 443, 30000, 30001]))
    return owned(st.builds(line, address, port, st.sampled_from(["tcp", "udp", "sctp"])))


def owned(lines: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, tuple[str, ...]]]:
    """Up to 16 services with up to 5 of these lines each."""
    return st.dictionaries(
        st.sampled_from([f"ns/{name}" for name in "abcdefghijklmnop"]),
        st.lists(lines, max_size=5, unique=True).map(tuple),
        max_size=16,
    )


@functools.cache
def few_choices(tree: Tree) -> st.SearchStrategy[dict[str, tuple[str, ...]]]:
    """Services like those of `services`, with lines from a stock of 2000: each is one choice, not seven."""
    dice = random.Random(tree.prefix)
    bits = 32 if tree.family is Family.IPV4 else 128
    near = int(ipaddress.ip_address("10.96.0.0" if bits == 32 else "fd00:10:96::"))

    def address() -> str | None:
        if not tree.by_address or (tree.local and dice.random() < 0.5):
            return None
        number = near + dice.randint(0, 300) if dice.random() < 0.5 else dice.getrandbits(bits)
        return str(ipaddress.IPv4Address(number) if bits == 32 else ipaddress.IPv6Address(number))

    def port() -> int:
        return dice.choice([dice.randint(1, 65535), 80, 443, 30000, 30001][: 1 + 4 * dice.randint(0, 1)])

    stock = [line(address(), port(), dice.choice(["tcp", "udp", "sctp"])) for _ in range(2000)]
    return owned(st.sampled_from(stock))


TREES = pytest.mark.parametrize("tree", [IPV4, IPV6, PORTS, EITHER], ids=["ipv4", "ipv6", "ports", "either"])


@TREES
@given(data=st.data())
@settings(deadline=None, derandomize=not SEED, max_examples=examples(100))
def test_each_line_is_met_by_its_packets_once_and_names_fit(tree: Tree, data: st.DataObject) -> None:
    entries = entries_of(tree, data.draw(services(tree)))
    chains = tree.chains(entries)
    for entry in entries:
        address, protocol, port = place(entry)
        alike = sorted(f"KUBE-SVC-{port}" for other in entries if place(other) == (address, protocol, port))
        found, _ = reached(chains, "KUBE-SERVICES", address or "192.0.2.99", protocol, port)
        if address is not None:
            node_ports = [e for e in entries if place(e) == (None, protocol, port)]
            alike += [f"KUBE-SVC-{port}"] * len(node_ports)
        elif tree.by_address:
            found = [target for target in found if target == f"KUBE-SVC-{port}"][: len(alike)]
        assert found == alike
    assert all(len(chain) <= LONGEST_CHAIN_NAME for chain in chains)
    led_to = [w["to"] for rules in chains.values() for rule in rules if (w := _WORDS.fullmatch(rule))]
    assert sorted(c for c in led_to if tree.contains(c)) == sorted(chains.keys() - {"KUBE-SERVICES"})


@TREES
@pytest.mark.parametrize("longest", [3, 7])
@given(data=st.data())
@settings(deadline=None, derandomize=not SEED, max_examples=examples(250))
def test_what_changes_is_all_that_a_full_division_would_change(
    tree: Tree, longest: int, data: st.DataObject
) -> None:
    tree = dataclasses.replace(tree, longest=longest)
    some = few_choices(tree)
    lines = data.draw(some)
    entries = entries_of(tree, lines)
    chains = dict(tree.chains(entries))
    for _ in range(3):
        changes = data.draw(some)
        lines |= changes
        new, keys = replaced(tree, entries, changes)
        assert new == entries_of(tree, lines)
        written, gone = changed_chains(tree, entries, new, keys, chains.__contains__)
        for chain in gone:
            del chains[chain]
        chains |= written
        assert chains == tree.chains(new)
        entries = new


def test_chains_that_come_to_be_divided_bring_those_that_nothing_changed_in() -> None:
    tree = dataclasses.replace(IPV4, longest=5)
    near = [(f"10.96.0.{n}", 80) for n in (17, 18, 19, 33, 34)]
    old = entries_of(tree, {"ns/a": [line(*each) for each in near]})
    new, keys = replaced(tree, old, {"ns/b": [line("10.96.0.65", 80)]})
    chains = tree.chains(old)
    assert set(chains) == {"KUBE-SERVICES"}
    written, gone = changed_chains(tree, old, new, keys, chains.__contains__)
    assert (set(written), gone) == ({"KUBE-SERVICES", "KUBE-AT-10.96.0.16/28"}, set())
    back, gone = changed_chains(tree, new, old, keys, written.__contains__)
    assert (back, gone) == (chains, {"KUBE-AT-10.96.0.16/28"})


@pytest.mark.parametrize(
    ("tree", "lines", "chains"),
    [
        (
            IPV4,
            [("10.96.0.1", 443), ("10.96.0.10", 53), ("10.96.0.10", 9153), ("10.97.3.4", 80)],
            {
                "KUBE-SERVICES": ["-d 10.96.0.0/16 -j KUBE-AT-10.96.0.0/16", "10.97.3.4/32 80"],
                "KUBE-AT-10.96.0.0/16": ["10.96.0.1/32 443", "10.96.0.10/32 53", "10.96.0.10/32 9153"],
            },
        ),
        (
            IPV4,
            [("203.0.113.7", port) for port in (80, 81, 82, 8080)],
            {
                "KUBE-SERVICES": [
                    "-d 203.0.113.7/32 -p tcp -m tcp --dport 0:4095 -j KUBE-AT-FUXP7KWJIRJCXDEZ",
                    "203.0.113.7/32 8080",
                ],
                "KUBE-AT-FUXP7KWJIRJCXDEZ": ["203.0.113.7/32 80", "203.0.113.7/32 81", "203.0.113.7/32 82"],
            },
        ),
        (
            PORTS,
            [(None, port) for port in (30000, 30001, 30002, 31000)],
            {
                "KUBE-SERVICES": ["-p tcp -m tcp --dport 29952:30207 -j KUBE-NP-tcp-29952-30207", "31000"],
                "KUBE-NP-tcp-29952-30207": ["30000", "30001", "30002"],
            },
        ),
    ],
    ids=["addresses", "ports of one address", "node ports"],
)
def test_divisions(tree: Tree, lines: list[tuple[str | None, int]], chains: dict[str, list[str]]) -> None:
    found = tree.chains(entries_of(tree, {"ns/a": [line(*each) for each in lines]}))
    told = {
        chain: [
            rule.removeprefix(f"-A {chain} ").rstrip("\n")
            if tree.prefix in rule.split(" ", 2)[2]
            else " ".join(filter(None, (_WORDS.fullmatch(rule)["net"], _WORDS.fullmatch(rule)["low"])))  # type: ignore[index]
            for rule in rules
        ]
        for chain, rules in found.items()
    }
    assert told == chains


def test_ten_thousand_services_are_tens_of_rules_away() -> None:
    count = 10_000
    first = ipaddress.IPv4Address("10.96.0.1")
    tree = Tree(ROOT, "KUBE-AT-", Family.IPV4)
    for stride in (1, 97):
        lines = {f"ns/{n}": (line(str(first + n * stride), 80),) for n in range(count)}
        chains = tree.chains(entries_of(tree, lines))
        for n in (0, count // 2, count - 1):
            found, compared = reached(chains, "KUBE-SERVICES", str(first + n * stride), "tcp", 80)
            assert found == ["KUBE-SVC-80"]
            assert compared <= 5 * 16


def test_a_rule_without_a_port_is_no_line() -> None:
    foreign = "-A KUBE-SERVICES -s 192.0.2.0/24 -j ACCEPT\n"
    assert not IPV4.places(foreign)
    assert not IPV4.places("-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-AT-X\n")
    with pytest.raises(ValueError, match=r"not a line of a service: '-A KUBE-SERVICES -s 192\.0\.2\.0/24"):
        IPV4.key(foreign)
