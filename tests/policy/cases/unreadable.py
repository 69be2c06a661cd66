"""Policies that cannot be obeyed close their pods and nothing else (point 16)."""

from typing import Final

from tests.policy.cases.case import Case

API: Final = "{podSelector: {matchLabels: {app: api}}}"

_RULES: Final = {
    "unknown-field-of-a-rule": "{from: [], via: []}",
    "unknown-field-of-a-peer": "{from: [{podSelector: {}, serviceAccountSelector: {}}]}",
    "unknown-field-of-a-port": "{ports: [{port: 80, startPort: 1}]}",
    "unknown-field-of-a-selector": "{from: [{podSelector: {matchFields: {app: api}}}]}",
    "unknown-field-of-a-block": "{from: [{ipBlock: {cidr: 0.0.0.0/0, including: []}}]}",
    "unknown-operator": "{from: [{podSelector: {matchExpressions: [{key: app, operator: Gt, values: ['1']}]}}]}",
    "in-without-values": "{from: [{podSelector: {matchExpressions: [{key: app, operator: In}]}}]}",
    "exists-with-values": "{from: [{podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}]}",
    "unknown-protocol": "{ports: [{port: 80, protocol: ICMP}]}",
    "small-letters-of-a-protocol": "{ports: [{port: 80, protocol: tcp}]}",
    "port-too-large": "{ports: [{port: 65536}]}",
    "port-zero": "{ports: [{port: 0}]}",
    "end-before-the-port": "{ports: [{port: 8080, endPort: 80}]}",
    "end-without-a-port": "{ports: [{endPort: 80}]}",
    "end-of-a-name": "{ports: [{port: http, endPort: 80}]}",
    "no-range": "{from: [{ipBlock: {cidr: everything}}]}",
    "prefix-too-long": "{from: [{ipBlock: {cidr: 192.0.2.0/33}}]}",
    "except-outside": "{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [198.51.100.0/24]}}]}",
    "except-of-another-family": "{from: [{ipBlock: {cidr: 0.0.0.0/0, except: ['2001:db8::/64']}}]}",
    "empty-peer": "{from: [{}]}",
    "block-and-selector": "{from: [{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}]}",
    "rules-that-are-no-list": "",
}

FLOWS: Final = """
    shop/api out pay/card > shop/web: -80 -53/udp -icmp
    node > shop/web: +80
    shop/web > out: +80
    shop/api > shop/db: +80
    shop/bare > shop/db: -80
    out > pay/web: +80
"""
OTHERS: Final = {"shop/good": f"podSelector: {{matchLabels: {{app: db}}}}\ningress: [{{from: [{API}]}}]"}


def _spec(rule: str) -> str:
    rules = f"[{rule}, {{}}]" if rule else "{from: []}"
    return f"podSelector: {{matchLabels: {{app: web}}}}\npolicyTypes: [Ingress]\ningress: {rules}"


CASES: Final = (
    *(
        Case(name, (16,), {"shop/bad": _spec(rule), **OTHERS}, FLOWS, core=name == "unknown-operator")
        for name, rule in _RULES.items()
    ),
    Case("unknown-field-of-a-policy", (16,), {
        "shop/bad": "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Ingress]\npriority: 1\ningress: [{}]", **OTHERS,
    }, FLOWS),
    Case("unknown-type", (16,), {
        "shop/bad": "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Ingress, Forward]\ningress: [{}]\negress: [{}]", **OTHERS,
    }, """
        shop/api out > shop/web: -80
        shop/api > shop/db: +80
        out > pay/web: +80
    """),
    Case("a-bad-egress-rule-closes-egress", (16,), {
        "shop/bad": "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress: [{to: [{}]}, {}]", **OTHERS,
    }, """
        shop/web > shop/api out node: -80 -53/udp -icmp
        out > shop/web: +80
        shop/api > shop/db: +80
    """, core=True),
    Case("bad-subjects-close-the-namespace", (16,), {
        "shop/bad": "podSelector: {matchExpressions: [{key: app, operator: Like, values: [web]}]}\npolicyTypes: [Ingress]\ningress: [{}]",
    }, """
        shop/api out > shop/web shop/db shop/bare: -80
        node > shop/web: +80
        out > pay/web: +80
    """),
)  # fmt: skip
