"""What is made of what was found: each thing that can be wrong, with its level and its remedy."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.iptables.canonical import tokenize
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.backends.iptables.text import render_text
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight import evaluate
from kproxy.inspect.preflight.cluster import access_findings, access_reviews
from kproxy.inspect.preflight.foreign_proxies import NodeInventory, foreign_proxy_findings
from kproxy.inspect.sysctls import Sysctl
from kproxy.kernel.ipset.types import SetKind
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.findings import Finding, Level, ProbeResult, Report, failed, ok, warning
from kproxy.modes.ipvs import preflight as ipvs_preflight
from kproxy.modes.ipvs.layout import IpvsLayout
from kproxy.modes.ipvs.preflight import SET_MODULES
from kproxy.modes.registry import MODES
from kproxy.modes.rule_features import Feature
from kproxy.plan.planner import Planner
from kproxy.state.tables import Tables
from tests.builders import NODE, as_service, as_slice, endpoint_slice, port, service

V4, V6 = Family.IPV4, Family.IPV6
ADMIN, RAW = 1 << 12, 1 << 13


def rule_features(mode: str, family: Family, layout: str = "auto") -> tuple[Feature, ...]:
    (spec,) = (spec for spec in MODES if spec.name == mode)
    return spec.features(family, layout)


def lines(findings: Any) -> list[str]:
    return [f"{f.level} {f.subject}: {f.found}" + (f" => {f.remedy}" if f.remedy else "") for f in findings]


def like(found: list[str], expected: list[str]) -> bool:
    """Whether each line begins as expected, `...` standing for any text."""
    patterns = [".*".join(map(re.escape, line.split("..."))) for line in expected]
    return len(found) == len(expected) and all(
        re.match(pattern, line) for pattern, line in zip(patterns, found, strict=True)
    )


@pytest.mark.parametrize(
    ("effective", "variant", "expected"),
    [
        (ADMIN, Variant.NFT, ["ok permissions: the capabilities that are needed are there"]),
        (ADMIN | RAW, Variant.LEGACY, ["ok permissions: the capabilities that are needed are there"]),
        (
            ADMIN, Variant.LEGACY,
            ["error permissions: ... does not have CAP_NET_RAW => ... add NET_RAW to"],
        ),
        (
            0, None,
            ["error permissions: ... does not have CAP_NET_ADMIN => ... add NET_ADMIN to"],
        ),
    ],
)  # fmt: skip
def test_capabilities(effective: int, variant: Variant | None, expected: list[str]) -> None:
    assert like(lines(evaluate.capability_findings(effective, variant)), expected)


@pytest.mark.parametrize(
    ("found", "missing", "expected"),
    [
        ({V4: "nft", V6: "nft"}, {}, ["ok iptables IPv4: nft", "ok iptables IPv6: nft"]),
        (
            {V4: "nft"}, {V6: "IPv6 is disabled (net/ipv6/conf/all/disable_ipv6 is 1)"},
            ["ok iptables IPv4: nft", "warning iptables IPv6: ... not served => none is needed ... enable"],
        ),
        (
            {}, {V4: "neither iptables-nft-restore nor iptables-restore is installed"},
            ["error iptables IPv4: neither ... is installed => install the package iptables"],
        ),
        (
            {}, {V6: "the kernel refuses IPv6's nat table to ip6tables-nft-restore: TABLE_ADD failed"},
            ["error iptables IPv6: the kernel refuses ... => load ... try the other --iptables-variant"],
        ),
        (
            {V6: "legacy"}, {V4: "Fatal: can't open lock file /run/xtables.lock: Permission denied"},
            ["ok iptables IPv6: legacy", "warning iptables IPv4: ... not served => run as root ... lock"],
        ),
    ],
)  # fmt: skip
def test_programs(found: Any, missing: Any, expected: list[str]) -> None:
    assert like(lines(evaluate.program_findings(found, missing)), expected)


@pytest.mark.parametrize(
    ("name", "refusal", "expected"),
    [
        (
            "match conntrack", "iptables-nft-restore v1.8.9: \nline 3: RULE_APPEND failed (No such file)",
            "error match conntrack IPv4: ... v1.8.9: line 3: ... => load ... (modprobe xt_conntrack)",
        ),
        (
            "match recent", "Warning: Extension recent revision 0 not supported, missing kernel module?",
            "warning match recent IPv4: ...; services with session affinity ... => ... xt_recent",
        ),
        (
            "match statistic", "Couldn't load match `statistic':No such file or directory",
            "error match statistic IPv4: ... => install an iptables with the extension statistic",
        ),
        (
            "target DNAT", "Chain 'DNAT' does not exist",
            "error target DNAT IPv4: ... => install an iptables with the extension DNAT",
        ),
    ],
)  # fmt: skip
def test_a_refused_feature(name: str, refusal: str, expected: str) -> None:
    features = rule_features("iptables", V4)
    trials = [(each, ProbeResult(each.name, refusal if each.name == name else "")) for each in features]
    assert any(each.name == name for each in features)
    good, bad = lines(evaluate.feature_findings(V4, trials))
    assert like([bad], [expected])
    assert good.startswith("ok rules IPv4: 13 matches and targets work: ")
    assert f" {name.split()[1]}" not in good.replace(",", "").split(": ", 2)[2].split(" ")


@pytest.mark.parametrize(
    ("sysctl", "expected"),
    [
        (Sysctl("net/a", "1", "1", writable=False, effect="x works"), "ok sysctls: as needed: net/a"),
        (
            Sysctl("net/a", "1", "0", writable=True, effect="x works"),
            "ok sysctl net/a: is 0, not 1; kproxy sets it",
        ),
        (
            Sysctl("net/a", "1", "0", writable=False, effect="x works"),
            "warning sysctl net/a: is 0, not 1 and cannot be set; ... so that x works => sysctl -w net.a=1",
        ),
        (
            Sysctl("net/a", "1", "0", writable=True, effect="x works", sets=False),
            "warning sysctl net/a: is 0, not 1; needed so that x works => sysctl -w net.a=1",
        ),
        (
            Sysctl("net/a", "1", "0", writable=False, effect="x works", essential=True),
            "error sysctl net/a: is 0, not 1 and cannot be set; ... so that x works => sysctl -w net.a=1",
        ),
        (
            Sysctl("net/a", "1", None, writable=False, effect="x works", essential=True),
            "error sysctl net/a: does not exist and cannot be set; ... => sysctl -w net.a=1",
        ),
        (
            Sysctl("net/a", "8", "9", writable=False, effect="x works", more_will_do=True),
            "ok sysctls: as needed: net/a",
        ),
        (
            Sysctl("net/a", "10", "9", writable=False, effect="x works", more_will_do=True),
            "warning sysctl net/a: is 9, not 10 and cannot be set; ... => sysctl -w net.a=10",
        ),
        (
            Sysctl("net/a", "8", "9", writable=True, effect="x works", more_will_do=True),
            "ok sysctl net/a: is 9, not 8; kproxy sets it",
        ),
        (
            Sysctl("net/a", "1", None, writable=False, effect="x works", sets=False, module="m"),
            "warning sysctl net/a: does not exist; needed so that x works => modprobe m; sysctl -w net.a=1",
        ),
    ],
)
def test_sysctls(sysctl: Sysctl, expected: str) -> None:
    assert like(lines(evaluate.sysctl_findings([sysctl])), [expected])


SHOW = "iptables-{}-save shows the rules that {} does not: let what wrote them use {}"
CLEAN = "`kproxy cleanup --peer kube-proxy` removes service rules of both; then start kproxy"


@pytest.mark.parametrize(
    ("chosen", "legacy", "nft", "expected"),
    [
        (Variant.NFT, {}, {V4: {"nat": {"OUTPUT": 2}}}, "ok iptables variants: one is in use: nft"),
        (
            Variant.NFT, {V6: {"nat": {"OUTPUT": 1}}}, {V4: {"nat": {"OUTPUT": 2}}},
            "ok iptables variants: one is in use: nft",
        ),
        (
            Variant.NFT, {V4: {"nat": {"A": 1, "OUTPUT": 1}, "filter": {"B": 3}}}, {V4: {"nat": {"B": 2}}},
            "warning iptables variants: ... (IPv4: legacy 3 in filter, 2 in nat, nft 2 in nat)"
            " => " + SHOW.format("legacy", "nft", "nft"),
        ),
        (
            Variant.LEGACY, {V4: {"nat": {"A": 1}}}, {V4: {"nat": {"B": 2}}},
            "warning iptables variants: both are in use at once (IPv4: legacy 1 in nat, nft 2 in nat)"
            " => " + SHOW.format("nft", "legacy", "legacy"),
        ),
        (
            Variant.NFT, {V4: {"nat": {"KUBE-SERVICES": 1}}}, {V4: {"nat": {"B": 2}}},
            "warning iptables variants: both are in use at once (IPv4: legacy 1 in nat, nft 2 in nat)"
            " => " + CLEAN,
        ),
    ],
)  # fmt: skip
def test_variants(chosen: Variant, legacy: Any, nft: Any, expected: str) -> None:
    assert like(lines(evaluate.variant_findings(chosen, legacy, nft, {})), [expected])


def test_legacy_tables_that_cannot_be_read_are_a_warning() -> None:
    (found,) = evaluate.variant_findings(Variant.NFT, {}, {}, {V4: "nothing reads them"})
    assert (found.level, found.subject) == (Level.WARNING, "iptables variants IPv4")
    assert "nothing reads them" in found.found


def test_ipvs() -> None:
    assert lines(ipvs_preflight.ipvs_findings("rr", "this kernel has no IPVS", {})) == [
        "error IPVS: this kernel has no IPVS => load the kernel module ip_vs, or use --proxy-mode iptables"
    ]
    assert lines(ipvs_preflight.ipvs_findings("rr", "", {"rr": True, "wlc": True, "fo": False})) == [
        "ok IPVS: schedulers: rr, wlc; not fo"
    ]
    have, lack = lines(ipvs_preflight.ipvs_findings("fo", "", {"rr": True, "fo": False}))
    assert have == "ok IPVS: schedulers: rr; not fo"
    assert like([lack], ["error scheduler fo: ... => load the kernel module ip_vs_fo, or choose one of rr"])


def test_sets_device_and_conntrack() -> None:
    assert SET_MODULES.keys() == set(SetKind)
    refusal = "cannot use sets of type hash:ip,port"
    assert like(
        lines(ipvs_preflight.set_findings({(SetKind.IP, V4): "", (SetKind.IP_PORT, V4): refusal})),
        [
            "ok sets: types work: hash:ip",
            f"error set type hash:ip,port IPv4: {refusal} => load ... (modprobe ip_set_hash_ipport), or",
        ],
    )
    assert [f.level for f in ipvs_preflight.device_findings(ProbeResult("dummy device", "no"))] == [
        Level.ERROR
    ]
    assert [f.level for f in ipvs_preflight.device_findings(ProbeResult("dummy device"))] == [Level.OK]
    assert [f.level for f in evaluate.conntrack_findings("no such subsystem")] == [Level.WARNING]
    assert [f.level for f in evaluate.conntrack_findings("")] == [Level.OK]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (NodeInventory(chains=frozenset({"KUBE-KUBELET-CANARY", "cali-FORWARD"})), []),
        (
            NodeInventory(processes={7: "kubelet", 12: "kube-proxy"}),
            ["warning kube-proxy: it runs here, as process 12"],
        ),
        (NodeInventory(tables=frozenset({(V4, "filter"), (V4, "cilium")})), []),
        (
            NodeInventory(tables=frozenset({(V4, "kube-proxy"), (V6, "kube-proxy")})),
            ["warning kube-proxy: ... (nftables tables IPv4 kube-proxy, IPv6 kube-proxy)"],
        ),
        (NodeInventory(chains=frozenset({"KUBE-SERVICES"})), ["ok kube-proxy: its chains stand here"]),
        (
            NodeInventory(
                chains=frozenset({"KUBE-LOAD-BALANCER"}), sets=frozenset({"KUBE-LOOP-BACK", "mine"})
            ),
            ["ok kube-proxy: its IPVS mode left 1 sets and 1 chains"],
        ),
        (
            NodeInventory(links=frozenset({"lo", "cilium_host"})),
            ["warning Cilium: interface cilium_host: two"],
        ),
        (
            NodeInventory(
                chains=frozenset({"CILIUM_FORWARD", "CILIUM_INPUT", "CILIUM_OUTPUT", "OLD_CILIUM_INPUT"})
            ),
            ["warning Cilium: chain CILIUM_FORWARD, chain CILIUM_INPUT, chain CILIUM_OUTPUT and 1 more: two"],
        ),
        (
            NodeInventory(links=frozenset({"kube-dummy-if"}), sets=frozenset({"kube-router-svip-prt"})),
            ["warning kube-router's service proxy: interface kube-dummy-if, set kube-router-svip-prt: two"],
        ),
        (
            NodeInventory(links=frozenset({"bpfin.cali"})),
            ["warning Calico's eBPF data plane: interface bpfin.cali"],
        ),
        (
            NodeInventory(chains=frozenset({"OVN-KUBE-NODEPORT"})),
            ["warning OVN-Kubernetes: chain OVN-KUBE-NODEPORT"],
        ),
    ],
)  # fmt: skip
def test_other_proxies(seen: NodeInventory, expected: list[str]) -> None:
    found = lines(foreign_proxy_findings(seen))
    assert like(found, expected)
    assert all(" => " in line for line in found if line.startswith("warning"))


@pytest.mark.parametrize(
    ("mode", "cidrs", "more"),
    [
        ("iptables", (), []),
        ("nftables", ("10.96.0.0/16",), []),
        ("nftables", (), [f"{verb} servicecidrs.networking.k8s.io" for verb in ("list", "watch")]),
    ],
)
def test_what_is_allowed(mode: str, cidrs: tuple[str, ...], more: list[str]) -> None:
    asked = access_reviews(ProxyConfig(node_name="node-a", proxy_mode=mode, service_cidrs=cidrs))
    assert [str(each) for each in asked] == [
        "list services", "watch services",
        "list endpointslices.discovery.k8s.io", "watch endpointslices.discovery.k8s.io",
        "list nodes node-a", "watch nodes node-a", *more,
        "create events.events.k8s.io", "patch events.events.k8s.io",
    ]  # fmt: skip
    assert [f.level for f in access_findings(dict.fromkeys(asked, True))] == [Level.OK]
    for denied in asked:
        (found,) = access_findings({each: each != denied for each in asked})
        assert found.found.startswith(f"may not {denied}")
        assert found.level is (
            Level.WARNING if denied.resource in {"events", "servicecidrs"} else Level.ERROR
        )


def test_what_policies_need_is_asked_for_where_they_are_enforced_and_is_an_error() -> None:
    config = ProxyConfig(node_name="node-a")
    enforcing = access_reviews(ProxyConfig(node_name="node-a", network_policy=True))
    asked = [each for each in enforcing if each not in access_reviews(config)]
    assert [str(each) for each in asked] == [
        "list pods", "watch pods", "list namespaces", "watch namespaces",
        "list networkpolicies.networking.k8s.io", "watch networkpolicies.networking.k8s.io",
    ]  # fmt: skip
    for denied in asked:
        (found,) = access_findings({each: each != denied for each in enforcing})
        assert (found.level, found.found.partition(": ")[0]) == (Level.ERROR, f"may not {denied}")
        assert "manifests/components/network-policy" in str(found)
        assert "system:node-proxier" not in str(found)


def test_only_errors_fail_a_report() -> None:
    good = (ok("a", "fine"), warning("b", "so so", "do this"))
    assert Report(good).passed
    report = Report((*good, failed("c", "missing", "do that")))
    assert not report.passed
    assert list(report.lines()) == [
        "ok        a: fine",
        "warning   b: so so", "          remedy: do this",
        "error     c: missing", "          remedy: do that",
    ]  # fmt: skip
    assert json.loads(report.json()) == {
        "passed": False,
        "findings": [
            {"level": "ok", "subject": "a", "found": "fine", "remedy": ""},
            {"level": "warning", "subject": "b", "found": "so so", "remedy": "do this"},
            {"level": "error", "subject": "c", "found": "missing", "remedy": "do that"},
        ],
    }
    assert Finding(Level.OK, "a", "fine") == good[0]


# The list of features and what the layouts write -----------------------------------------------------------


def _everything(family: Family) -> Tables:
    """Services that make use of all that there is."""
    v4 = family is V4
    tables = Tables()
    kinds: list[tuple[dict[str, Any], str]] = [
            ({}, "TCP"), ({}, "UDP"), ({}, "SCTP"), ({"sessionAffinity": "ClientIP"}, "TCP"),
            ({"externalIPs": ["203.0.113.9" if v4 else "2001:db8::9"]}, "TCP"),
            ({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}, "TCP"),
        ]  # fmt: skip
    for n, (spec, protocol) in enumerate(kinds):
        exposed: dict[str, Any] = {
            "type": "LoadBalancer",
            "ingress": [f"198.51.100.{n}" if v4 else f"2001:db8:1::{n}"],
            "loadBalancerSourceRanges": ["192.0.2.0/24" if v4 else "2001:db8:2::/64"],
            "healthCheckNodePort": 32000 + n if "externalTrafficPolicy" in spec else 0,
        }
        for empty in (False, True):
            number = n + 1 + 100 * empty
            name = f"svc{number}"
            ports = [port(protocol=protocol, nodePort=30000 + number)]
            ip = f"10.96.0.{number}" if v4 else f"fd00:10:96::{number}"
            tables.upsert(as_service(service(name, ip, ports=ports, **exposed, **spec)))
            pods = [] if empty else ["10.1.1.1", "10.1.2.2"] if v4 else ["fd00:1::1", "fd00:1::2"]
            pieces = endpoint_slice(
                *pods, service=name, ports=[port(8080, protocol=protocol)], address_type=str(family)
            )
            tables.upsert(as_slice(pieces))
    assert len(tables.dirty()) == 12
    return tables


def _used(text: str) -> set[str]:
    found = set()
    for line in text.splitlines():
        if line.startswith(("-A ", "-I ")):
            words = [word for word, _ in tokenize(line)]
            found |= {f"match {words[n + 1]}" for n, word in enumerate(words) if word == "-m"}
            targets = (words[n + 1] for n, word in enumerate(words) if word == "-j")
            found |= {
                f"target {target}"
                for target in targets
                if not target.startswith("KUBE-") and target not in ("ACCEPT", "DROP", "RETURN")
            }
    return found


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(
    ("mode", "layout"), [("iptables", StandardLayout), ("iptables", ScalableLayout), ("ipvs", IpvsLayout)]
)
def test_every_match_and_target_that_rules_use_is_tried(
    family: Family, mode: str, layout: type[StandardLayout | ScalableLayout | IpvsLayout]
) -> None:
    plans = Planner(family).update(_everything(family).dirty(), NODE).values()
    made: Layout = layout(IptablesConfig(family))
    used = _used(render_text(plans, made))
    tried = {feature.name for feature in rule_features(mode, family)}
    assert used <= tried
    assert len(used) >= 10


def test_a_layout_that_is_not_used_asks_for_nothing() -> None:
    assert "match bpf" in {f.name for f in rule_features("iptables", V4, "auto")}
    assert "match bpf" not in {f.name for f in rule_features("iptables", V4, "standard")}
    assert rule_features("nftables", V4) == ()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            {"match recent": 1, "target MARK": 2},
            "ok extensions IPv4: libxtables has all 2, in these revisions: recent 1, MARK 2",
        ),
        (
            {"match recent": None, "target MARK": 2},
            "warning extension match recent IPv4: libxtables cannot load ... => install ... recent ...",
        ),
        (
            {"match recent": 1, "target MARK": 1},
            "warning extension target MARK IPv4: revision 1 is ...; 2 is needed => use a newer ...",
        ),
    ],
)
def test_extensions_of_libxtables(found: dict[str, int | None], expected: str) -> None:
    assert like(lines(evaluate.extension_findings(V4, found)), [expected])


@pytest.mark.parametrize(
    ("shutting", "shadowing", "expected"),
    [
        ([], [], ["ok firewall: ..."]),
        (
            ["chain in of nftables table inet host"],
            [],
            ["warning firewall, chain in ... table inet host: ... => R"],
        ),
        (
            [],
            ["rule 1 of chain INPUT (IPv4)"],
            ["warning firewall, rule 1 of chain INPUT (IPv4): ... => move"],
        ),
    ],
)
def test_what_shuts_services_is_named(shutting: list[str], shadowing: list[str], expected: list[str]) -> None:
    assert like(lines(ipvs_preflight.firewall_findings(shutting, shadowing, "R")), expected)
