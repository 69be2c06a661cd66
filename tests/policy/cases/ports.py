"""Ports by number, range, protocol and name (point 6)."""

from typing import Final

from tests.policy.cases.case import Case, PodChange

WEB: Final = "podSelector: {matchLabels: {app: web}}"


def ingress(*ports: str) -> dict[str, str]:
    """A policy that lets everything in to these ports of shop/web."""
    return {"shop/p": f"{WEB}\ningress: [{{ports: [{', '.join(ports)}]}}]"}


def egress(*ports: str) -> dict[str, str]:
    """A policy that lets shop/api out to these ports of anything."""
    spec = f"podSelector: {{matchLabels: {{app: api}}}}\npolicyTypes: [Egress]\negress: [{{ports: [{', '.join(ports)}]}}]"
    return {"shop/p": spec}


# More rules than a group tries one by one; a port may be in several, and some say nothing of ports.
_OTHERS: Final = ", ".join(
    f"{{from: [{{podSelector: {{matchLabels: {{app: other-{number}}}}}}}], ports: [{{port: {8000 + number}, endPort: {9000 + number}}},"
    f" {{port: {number + 1}, protocol: UDP}}, {{port: {8060 + number}, protocol: SCTP}}]}}"
    for number in range(40)
)

CASES: Final = (
    Case("a-port-is-tcp-by-default", (1, 6), ingress("{port: 8080}"), """
        shop/api out > shop/web: +8080 -80 -8080/udp -8080/sctp -icmp
    """, core=True),
    Case("a-port-of-udp", (6,), ingress("{port: 8080, protocol: UDP}"), """
        shop/api out > shop/web: +8080/udp -8080 -53/udp -8080/sctp
    """, core=True),
    Case("a-port-of-sctp-opens-no-tcp", (6,), ingress("{port: 8080, protocol: SCTP}"), """
        shop/api out shop/web-far > shop/web: +8080/sctp -9090/sctp -8080 -8080/udp
    """, core=True),
    Case("egress-of-sctp", (6,), egress("{port: 9090, protocol: SCTP}"), """
        shop/api > shop/web shop/bare out shop/web-far node: +9090/sctp -8080/sctp -9090 -icmp
    """, core=True),
    Case("a-range-is-inclusive", (6,), ingress("{port: 8080, endPort: 8081}"), """
        shop/api out > shop/web: +8080 +8081 -80 -9090 -8080/udp
    """, core=True),
    Case("a-range-of-one", (6,), ingress("{port: 8080, endPort: 8080}"), """
        shop/api > shop/web: +8080 -8081 -80
    """),
    Case("a-range-to-the-end", (6,), egress("{port: 8081, endPort: 65535}"), """
        shop/api > shop/web out: +8081 +9090 -8080 -80 -5432
    """),
    Case("all-ports-by-a-range", (6,), ingress("{port: 1, endPort: 65535}"), """
        shop/api > shop/web: +80 +9090 +5432 -53/udp -8080/sctp -icmp
    """),
    Case("a-range-of-udp-and-one-of-sctp", (6,), ingress(
        "{port: 50, endPort: 60, protocol: UDP}", "{port: 8000, endPort: 9000, protocol: SCTP}"
    ), """
        shop/api > shop/web: +53/udp -8080/udp +8080/sctp -9090/sctp -80 -8080
    """),
    Case("ranges-that-overlap-and-touch", (6,), ingress(
        "{port: 80}", "{port: 8000, endPort: 8080}", "{port: 8080, endPort: 8085}", "{port: 8079}"
    ), """
        shop/api > shop/web: +80 +8080 +8081 -9090 -5432
    """),
    Case("a-protocol-alone-is-all-its-ports", (6, 9), ingress("{protocol: UDP}"), """
        shop/api out > shop/web: +53/udp +8080/udp -80 -8080/sctp -icmp
    """, core=True),
    Case("every-protocol-alone-is-not-icmp", (6, 9), ingress("{protocol: TCP}", "{protocol: UDP}", "{protocol: SCTP}"), """
        shop/api out > shop/web: +80 +9090 +53/udp +8080/sctp -icmp
    """),
    Case("an-empty-port-is-all-of-tcp", (6,), ingress("{}"), """
        shop/api > shop/web: +80 +5432 -53/udp -8080/sctp -icmp
    """),
    Case("ports-of-several-protocols", (6,), egress(
        "{port: 80}", "{port: 53, protocol: UDP}", "{port: 8080, protocol: SCTP}", "{port: 9090}"
    ), """
        shop/api > out shop/web pay/card-far node: +80 +9090 +53/udp +8080/sctp -8080 -8080/udp -9090/sctp -icmp
    """, core=True),
    Case("a-name-at-ingress-is-of-the-isolated-pod", (6,), {
        "shop/p": "podSelector: {}\ningress: [{ports: [{port: http}]}]",
    }, """
        pay/card out > shop/web: +80 -8080 -9090
        pay/card out > shop/api: +8080 -80
        pay/card out > shop/db: +8080 -80 -5432
        pay/card out > shop/bare: -80 -8080 -9090
    """, core=True),
    Case("a-name-has-its-protocol", (6,), {
        "pay/p": "podSelector: {}\ningress: [{ports: [{port: http}]}]",
        "shop/q": "podSelector: {}\ningress: [{ports: [{port: dns, protocol: UDP}]}]",
    }, """
        out > pay/web: +8081 -80
        out > pay/card: +80 -8080/sctp -8080
        out > pay/api: -8080/udp -8080
        out > shop/web: +53/udp -8080/udp -80
        out > shop/api: +8080/udp -53/udp
        out > shop/db: -53/udp
    """, core=True),
    Case("a-name-of-sctp", (6,), {"pay/p": "podSelector: {}\ningress: [{ports: [{port: http, protocol: SCTP}]}]"}, """
        out > pay/card: +8080/sctp -9090/sctp -80
        out > pay/web pay/api: -8080/sctp -80
    """),
    Case("a-name-at-egress-is-of-each-destination", (6,), egress("{port: http}"), """
        shop/api > shop/web: +80 -8080
        shop/api > shop/db: +8080 -80
        shop/api > pay/web: +8081 -80
        shop/api > pay/card: +80 -8080/sctp
        shop/api > pay/api: -8080 -8080/udp
        shop/api > shop/bare out peer node: -80 -8080
        shop/api > shop/web-far: +8080 -80
        shop/api > pay/card-far: +9090 -80
        shop/api > ops/prom-far: +80 -9090
    """, core=True),
    Case("a-name-at-egress-with-peers", (6,), {"shop/p": """
        podSelector: {matchLabels: {app: api}}
        policyTypes: [Egress]
        egress: [{to: [{namespaceSelector: {matchLabels: {team: b}}}, {ipBlock: {cidr: 10.244.1.130/32}}], ports: [{port: http}]}]
    """}, """
        shop/api > pay/web: +8081
        shop/api > pay/card-far: +9090
        v4 shop/api > shop/web: +80 -8080
        v6 shop/api > shop/web: -80
        shop/api > shop/db: -8080
    """),
    Case("a-name-and-numbers", (6,), egress("{port: http}", "{port: 5432}", "{port: dns, protocol: UDP}"), """
        shop/api > shop/web: +80 +5432 +53/udp -8080 -8080/udp
        shop/api > shop/db: +8080 +5432 -80 -53/udp
        shop/api > out: +5432 -80 -53/udp
    """),
    Case("a-name-that-no-pod-has", (6,), {**ingress("{port: nothing}"), "pay/q":
        "podSelector: {}\npolicyTypes: [Egress]\negress: [{ports: [{port: nothing}]}]"}, """
        shop/api out > shop/web: -80 -8080
        pay/web > shop/bare out: -80
        shop/bare > pay/web: +80
    """),
    Case("many-rules", (3, 6, 9), {"shop/p": f"""
        {WEB}
        ingress: [{_OTHERS},
          {{from: [{{podSelector: {{matchLabels: {{app: api}}}}}}], ports: [{{port: 8080}}, {{port: 53, protocol: UDP}}]}},
          {{from: [{{podSelector: {{matchLabels: {{app: db}}}}}}]}},
          {{from: [{{ipBlock: {{cidr: 192.0.2.10/32}}}}], ports: [{{protocol: SCTP}}, {{port: http}}]}},
          {{ports: [{{port: 9090}}]}}]
    """}, """
        shop/api > shop/web: +8080 +9090 +53/udp -80 -8081 -8080/udp -8080/sctp -icmp
        shop/db > shop/web: +80 +5432 +53/udp +8080/udp +9090/sctp +icmp
        v4 out > shop/web: +80 +9090 +8080/sctp -8080 -53/udp -icmp
        v6 out > shop/web: +9090 -80 -8080/sctp
        shop/bare pay/card > shop/web: +9090 -80 -8080 -53/udp -8080/sctp -icmp
    """, core=True),
    Case("many-rules-at-egress", (3, 6, 9), {"shop/p": f"""
        podSelector: {{matchLabels: {{app: api}}}}
        policyTypes: [Egress]
        egress: [{_OTHERS.replace("from:", "to:")},
          {{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: http}}, {{port: dns, protocol: UDP}}]}},
          {{to: [{{namespaceSelector: {{matchLabels: {{team: b}}}}}}], ports: [{{port: 9090}}]}},
          {{to: [{{namespaceSelector: {{matchLabels: {{env: lab}}}}}}]}}]
    """}, """
        shop/api > shop/web: +80 +53/udp -8080 -9090 -icmp
        shop/api > shop/web-far: +8080 -80 -53/udp
        shop/api > pay/web pay/card-far: +9090 -80 -53/udp -icmp
        shop/api > ops/prom ops/prom-far: +80 +8080/udp +9090/sctp +icmp
        shop/api > out node shop/db: -80 -9090 -icmp
    """, core=True),
    Case("two-names-for-one-port-and-one-name-in-two-containers", (6,), {
        "shop/p": "podSelector: {}\ningress: [{ports: [{port: alias}, {port: side}]}]",
    }, """
        out > shop/web: +80 +9090 -8080 -8081
        out > shop/bare: +8081 -80
    """, objects=[
        PodChange("shop/web", ports={"http/TCP": 80, "alias/TCP": 80}, spec={"initContainers": [
            {"name": "mesh", "image": "none", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9090}]},
            {"name": "once", "image": "none", "ports": [{"containerPort": 8080}]},
        ]}),
        PodChange("shop/bare", spec={"containers": [
            {"name": "main", "image": "none"},
            {"name": "proxy", "image": "none", "ports": [{"containerPort": 80}, {"name": "side", "containerPort": 8081}]},
        ]}),
    ]),
)  # fmt: skip
