"""The meaning of nftables rules: decoding, printing, and running them, without a kernel."""

import json
import re
from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.nftables import chains, names
from kproxy.backends.nftables.affinity import Target, sticky
from kproxy.backends.nftables.chains import OwnList
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.drawn import Drawn
from kproxy.kernel.nft.declarations import set_type
from kproxy.kernel.nft.describe import describe
from kproxy.kernel.nft.fields import total_length
from kproxy.kernel.nft.rule_decoding import operations
from kproxy.kernel.nft.rules import compile_rule
from kproxy.modes.packet_walk import RulesOfAllModes
from kproxy.modes.registry import mode_registry
from kproxy.plan.outcomes import Outcome, Packet, PacketVerdict
from tests.explain.judge import settings
from tests.explain.routes import PaperRouting
from tests.explain.test_iptables_meaning import CLIENT, OWN, POD, SIX, TO_NODE, UNSEEN

_BRACES = re.compile(r"(@\S+ )?\{ ([^}]*) \}")
_DIGEST = "ABCDEFGHIJKLMNOP"


def _rules(family: Family) -> list[str]:
    """Rules of every kind that kproxy writes."""
    pods = ("10.1.0.0/16", "fd00:1::/64") if family is Family.IPV4 else ("fd00:1::/64", "fd00:1::/61")
    found: list[str] = []
    for traffic in (
        None,
        LocalTraffic(cidr=pods[0]),
        LocalTraffic(cidr=pods[1] if family is Family.IPV6 else "10.1.4.0/23"),
        LocalTraffic(interface="cni0"),
        LocalTraffic(interface="veth+"),
    ):
        ranges = ("10.96.0.0/12", "10.200.0.0/16") if family is Family.IPV4 else ("fd00:96::/108",)
        config = NftablesConfig(family, local_traffic=traffic, service_cidrs=ranges)
        found += [rule for chain in chains.base_chains(config).values() for rule in chain.rules]
        found += chains.internal(config, "all-3-1")[1] + chains.external(config, "all-1")[1]
        found += chains.external_local(config, "all-3-1", "here-2-1")[1]
    found += chains.firewall(family, _DIGEST)[1] + chains.pick(family, 3, 1)[1]
    found += chains.own(family, 6, OwnList((5, 6), 300, 2), [True, False])
    ip = "10.1.0.9" if family is Family.IPV4 else "fd00:1::9"
    targets = [Target(ip, 8080, 1, 7), Target(ip, 8081, 3, 8)]
    return found + list(sticky(family, _DIGEST, 6, targets, 10800, [9]))


def _without_values(found: re.Match[str]) -> str:
    """Braces as they are printed: with a single value it is no set, and the values of a set are left out."""
    if found[1]:
        return found[0]
    return "{ ... }" if "," in found[2] else found[2]


def _lengths(family: Family) -> dict[str, int]:
    held = {}
    for rule in _rules(family):
        for name in re.findall(r"@([\w-]+)", rule):
            declared = names.declaration_of(family, name)
            assert declared is not None, name
            held[name] = total_length(set_type(declared).key)
    return held


@pytest.mark.parametrize("family", Family)
def test_a_rule_is_printed_as_it_was_written(family: Family) -> None:
    lengths = _lengths(family)
    for rule in dict.fromkeys(_rules(family)):
        compiled = compile_rule(family, rule)
        packed = compiled.with_ids(range(1, len(compiled.sets) + 1))
        anonymous = {inner.template: total_length(inner.kind.key) for inner in compiled.sets}
        shown = describe(operations(packed), lengths | anonymous)
        assert shown == re.sub("dnat ip6? to", "dnat to", _BRACES.sub(_without_values, rule))


@pytest.mark.parametrize(
    ("drawn", "operator", "value", "share"),
    [
        (Drawn(10, 0, network=True), "<", b"\0\0\0\3", 0.3),
        (Drawn(10, 0, network=True), ">=", b"\0\0\0\3", 0.7),
        (Drawn(10, 5, network=True), "<=", b"\0\0\0\5", 0.1),
        (Drawn(10, 5, network=True), ">", b"\0\0\0\x20", 0.0),
        (Drawn(4, 0, network=True), "==", b"\0\0\0\1", 0.25),
        (Drawn(4, 0, network=True), "!=", b"\0\0\0\x09", 1.0),
        (Drawn(4), "<", b"\0\0\0\1", None),
    ],
)
def test_the_share_of_a_comparison(drawn: Drawn, operator: str, value: bytes, share: float | None) -> None:
    assert drawn.share(operator, value) == (None if share is None else pytest.approx(share))


