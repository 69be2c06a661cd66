"""Hosts, host-network pods, and what no policy may stop (points 7 to 9)."""

from typing import Final

from tests.policy.cases.case import Case

EVERYTHING: Final = {
    f"{space}/deny": "podSelector: {}\npolicyTypes: [Ingress, Egress]" for space in ("shop", "pay", "ops")
}

CASES: Final = (
    Case("everything-is-denied-but-the-own-node", (7, 8), EVERYTHING, """
        node > shop/web shop/db shop/api shop/bare pay/web pay/card pay/api ops/prom: +80 +53/udp +8080/sctp +icmp
        shop/web pay/card ops/prom > node gateway peer out shop/web-far: -80 -53/udp -icmp
        peer out shop/web-far > shop/web pay/card: -80 -icmp
        shop/web > shop/db: -80
        shop/api > shop/bare: -80
        pay/web > shop/bare: -80
        shop/bare > pay/web: -80
        node > out peer shop/web-far: +80
    """, core=True),
    Case("egress-to-the-own-node-is-judged", (8,), {
        "shop/p": "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {}}]}]",
    }, """
        shop/web shop/api > node gateway: -80 -53/udp -8080/sctp -icmp
        shop/web > shop/db shop/bare: +80
        pay/web pay/card > node gateway: +80 +53/udp +icmp
    """, core=True),
    Case("egress-to-the-own-node-by-address", (5, 8), {"shop/p": """
        podSelector: {}
        policyTypes: [Egress]
        egress:
        - to: [{ipBlock: {cidr: 192.168.100.10/32}}, {ipBlock: {cidr: "fd00:192:168:100::10/128"}}]
          ports: [{port: 80}, {port: 53, protocol: UDP}]
    """}, """
        shop/web shop/api > node: +80 +53/udp -8080 -icmp
        shop/web shop/api > gateway peer out: -80 -53/udp
    """, core=True),
    Case("egress-to-the-gateway-by-address", (5, 8), {"shop/p": """
        podSelector: {}
        policyTypes: [Egress]
        egress: [{to: [{ipBlock: {cidr: 10.244.1.1/32}}, {ipBlock: {cidr: "fd00:10:244:1::1/128"}}]}]
    """}, """
        shop/bare shop/db > gateway: +80 +icmp
        shop/bare shop/db > node: -80 -icmp
    """),
    Case("host-network-pods-are-no-subjects", (7,), {"ops/deny": "podSelector: {matchLabels: {app: agent}}\npolicyTypes: [Ingress, Egress]"}, """
        shop/web out pay/card > node: +80 +icmp
        node > out shop/web: +80
        out > ops/prom: +80
    """),
    Case("host-network-pods-are-no-peers", (7,), {
        "shop/p": "podSelector: {matchLabels: {app: web}}\ningress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: agent}}}]}]",
        "shop/q": "podSelector: {matchLabels: {app: api}}\npolicyTypes: [Egress]\negress: [{to: [{namespaceSelector: {}}]}]",
    }, """
        peer > shop/web: -80
        node > shop/web: +80
        shop/api > node peer: -80
        shop/api > pay/card: +80
    """, core=True),
    Case("named-ports-of-host-network-pods-are-none", (6, 7), {"shop/q": """
        podSelector: {matchLabels: {app: api}}
        policyTypes: [Egress]
        egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}], ports: [{port: http}]}]
    """}, """
        shop/api > node peer out: -80
        shop/api > shop/web: +80
    """),
    Case("other-nodes-are-plain-addresses", (5, 8), {"shop/p": """
        podSelector: {}
        ingress: [{from: [{ipBlock: {cidr: 192.168.100.0/24}}, {ipBlock: {cidr: "fd00:192:168:100::/64"}}]}]
    """}, """
        peer > shop/web shop/bare: +80 +icmp
        shop/web-far out pay/card > shop/web shop/bare: -80 -icmp
    """, core=True),
    Case("new-icmp-needs-a-rule-without-ports", (9,), {
        "shop/p": "podSelector: {matchLabels: {app: web}}\ningress: [{from: [{podSelector: {matchLabels: {app: api}}}]}, {ports: [{port: 80}]}]",
        "pay/q": "podSelector: {}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {}}]}, {ports: [{protocol: UDP}, {protocol: TCP}, {protocol: SCTP}]}]",
    }, """
        shop/api > shop/web: +icmp +8080
        out shop/db > shop/web: -icmp +80
        pay/card > pay/web pay/api pay/card-far: +icmp
        pay/card > shop/bare out node: -icmp +80 +53/udp
    """, core=True),
)  # fmt: skip
