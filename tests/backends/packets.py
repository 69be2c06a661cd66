"""What the rules in a FakeXtables do to a packet: enough of netfilter to tell translated, refused and lost.

Chance (statistic, recent) is followed both ways, so the answer is the set of everything that may happen.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from kproxy.backends.iptables.canonical import tokenize
from tests.support.fake_xtables import FakeXtables

NODE_ADDRESSES = frozenset({"192.168.0.2", "fd00:168::2", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection; `interface` is where it came in, "" for the node's own."""

    dst: str
    port: int
    protocol: str = "tcp"
    src: str = "198.18.0.9"
    interface: str = "eth0"


@dataclass(frozen=True)
class _Rule:
    conditions: tuple[tuple[bool, str, str], ...]
    chance: bool
    target: str | None
    to: str


def outcomes(fake: FakeXtables, packet: Packet) -> frozenset[str]:
    """Some of: the endpoints it may be translated to, `REJECT`, `DROP`, and `LOST` for untouched."""
    nat, filters = fake.chains("nat"), fake.chains("filter")
    start = "PREROUTING" if packet.interface else "OUTPUT"
    translated = _walk(nat, start, packet) if nat else {"CONTINUE"}
    results = {t for t in translated if t != "CONTINUE"}
    if "CONTINUE" in translated:
        local = packet.dst in NODE_ADDRESSES
        hook = ("INPUT" if local else "FORWARD") if packet.interface else "OUTPUT"
        verdicts = _walk(filters, hook, packet) if filters else {"CONTINUE"}
        results |= {"LOST" if v in {"CONTINUE", "ACCEPT"} else v for v in verdicts}
    return frozenset(results)


def is_served(found: frozenset[str]) -> bool:
    """Whether every possibility is a translation."""
    return not found & {"LOST", "REJECT", "DROP"}


def _walk(chains: dict[str, list[str]], chain: str, packet: Packet) -> set[str]:
    """What may come of the packet in a chain; `CONTINUE` if it may return to the caller."""
    results: set[str] = set()
    for line in chains[chain]:
        rule = _parse(line)
        if rule.target is None or not all(_holds(c, packet) for c in rule.conditions):
            continue
        if rule.target in chains:
            inside = _walk(chains, rule.target, packet)
        elif rule.target in {"MARK", "LOG", "MASQUERADE"}:
            continue
        elif rule.target == "RETURN":
            inside = set()
            if not rule.chance:
                return results | {"CONTINUE"}
        else:
            inside = {rule.to or rule.target}
        results |= inside - {"CONTINUE"}
        if not rule.chance and "CONTINUE" not in inside:
            return results
    return results | {"CONTINUE"}


def _holds(condition: tuple[bool, str, str], packet: Packet) -> bool:
    negated, option, value = condition
    return _matches(option, value, packet) != negated


def _matches(option: str, value: str, packet: Packet) -> bool:
    if option in {"-s", "-d"}:
        address = packet.src if option == "-s" else packet.dst
        return ipaddress.ip_address(address) in _network(value)
    if option == "-p":
        return packet.protocol == value
    if option == "--dport":
        low, _, high = value.partition(":")
        return int(low) <= packet.port <= int(high or low)
    if option == "-i":
        return packet.interface.startswith(value[:-1]) if value.endswith("+") else packet.interface == value
    if option == "--dst-type":
        return packet.dst in NODE_ADDRESSES
    if option == "--src-type":
        return packet.src in NODE_ADDRESSES
    if option == "--ctstate":
        return "NEW" in value.split(",")
    if option == "--mark":
        return False
    raise AssertionError(option)


@lru_cache(maxsize=4096)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


@lru_cache(maxsize=65536)
def _parse(line: str) -> _Rule:
    words = [text for text, _ in tokenize(line)][2:]
    conditions: list[tuple[bool, str, str]] = []
    chance = False
    target: str | None = None
    to = ""
    negated = False
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "!":
            negated = True
            continue
        if word in {"-j", "-g"}:
            target = words[at]
            at += 1
            if target == "DNAT":
                to = words[at + 1]
            break
        value = words[at]
        if word == "-m":
            chance = chance or (value in {"statistic", "recent"} and "--set" not in words)
            at += 1
        elif word in {
            "--comment",
            "--mode",
            "--probability",
            "--seconds",
            "--name",
            "--mask",
            "--nfacct-name",
            "--bytecode",
        }:
            at += 1
        elif word not in {"--rcheck", "--update", "--reap", "--rsource", "--set"}:
            conditions.append((negated, word, value))
            at += 1
        negated = False
    return _Rule(tuple(conditions), chance, target, to)