def _walk(packet: Packet, chain: dict[str, Any], *rules: list[Any], sets: Any = ()) -> tuple[Outcome, ...]:
    """What becomes of a packet in a table of one base chain, as nft's JSON has it."""
    place = {"family": "inet", "table": "t"}
    listed: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "t"}},
        {"chain": {**place, "name": "c", "type": "filter", "prio": 0, "policy": "accept", **chain}},
        *({"set": {**place, **each}} for each in sets),
        *({"rule": {**place, "chain": "c", "expr": rule}} for rule in rules),
    ]
    walker = RulesOfAllModes(mode_registry().rule_readers(settings(proxy_mode="nftables")))
    held = walker.load_dump(json.dumps({"nftables": listed}), packet.family)
    return walker.walk(held, packet, PaperRouting())


def _match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


_DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
_SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
_SADDR6 = {"payload": {"protocol": "ip6", "field": "saddr"}}
_MARK = {"meta": {"key": "mark"}}
_DROP: dict[str, None] = {"drop": None}


@pytest.mark.parametrize(
    ("packet", "rule", "holds"),
    [
        (POD, [_match(_DPORT, 80)], True),
        (POD, [_match(_DPORT, 80, "!=")], False),
        (POD, [_match(_DPORT, 81, "<")], True),
        (POD, [_match(_DPORT, {"range": [79, 90]})], True),
        (POD, [_match(_DPORT, {"set": [22, {"range": [79, 90]}]})], True),
        (TO_NODE, [_match(_DPORT, 53)], False),
        (POD, [_match(_SADDR, {"prefix": {"addr": "10.1.0.0", "len": 16}})], True),
        (POD, [_match(_SADDR, "@banned")], True),
        (CLIENT, [_match(_SADDR, "@banned")], False),
        (POD, [_match(_SADDR6, "fd00::1")], False),
        (SIX, [_match(_SADDR6, {"prefix": {"addr": "fd00:1:1::", "len": 48}})], True),
        (SIX, [_match(_SADDR, "10.1.1.5")], False),
        (POD, [_match({"meta": {"key": "iifname"}}, "cni*")], True),
        (POD, [_match({"meta": {"key": "iif"}}, "eth0")], False),
        (POD, [_match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]})], True),
        (POD, [_match({"meta": {"key": "nfproto"}}, "ipv6")], False),
        (POD, [_match({"ct": {"key": "state"}}, ["established", "related"], "in")], False),
        (POD, [_match({"ct": {"key": "state"}}, "new", "in")], True),
        (POD, [_match({"ct": {"key": "status"}}, "dnat", "in")], False),
        (POD, [_match({"&": [_MARK, 255]}, 0)], True),
        (
            POD,
            [{"mangle": {"key": _MARK, "value": {"|": [_MARK, 4]}}}, _match({"&": [_MARK, 4]}, 0, "!=")],
            True,
        ),
        (OWN, [_match({"fib": {"result": "type", "flags": ["saddr"]}}, "local")], True),
        (POD, [_match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, right=False)], False),
        (POD, [_match({"payload": {"protocol": "tcp", "field": "flags"}}, "syn", "in")], True),
        (POD, [{"limit": {"rate": 5, "per": "second"}}], True),
        (POD, [{"limit": {"rate": 5, "per": "second", "inv": True}}], False),
        (POD, [{"counter": {"packets": 0, "bytes": 0}}, {"log": {"prefix": "x"}}], True),
        (
            POD,
            [_match({"concat": [{"meta": {"key": "l4proto"}}, _DPORT]}, {"set": [{"concat": ["tcp", 80]}]})],
            True,
        ),
    ],
)
def test_a_match(packet: Packet, rule: list[Any], holds: bool) -> None:
    hook = "output" if packet is OWN else "prerouting"
    banned = {
        "name": "banned",
        "type": "ipv4_addr",
        "flags": ["interval"],
        "elem": [{"range": ["10.1.1.2", "10.1.1.9"]}],
    }
    (outcome,) = _walk(packet, {"hook": hook}, [*rule, _DROP], sets=[banned])
    assert outcome.verdict is (PacketVerdict.DROP if holds else PacketVerdict.UNTOUCHED)


@pytest.mark.parametrize(
    "rule",
    [
        [_match({"meta": {"key": "skuid"}}, 0)],
        [_match({"payload": {"protocol": "ip", "field": "ttl"}}, 64)],
        [_match({"osf": {"key": "name"}}, "Linux")],
        [_match(_SADDR, "@elsewhere")],
        [{"xt": {"type": "match", "name": "length"}}],
        [{"quota": {"val": 25, "val_unit": "mbytes"}}],
    ],
)
def test_a_match_that_is_not_modelled_is_quoted_with_table_and_chain(rule: list[Any]) -> None:
    (outcome,) = _walk(POD, {"hook": "forward"}, [*rule, _DROP])
    assert outcome.verdict is PacketVerdict.UNKNOWN
    assert "inet t c: " in outcome.reason


