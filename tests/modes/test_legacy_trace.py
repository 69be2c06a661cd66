"""Reports of legacy tables, which name no packet: whose they are, and what is no report."""

import itertools
import struct
from collections.abc import Iterator
from typing import Any, cast

import pytest

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.netlink.messages import attribute
from kproxy.kernel.nft.trace_events import Headers
from kproxy.kernel.xtables.numbered_rules import NumberedRules, parsed
from kproxy.kernel.xtables.trace_log import LoggedStep, TraceLog, decode
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.legacy_trace import LegacyTrace
from kproxy.plan.outcomes import PacketVerdict

ONE, OTHER = Headers("10.1.0.1", 5000, "10.96.0.1", 53), Headers("10.1.0.2", 5000, "10.96.0.1", 53)
MOVED = Headers("10.1.0.1", 5000, "10.1.0.9", 5353)


class FakeLog:
    """Reports that have come."""

    lost = False

    def __init__(self, steps: list[LoggedStep]) -> None:
        self.coming = steps

    def steps(self) -> Iterator[LoggedStep]:
        while self.coming:
            yield self.coming.pop(0)


def step(place: str, headers: Headers = ONE, kind: str = "policy", number: int = 1) -> LoggedStep:
    hook, table = place.split()
    return LoggedStep(hook, table, hook.upper(), kind, number, headers)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> LegacyTrace:
    monkeypatch.setattr(generations, "legacy_tables", lambda _: ())
    return LegacyTrace(Family.IPV4)


def taken(trace: LegacyTrace, steps: list[LoggedStep], *packets: Headers) -> list[list[str]]:
    trace._log = cast("TraceLog", FakeLog(list(steps)))
    return [[f"{each.hook} {each.table}" for each in trace.take(packet)] for packet in packets]


ARRIVES = ["prerouting raw", "prerouting mangle", "prerouting nat", "forward filter", "postrouting nat"]
KNOWN = ["prerouting raw", "forward mangle", "forward filter", "postrouting mangle"]
LOCAL = [
    "output raw",
    "output nat",
    "output filter",
    "postrouting nat",
    "prerouting raw",
    "input filter",
    "input nat",
]
OWN = ["output nat", "output filter", "postrouting mangle", "postrouting nat"]


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for ways in ((ARRIVES, KNOWN), (LOCAL, OWN)) for pair in itertools.product(ways, ways)],
)
def test_packets_of_one_flow_are_kept_apart(trace: LegacyTrace, first: list[str], second: list[str]) -> None:
    """Reports have the source, which two datagrams of a flow share; others may come between."""
    steps = [*map(step, first), *map(step, second)]
    steps[1:1] = [step("prerouting raw", OTHER), step("prerouting nat", OTHER)]
    found = taken(trace, steps, ONE, OTHER, ONE, ONE)
    assert found == [first, ["prerouting raw", "prerouting nat"], second, []]


def test_a_translated_destination_is_still_the_packet(trace: LegacyTrace) -> None:
    steps = [step("prerouting nat"), step("forward filter", MOVED)]
    assert taken(trace, steps, ONE) == [["prerouting nat", "forward filter"]]


def test_rules_that_cannot_be_read_are_shown_by_their_numbers(trace: LegacyTrace) -> None:
    trace._rules = held("")
    rule = step("forward filter", kind="rule", number=3)
    assert trace.text(rule) == "filter FORWARD: rule 3"
    assert trace.verdict(rule) is None
    assert trace.text(step("forward filter", kind="return")) == ""
    assert trace.text(step("forward filter")) == "filter FORWARD: policy"
    assert trace.verdict(step("forward filter")) is None


@pytest.mark.parametrize(("policy", "verdict"), [("ACCEPT", None), ("DROP", PacketVerdict.DROP)])
def test_a_policy_is_the_end_if_it_drops(
    trace: LegacyTrace, policy: str, verdict: PacketVerdict | None
) -> None:
    trace._rules = held(f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [0:0]\nCOMMIT\n")
    last = step("forward filter")
    assert (trace.text(last), trace.verdict(last)) == (f"filter FORWARD: policy {policy.lower()}", verdict)


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        ("-d 10.0.0.0/8 -j DROP", PacketVerdict.DROP),
        ("-p tcp -j REJECT --reject-with tcp-reset", PacketVerdict.REJECT),
        ("-j KUBE-FORWARD", None),
        ("-p tcp", None),
    ],
)
def test_the_last_rule_is_the_end_if_its_target_is(
    trace: LegacyTrace, target: str, verdict: PacketVerdict | None
) -> None:
    rules = f"-A FORWARD -j LOG\n-A OTHER -j DROP\n-A FORWARD {target}\n"
    trace._rules = held(f"*nat\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n:OTHER - [0:0]\n{rules}COMMIT\n")
    rule = step("forward filter", kind="rule", number=2)
    assert (trace.text(rule), trace.verdict(rule)) == (f"filter FORWARD: {target}", verdict)
    assert trace.text(step("forward filter", kind="rule", number=0)) == "filter FORWARD: rule 0"


def held(dump: str) -> NumberedRules:
    """Rules that were read before."""
    rules = NumberedRules(Family.IPV4)
    rules._tables = parsed(dump.encode())
    rules._generation = generations.ruleset_generation(Family.IPV4, Variant.LEGACY)
    return rules


def message(prefix: str, payload: bytes, **changed: Any) -> bytes:
    header = struct.pack("!HBB", 0x0800, changed.get("hook", 0), 0)
    parts = attribute(1, header) + attribute(10, prefix.encode() + b"\0") + attribute(9, payload)
    return struct.pack("!BBH", 2, 0, 0) + parts


V4 = bytes([0x46]) + bytes(11) + bytes([10, 1, 0, 1, 10, 96, 0, 1]) + bytes(4)
"""With four bytes of options."""
V6 = bytes([0x60]) + bytes(7) + bytes(15) + b"\1" + bytes(15) + b"\2"
PORTS = struct.pack("!HH", 5000, 53)


def test_a_report_is_decoded_with_names_that_have_colons() -> None:
    found = decode(message("TRACE: nat:KUBE-SVC:a:b:rule:12 ", V4 + PORTS))
    assert found == LoggedStep("prerouting", "nat", "KUBE-SVC:a:b", "rule", 12, ONE)
    found = decode(message("TRACE: filter:INPUT:policy:1 ", V6 + PORTS, hook=1))
    assert found == LoggedStep("input", "filter", "INPUT", "policy", 1, Headers("::1", 5000, "::2", 53))


@pytest.mark.parametrize(
    "content",
    [
        message("nf_ct_proto_6: invalid ", V4 + PORTS),
        message("TRACE: nat:PREROUTING:rule:1 ", V4[:12]),
        message("TRACE: nat:PREROUTING:rule:1 ", V4 + PORTS[:2]),
        message("TRACE: nat:PREROUTING:rule:1 ", V4 + PORTS, hook=9),
        message("TRACE: nat:PREROUTING:rule:1 ", b""),
        struct.pack("!BBH", 2, 0, 0),
    ],
)
def test_what_is_no_whole_report_is_passed_over(content: bytes) -> None:
    assert decode(content) is None
