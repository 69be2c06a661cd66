"""NetworkPolicies in explanations: after translation, at both ends, and named where they refuse or allow."""

from typing import Any

import msgspec
import pytest

from kproxy.inspect.explain.difference import with_differences
from kproxy.inspect.explain.report import DIFFERS, REFUSED, Report, actual_of
from kproxy.inspect.explain.screen import screen
from kproxy.plan.outcomes import Outcome, PacketVerdict, Where
from tests.builders import Json, endpoint_slice, port, service
from tests.inspect.explain.clusters import NODE_IP, OUTSIDER, cluster, explain, pod
from tests.state import policy_objects as k8s

DROP, REJECT, FORWARD, PASS = (
    PacketVerdict.DROP,
    PacketVerdict.REJECT,
    PacketVerdict.FORWARD,
    PacketVerdict.UNTOUCHED,
)
WEB, OTHER_WEB, CLIENT, QUIET, REMOTE = (
    "10.244.1.10",
    "10.244.1.11",
    "10.244.1.20",
    "10.244.1.30",
    "10.244.2.9",
)
VIP, EMPTY = "10.96.0.80", "10.96.0.81"
OBJECTS: list[Json] = [
    service("web", VIP, namespace="shop", ports=[port(80, "http")]),
    endpoint_slice(
        pod(WEB, "web"),
        pod(OTHER_WEB, "other-web"),
        service="web",
        namespace="shop",
        ports=[port(8080, "http")],
    ),
    service("none", EMPTY, namespace="shop", ports=[port(80, "http")]),
]
PODS = [
    k8s.namespace("shop"),
    k8s.pod("web", WEB, node="node1", labels={"app": "web"}),
    k8s.pod("other-web", OTHER_WEB, node="node1", labels={"app": "other"}),
    k8s.pod("client", CLIENT, node="node1", labels={"app": "client"}),
    k8s.pod("quiet", QUIET, node="node1", labels={"app": "quiet"}),
    k8s.pod("remote", REMOTE, node="node2", labels={"app": "remote"}),
]
ALLOW_CLIENT = k8s.policy(
    "allow-client",
    {
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]}
        ],
    },
)
SILENCE = k8s.policy(
    "silence", {"podSelector": {"matchLabels": {"app": "quiet"}}, "policyTypes": ["Egress"], "egress": []}
)
BROKEN = k8s.policy("broken", {"podSelector": {"matchLabels": {"app": "other"}}, "unheard": 1})
NEAREST = "shop/allow-client ingress[0] allows this source, but only TCP 8080"
ISOLATED = "ingress of shop/web is isolated by shop/allow-client"
NO_PEER = "shop/allow-client ingress[0] allows TCP 8080, but only from pods app=client in shop"


def ask(source: str, destination: str, protocol: str = "tcp", **settings: Any) -> Report:
    policies = [*PODS, ALLOW_CLIENT, SILENCE, *settings.pop("more", ())]
    known = cluster(OBJECTS, policies=policies, **{"network_policy": True} | settings)
    return explain(known, source, destination, protocol)


def outcomes(report: Report) -> list[tuple[PacketVerdict, str | None, float]]:
    return [(each.verdict, each.endpoint, each.probability) for each in report.desired.outcomes]


def test_without_enforcement_policies_say_nothing() -> None:
    report = ask(OUTSIDER, f"{WEB}:9090", network_policy=False)
    assert (outcomes(report), report.policies) == ([(PASS, None, 1.0)], ())


def test_what_is_allowed_names_the_rule() -> None:
    report = ask(CLIENT, f"{WEB}:8080")
    assert outcomes(report) == [(PASS, None, 1.0)]
    assert report.desired.policy[-1] == (
        "shop/allow-client ingress[0] allows this source (ingress of shop/web)"
    )
    egress, ingress = report.policies
    assert (egress.direction, egress.pod, egress.policies, egress.allowed) == (
        "egress",
        "shop/client",
        (),
        True,
    )
    assert (ingress.direction, ingress.pod, ingress.ip, ingress.port) == ("ingress", "shop/web", WEB, 8080)
    assert ingress.allowed_by == "shop/allow-client ingress[0]"
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        (CLIENT, f"{WEB}:9090", f"{ISOLATED}: {NEAREST}"),
        (OUTSIDER, f"{WEB}:8080", f"{ISOLATED}: {NO_PEER}"),
        (
            QUIET,
            f"{REMOTE}:80",
            "egress of shop/quiet is isolated by shop/silence: shop/silence allows nothing",
        ),
        (
            QUIET,
            f"{NODE_IP}:22",
            "egress of shop/quiet is isolated by shop/silence: shop/silence allows nothing",
        ),
        (
            QUIET,
            f"{WEB}:8080",
            (
                "egress of shop/quiet is isolated by shop/silence: shop/silence allows nothing; "
                f"{ISOLATED}: {NO_PEER}"
            ),
        ),
    ],
    ids=["port", "source", "egress", "egress to the node", "both ends"],
)
@pytest.mark.parametrize("reject", [False, True])
def test_what_is_refused_says_by_what(source: str, destination: str, reason: str, reject: bool) -> None:
    report = ask(source, destination, network_policy_reject=reject)
    (way,) = report.desired.outcomes
    assert (way.verdict, way.reason) == (REJECT if reject else DROP, reason)
    assert report.exit_code == REFUSED
    found = msgspec.json.decode(report.json())
    refused = [each for each in found["policies"] if not each["allowed"]]
    assert all(each["nearest"] in reason and each["policies"] for each in refused)


