"""Peers by address (point 5)."""

from typing import Final

from tests.policy.cases.case import Case

WEB: Final = "podSelector: {matchLabels: {app: web}}"


def block(cidr: str, *holes: str) -> str:
    """A peer of one ipBlock."""
    return f'{{ipBlock: {{cidr: "{cidr}"' + (f", except: {list(holes)}" if holes else "") + "}}"


def ingress(*peers: str) -> dict[str, str]:
    """A policy that lets these peers in to shop/web."""
    return {"shop/p": f"{WEB}\ningress: [{{from: [{', '.join(peers)}]}}]"}


def egress(*peers: str) -> dict[str, str]:
    """A policy that lets shop/api out to these peers."""
    spec = f"podSelector: {{matchLabels: {{app: api}}}}\npolicyTypes: [Egress]\negress: [{{to: [{', '.join(peers)}]}}]"
    return {"shop/p": spec}


CASES: Final = (
    Case("a-block-of-outsiders", (5,), ingress(block("192.0.2.0/24")), """
        v4 out out2 > shop/web: +80 +53/udp +8080/sctp +icmp
        v6 out out2 > shop/web: -80 -53/udp -icmp
        shop/api peer shop/web-far > shop/web: -80
    """, core=True),
    Case("a-block-of-ipv6", (5,), ingress(block("2001:db8:1::/64")), """
        v6 out out2 > shop/web: +80 +53/udp +8080/sctp +icmp
        v4 out out2 > shop/web: -80 -icmp
        shop/api peer > shop/web: -80
    """, core=True),
    Case("one-address", (5,), ingress(block("192.0.2.11/32"), block("2001:db8:1::11/128")), """
        out2 > shop/web: +80
        out > shop/web: -80
    """),
    Case("except-is-a-hole", (5,), ingress(
        block("192.0.2.0/24", "192.0.2.11/32"), block("2001:db8:1::/64", "2001:db8:1::11/128")
    ), """
        out > shop/web: +80 +icmp
        out2 > shop/web: -80 -icmp
    """, core=True),
    Case("several-holes-that-overlap", (5,), ingress(
        block("192.0.2.0/24", "192.0.2.10/31", "192.0.2.8/29", "192.0.2.200/32"),
        block("2001:db8:1::/64", "2001:db8:1::8000/113", "2001:db8:1::10/124"),
    ), """
        out out2 > shop/web: -80
    """),
    Case("another-peer-fills-the-hole", (5,), ingress(
        block("192.0.2.0/24", "192.0.2.11/32"), block("192.0.2.11/32"),
        block("2001:db8:1::/64", "2001:db8:1::10/124"), block("2001:db8:1::11/128"),
    ), """
        v4 out out2 > shop/web: +80
        v6 out2 > shop/web: +80
        v6 out > shop/web: -80
    """),
    Case("another-policy-fills-the-hole", (2, 5), {
        **ingress(block("0.0.0.0/0", "192.0.2.0/24"), block("::/0", "2001:db8:1::/64")),
        "shop/q": f"{WEB}\ningress: [{{from: [{block('192.0.2.10/32')}, {block('2001:db8:1::10/128')}], ports: [{{port: 80}}]}}]",
    }, """
        out > shop/web: +80 -8080
        out2 > shop/web: -80 -8080
        peer shop/api pay/card-far > shop/web: +80 +8080
    """),
    Case("a-hole-is-of-its-own-peer-only", (5,), ingress(
        block("10.0.0.0/8", "10.244.1.0/24"), block("fd00::/8", "fd00:10:244:1::/64"), "{podSelector: {matchLabels: {app: db}}}"
    ), """
        shop/db shop/web-far pay/card-far > shop/web: +80
        shop/api shop/bare pay/card > shop/web: -80
    """),
    Case("all-of-ipv4-only", (5,), ingress(block("0.0.0.0/0")), """
        v4 out peer shop/api pay/card-far > shop/web: +80 +53/udp +8080/sctp +icmp
        v6 out peer shop/api pay/card-far > shop/web: -80 -53/udp -icmp
    """, core=True),
    Case("all-of-ipv6-only", (5,), egress(block("::/0")), """
        v6 shop/api > out peer shop/web node gateway pay/card-far: +80 +icmp
        v4 shop/api > out peer shop/web node gateway pay/card-far: -80 -icmp
    """),
    Case("all-but-some", (5,), egress(block("0.0.0.0/0", "10.0.0.0/8", "192.168.0.0/16"), block("::/0", "fd00::/8")), """
        shop/api > out out2: +80 +icmp
        shop/api > shop/web pay/card-far peer node gateway: -80 -icmp
    """, core=True),
    Case("addresses-of-pods-match-too", (5,), ingress(block("10.244.1.0/25"), block("fd00:10:244:1::/80")), """
        shop/api shop/bare pay/card pay/api > shop/web: +80
        shop/db pay/web ops/prom shop/web-far out > shop/web: -80
    """, core=True),
    Case("one-pod-by-its-address", (5,), egress(block("10.244.1.12/32"), block("fd00:10:244:1::12/128")), """
        shop/api > pay/card: +80
        shop/api > shop/bare pay/api: -80
    """, core=True),
    Case("host-bits-are-tolerated", (5,), ingress(
        block("192.0.2.77/24", "192.0.2.11/31"), block("2001:db8:1::77/64", "2001:db8:1::13/127")
    ), """
        v4 out out2 > shop/web: -80
        v6 out out2 > shop/web: +80
        v4 peer > shop/web: -80
    """),
    Case("long-and-short-forms-of-one-range", (5,), ingress(block("2001:0DB8:0001:0000::/64", "2001:db8:1:0:0:0:0:0011/128")), """
        v6 out > shop/web: +80
        v6 out2 > shop/web: -80
        v4 out > shop/web: -80
    """),
    Case("ranges-that-touch-and-overlap", (5,), ingress(
        block("192.0.2.0/28"), block("192.0.2.8/29"), block("192.0.2.10/32"), block("192.0.2.10/31"), block("192.0.0.0/23"),
    ), """
        v4 out out2 > shop/web: +80
        v6 out > shop/web: -80
    """),
    Case("egress-to-a-block-with-ports", (5, 6), {"shop/p": f"""
        podSelector: {{matchLabels: {{app: api}}}}
        policyTypes: [Egress]
        egress: [{{to: [{block("192.0.2.10/32")}, {block("2001:db8:1::10/128")}], ports: [{{port: 80}}, {{port: 53, protocol: UDP}}]}}]
    """}, """
        shop/api > out: +80 +53/udp -8080 -icmp
        shop/api > out2 peer shop/db: -80 -53/udp
    """, core=True),
    Case("another-node-by-its-address", (5, 7), egress(block("192.168.100.20/32"), block("fd00:192:168:100::20/128")), """
        shop/api > peer: +80
        shop/api > node shop/web-far: -80
    """),
    Case("blocks-and-selectors-in-one-list", (4, 5), ingress(
        block("192.0.2.10/32"), "{podSelector: {matchLabels: {app: api}}}", block("2001:db8:1::10/128")
    ), """
        out shop/api > shop/web: +80
        out2 shop/db pay/api > shop/web: -80
    """),
)  # fmt: skip