def test_an_interface_that_is_not_known_is_not_guessed() -> None:
    (outcome,) = _walk(UNSEEN, {"hook": "forward"}, [_match({"meta": {"key": "iifname"}}, "cni0"), _DROP])
    assert outcome.verdict is PacketVerdict.UNKNOWN


def test_chance_divides_the_packet() -> None:
    numgen = {"numgen": {"mode": "random", "mod": 10, "offset": 0}}
    first, second = _walk(POD, {"hook": "forward"}, [_match(numgen, 3, "<"), _DROP])
    assert (first.verdict, second.verdict) == (PacketVerdict.DROP, PacketVerdict.UNTOUCHED)
    assert (first.probability, second.probability) == pytest.approx((0.3, 0.7))


def test_a_map_of_verdicts_by_chance() -> None:
    numgen = {"numgen": {"mode": "random", "mod": 4, "offset": 0}}
    vmap = {"vmap": {"key": numgen, "data": {"set": [[0, {"drop": None}], [1, {"accept": None}]]}}}
    found = _walk(POD, {"hook": "forward", "policy": "drop"}, [vmap], [{"reject": None}])
    assert {o.verdict.value: round(o.probability, 2) for o in found} == {
        "drop": 0.25,
        "pass": 0.25,
        "reject": 0.5,
    }


def test_a_policy_is_a_step() -> None:
    (outcome,) = _walk(CLIENT, {"hook": "forward", "policy": "drop"})
    assert (outcome.verdict, outcome.steps) == (PacketVerdict.DROP, ("inet t c: policy drop",))


def test_the_earlier_of_two_translations_counts() -> None:
    to = {"dnat": {"family": "ip", "addr": "10.1.1.9", "port": 8080}}
    nat = {"type": "nat", "hook": "prerouting", "prio": -100}
    other = {"dnat": {"family": "ip", "addr": "10.1.1.7", "port": 1}}
    (outcome,) = _walk(CLIENT, nat, [_match(_DPORT, 80), to], [_match(_DPORT, 80), other])
    assert (outcome.verdict, outcome.endpoint) == (PacketVerdict.FORWARD, "10.1.1.9:8080")


@pytest.mark.parametrize(
    ("key", "right", "op", "holds"),
    [
        ("state", "untracked", "in", True),
        ("status", "dnat", "in", False),
        ("mark", 1, "!=", False),
        ("direction", "original", "==", False),
    ],
)
def test_a_packet_without_a_connection_has_only_a_state(key: str, right: Any, op: str, holds: bool) -> None:
    rule = [_match({"ct": {"key": key}}, right, op), _DROP]
    (outcome,) = _walk(POD, {"hook": "prerouting", "prio": -300}, [{"notrack": None}], rule)
    assert outcome.verdict is (PacketVerdict.DROP if holds else PacketVerdict.UNTOUCHED)


def test_what_a_program_holds_is_decided_by_it() -> None:
    (outcome,) = _walk(POD, {"hook": "forward"}, [{"queue": {"num": 1071}}], [_DROP])
    assert outcome.verdict is PacketVerdict.UNKNOWN
    assert outcome.reason == "held by inet t c: queue to 1071: the program that reads the queue decides"


@pytest.mark.parametrize(
    ("elements", "op", "verdict"),
    [
        ([], "==", PacketVerdict.UNTOUCHED),
        ([], "!=", PacketVerdict.DROP),
        ([{"concat": ["10.1.1.200", 4000]}], "==", PacketVerdict.UNTOUCHED),
        ([{"concat": [POD.source, 4000]}], "==", PacketVerdict.UNKNOWN),
    ],
)
def test_a_source_port_that_is_not_known_matters_only_where_the_rest_of_a_key_matches(
    elements: list[Any], op: str, verdict: PacketVerdict
) -> None:
    ended = {"name": "ended", "type": ["ipv4_addr", "inet_service"], "elem": elements}
    key = {"concat": [_SADDR, {"payload": {"protocol": "th", "field": "sport"}}]}
    packet = msgspec.structs.replace(POD, source_port=0)
    (outcome,) = _walk(packet, {"hook": "forward"}, [_match(key, "@ended", op), _DROP], sets=[ended])
    assert outcome.verdict is verdict