def test_the_port_of_the_endpoint_counts_and_each_endpoint_is_judged() -> None:
    report = ask(CLIENT, "shop/web")
    assert outcomes(report) == [(FORWARD, f"{WEB}:8080", 0.5), (FORWARD, f"{OTHER_WEB}:8080", 0.5)]
    report = ask(OUTSIDER, "shop/web")
    assert outcomes(report) == [(DROP, None, 0.5), (FORWARD, f"{OTHER_WEB}:8080", 0.5)]
    assert report.exit_code == 0
    assert {(each.ip, each.port, each.allowed) for each in report.policies} == {
        (WEB, 8080, False),
        (OTHER_WEB, 8080, True),
    }
    lines = screen(report).splitlines()
    assert f"  answers    50 %  dropped: {ISOLATED}: {NO_PEER}" in lines
    assert f"             50 %  {OTHER_WEB}:8080  other-web  this node  masqueraded" in lines


def test_the_node_reaches_its_own_pods_and_other_nodes_do_not() -> None:
    assert outcomes(ask("node", f"{WEB}:9090")) == [(PASS, None, 1.0)]
    assert outcomes(ask("192.168.0.3", f"{WEB}:9090")) == [(DROP, None, 1.0)]


def test_a_policy_that_cannot_be_obeyed_is_named() -> None:
    report = ask(CLIENT, f"{OTHER_WEB}:80", more=[BROKEN])
    (way,) = report.desired.outcomes
    assert way.verdict is DROP
    assert "shop/broken cannot be obeyed, so nothing is allowed" in str(way.reason)
    assert report.policies[-1].closed == ("shop/broken",)


@pytest.mark.parametrize(("mode", "verdict"), [("iptables", DROP), ("nftables", DROP), ("ipvs", REJECT)])
def test_policies_come_before_refusals_except_where_the_node_has_the_address(
    mode: str, verdict: PacketVerdict
) -> None:
    assert outcomes(ask(QUIET, "shop/none", mode=mode)) == [(verdict, None, 1.0)]
    assert outcomes(ask(CLIENT, "shop/none", mode=mode)) == [(REJECT, None, 1.0)]


def test_a_pod_is_known_by_its_name_without_an_endpoint() -> None:
    report = ask("pod/shop/quiet", f"{REMOTE}:80")
    assert (report.source.ip, report.source.where) == (QUIET, Where.POD)
    assert report.exit_code == REFUSED
    far = ask("pod/shop/remote", f"{WEB}:8080")
    assert (far.source.where, far.notes) == (
        Where.OUTSIDE,
        ("pod shop/remote is on another node: its packets reach this node from outside",),
    )


@pytest.mark.parametrize(
    ("setting", "verdict"), [("allow", PASS), ("drop", DROP), ("hold", PacketVerdict.UNKNOWN)]
)
@pytest.mark.parametrize(("source", "destination"), [("10.244.1.99", REMOTE), (REMOTE, "10.244.1.99")])
def test_a_pod_that_is_not_known_is_dealt_with_as_the_setting_says(
    setting: str, verdict: PacketVerdict, source: str, destination: str
) -> None:
    report = ask(source, f"{destination}:80", network_policy_unknown_pods=setting)
    (way,) = report.desired.outcomes
    assert way.verdict is verdict
    if verdict is not PASS:
        assert "10.244.1.99 is in this node's pod ranges" in str(way.reason)


def differences(report: Report, *actual: Outcome) -> tuple[str, ...]:
    changed = with_differences(msgspec.structs.replace(report, actual=actual_of(actual)))
    assert changed.exit_code == (DIFFERS if changed.differences else report.exit_code)
    return changed.differences


RULE = "ip kproxy-policy i-1234: ip saddr @p-5678 accept"


def test_what_is_let_through_names_the_last_rule_of_policies() -> None:
    direct = ask(OUTSIDER, f"{WEB}:8080")
    assert differences(direct, Outcome(DROP, steps=("ip kproxy-policy i-1234: drop",))) == ()
    assert differences(direct, Outcome(PASS, steps=(RULE,))) == (
        f"what goes to {WEB}:8080 is let through by {RULE}, but should be refused: {ISOLATED}",
    )
    assert differences(direct, Outcome(PASS)) == (
        (
            f"what goes to {WEB}:8080 is let through by every rule of NetworkPolicies, "
            f"but should be refused: {ISOLATED}"
        ),
    )
    of_service = ask(OUTSIDER, "shop/web")
    both = [
        Outcome(FORWARD, 0.5, f"{ip}:8080", masquerade=True, steps=("ip kproxy all-2: dnat", RULE))
        for ip in (WEB, OTHER_WEB)
    ]
    assert differences(of_service, *both) == (
        f"what goes to {WEB}:8080 is let through by {RULE}, but should be refused: {ISOLATED}",
    )


def test_what_is_refused_names_the_rule_that_refuses() -> None:
    drop = Outcome(DROP, steps=("ip kproxy-policy i-1234: drop",), reason="ip kproxy-policy i-1234: drop")
    assert differences(ask(CLIENT, f"{WEB}:8080"), drop) == (
        "the packet is dropped by ip kproxy-policy i-1234: drop, but should be left as it is",
    )
    known = "ip kproxy-policy refused-ingress-ports: ip saddr . ip daddr @drops-ingress drop"
    again = Outcome(DROP, steps=("ip kproxy-policy i-1234: jump refused-ingress", known), reason=known)
    assert differences(ask(CLIENT, f"{WEB}:8080"), again) == (
        "the packet is dropped by ip kproxy-policy i-1234: jump refused-ingress, but should be left as it is",
    )
    assert differences(ask(OUTSIDER, "shop/web"), drop) == (
        (
            f"50 % of connections, what should go to {OTHER_WEB}:8080, is dropped by "
            "ip kproxy-policy i-1234: drop, but should be forwarded to an endpoint"
        ),
    )
