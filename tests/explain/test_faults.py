"""Faults that are planted in the kernel's rules are named by rule and effect, and packets agree."""

import re
import shlex
from collections.abc import Iterator

import pytest

from kproxy.addresses import Family
from kproxy.kernel.xtables.types import Variant
from kproxy_lab.lab import Lab, Namespace
from tests.explain.faults import FROM_POD, IPTABLES, IPVS, MIXED, NFTABLES, VIP, Fault, objects
from tests.explain.judge import Judge, Verdicts, judge_round, settings
from tests.explain.site import Site
from tests.explain.world import World
from tests.peer.objects import SPEC

CONFIGS = {
    "nftables": settings(proxy_mode="nftables"),
    "nft": settings(proxy_mode="iptables", iptables_variant=Variant.NFT),
    "legacy": settings(proxy_mode="iptables", iptables_variant=Variant.LEGACY),
    "ipvs": settings(proxy_mode="ipvs", iptables_variant=Variant.LEGACY),
}
CASES = [("nftables", fault) for fault in NFTABLES] + [
    (("nft", "legacy")[number % 2], fault) for number, fault in enumerate(IPTABLES)
]
CASES += [("nft", fault) for fault in MIXED] + [("ipvs", fault) for fault in IPVS]
_REPEATED = 8


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(SPEC) as made:
        yield made


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    made = Site(lab, Family.IPV4)
    yield made
    made.close()


@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(kind, fault, id=f"{kind}: {fault.name}", marks=[pytest.mark.ipvs] * (kind == "ipvs"))
        for kind, fault in CASES
    ],
)
def test_a_planted_fault_is_named_by_rule_and_effect(lab: Lab, site: Site, kind: str, fault: Fault) -> None:
    judge = lab.node.call(Judge, lab, CONFIGS[kind])
    lab.node.call(judge.program, World(objects()))
    try:
        _plant(lab.node, kind, fault)
        rules = lab.node.call(judge.read, Family.IPV4)
        (ways,) = lab.node.call(judge.predict, rules, [fault.probe])
        found = [
            way
            for way in ways
            if (way.verdict, way.endpoint) == (fault.verdict, fault.endpoint)
            and abs(way.probability - fault.share) < 0.01
            and fault.masquerade in {None, way.masquerade}
        ]
        assert found, ways
        assert any(fault.rule in text for text in (*found[0].steps, found[0].reason)), found[0]
        if fault.verdict != "unknown":
            verdicts = Verdicts()
            judge_round(judge, lab, site, Family.IPV4, [fault.probe] * _REPEATED, verdicts)
            assert not verdicts.wrong, verdicts.wrong[0]
    finally:
        _clear(lab.node, kind)


@pytest.mark.root
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.ipvs] * (kind == "ipvs")) for kind in CONFIGS]
)
def test_shares_are_those_of_packets(lab: Lab, site: Site, kind: str) -> None:
    judge = lab.node.call(Judge, lab, CONFIGS[kind])
    lab.node.call(judge.program, World(objects()))
    probe, count = FROM_POD, 240
    rules = lab.node.call(judge.read, Family.IPV4)
    (ways,) = lab.node.call(judge.predict, rules, [probe])
    seen = site.send([probe] * count, [True] * count)
    squares = 0.0
    for way in ways:
        assert way.endpoint is not None
        arrived = sum(site.owner(way.endpoint.partition(":")[0]) == each.arrived for each in seen)
        expected = count * way.probability
        squares += (arrived - expected) ** 2 / expected
    assert len(ways) == 3
    assert squares < 27.6, squares  # chi-squared of 2 degrees of freedom: one in a million
    _clear(lab.node, kind)


def _clear(node: Namespace, kind: str) -> None:
    """Remove all rules; kproxy writes its own again for the next fault."""
    if kind in {"nftables", "nft"}:
        node.run(["nft", "flush", "ruleset"])
        return
    for table in ("nat", "filter", "mangle", "raw"):
        node.run(["iptables-legacy", "-t", table, "-F"])
        node.run(["iptables-legacy", "-t", table, "-X"])
    node.run(["iptables-legacy", "-P", "FORWARD", "ACCEPT"])
    if kind == "ipvs":
        node.run(["ipvsadm", "-C"])


def _plant(node: Namespace, kind: str, fault: Fault) -> None:
    for command in fault.commands:
        is_iptables = kind in {"nft", "legacy"}
        words = shlex.split(command.replace("{iptables}", f"iptables-{kind}") if is_iptables else command)
        node.run(_nft(node, words) if kind == "nftables" else [_resolved(node, kind, word) for word in words])


def _nft(node: Namespace, words: list[str]) -> list[str]:
    """The command, with `%PREFIX` replaced by the only object whose name begins so."""
    listing = node.run(["nft", "list", "table", "ip", "kproxy"]).stdout
    found = []
    for word in words:
        name = word
        if word.startswith("%"):
            name = min(set(re.findall(rf"(?:map|set|chain) ({re.escape(word[1:])}[\w-]*)", listing)))
        found.append(name)
    return found


def _resolved(node: Namespace, kind: str, word: str) -> str:
    """A word; for `%SVC`, `%FW` and `%SEP:ENDPOINT` the name of a chain, for `%RULE:IP` a rule's number."""
    if not word.startswith("%"):
        return word
    dump = node.run([f"iptables-{kind}-save", "-t", "nat"]).stdout
    if word == "%SVC":
        found = re.search(rf"-d {VIP}/32 .* -j (KUBE-SVC-\w+)", dump)
    elif word == "%FW":
        found = re.search(r"-j (KUBE-FW-\w+)", dump)
    elif word.startswith("%SEP:"):
        chain = re.search(rf"-d {VIP}/32 .* -j (KUBE-SVC-\w+)", dump)
        assert chain is not None
        endpoint = re.escape(word.removeprefix("%SEP:"))
        found = re.search(rf"-A {chain[1]} .*-> {endpoint}\".* -j (KUBE-SEP-\w+)", dump)
    else:
        ip = re.escape(word.removeprefix("%RULE:"))
        rules = [line for line in dump.splitlines() if line.startswith("-A KUBE-SERVICES ")]
        return str(next(n for n, line in enumerate(rules, 1) if re.search(rf"-d {ip}/32 ", line)))
    assert found is not None, word
    return found[1]
