"""Which pods are isolated in which direction, and how several policies add up (points 1 to 3)."""

from typing import Final

from tests.policy.cases.case import Case

WEB: Final = "podSelector: {matchLabels: {app: web}}"
API: Final = "{podSelector: {matchLabels: {app: api}}}"
DB: Final = "{podSelector: {matchLabels: {app: db}}}"

CASES: Final = (
    Case("no-policy", (2,), {}, """
        shop/api out peer node pay/card > shop/web shop/bare: +80 +53/udp +8080/sctp +icmp
        shop/web > out node peer shop/web-far gateway: +80 +icmp
    """, core=True),
    Case("types-missing-without-rules-denies-ingress-only", (1, 3), {"shop/p": WEB}, """
        shop/api out peer pay/web shop/web-far > shop/web: -80 -53/udp -8080/sctp -icmp
        shop/web > shop/api out peer node: +80 +53/udp +icmp
        shop/api > shop/db: +80
        shop/api > pay/web: +80
    """, core=True),
    Case("types-missing-with-an-ingress-rule", (1,), {"shop/p": f"{WEB}\ningress: [{{from: [{API}]}}]"}, """
        shop/api > shop/web: +80 +53/udp +8080/sctp +icmp
        shop/db shop/bare pay/api out peer > shop/web: -80 -53/udp
        shop/web > shop/db out: +80
    """, core=True),
    Case("types-missing-with-an-egress-rule-isolate-both", (1,), {"shop/p": f"{WEB}\negress: [{{to: [{DB}]}}]"}, """
        shop/web > shop/db: +80 +8080 +53/udp
        shop/web > shop/api out peer node gateway pay/web: -80 -53/udp
        shop/api out > shop/web: -80
    """, core=True),
    Case("types-empty-are-types-missing", (1,), {"shop/p": f"{WEB}\npolicyTypes: []\negress: [{{to: [{DB}]}}]"}, """
        shop/web > shop/db: +80
        shop/web > shop/api: -80
        shop/api > shop/web: -80
    """),
    Case("types-missing-with-egress-empty-isolate-ingress-only", (1, 3), {"shop/p": f"{WEB}\negress: []"}, """
        shop/web > shop/db out: +80
        shop/db out > shop/web: -80
    """),
    Case("types-missing-with-egress-null", (1, 3), {"shop/p": f"{WEB}\negress: null\ningress: null"}, """
        shop/web > shop/db out: +80
        shop/db out > shop/web: -80
    """),
    Case("egress-alone-denies-egress-and-leaves-ingress", (1, 3), {"shop/p": f"{WEB}\npolicyTypes: [Egress]"}, """
        shop/web > shop/db out peer node shop/web-far: -80 -53/udp -8080/sctp -icmp
        shop/db out peer > shop/web: +80 +53/udp +8080/sctp +icmp
    """, core=True),
    Case("rules-of-a-direction-without-its-type-count-for-nothing", (1, 2), {
        "shop/p": f"{WEB}\npolicyTypes: [Egress]\ningress: [{{from: [{DB}]}}]\negress: [{{to: [{DB}]}}]",
        "shop/q": "podSelector: {matchLabels: {app: api}}\npolicyTypes: [Ingress]\negress: [{to: []}]",
    }, """
        shop/api out > shop/web: +80
        shop/web > shop/db: +80
        shop/web > shop/bare out: -80
        shop/api > shop/db out: +80
        shop/bare > shop/api: -80
    """),
    Case("both-types-and-no-rules", (1, 3), {"shop/p": f"{WEB}\npolicyTypes: [Ingress, Egress]"}, """
        shop/web > shop/db out node: -80 -icmp
        shop/db out > shop/web: -80 -icmp
        node > shop/web: +80 +icmp
    """),
    Case("a-type-may-be-given-twice", (1,), {"shop/p": f"{WEB}\npolicyTypes: [Ingress, Ingress]"}, """
        shop/db > shop/web: -80
        shop/web > shop/db: +80
    """),
    Case("default-deny-is-of-its-namespace", (2,), {"shop/deny": "podSelector: {}\npolicyTypes: [Ingress, Egress]"}, """
        shop/web > shop/db out: -80
        pay/card out > shop/bare shop/api shop/db: -80 -53/udp
        pay/web > pay/card pay/api: +80
        out > pay/card: +80
        pay/card > out ops/prom: +80
        shop/bare > pay/card: -80
    """, core=True),
    Case("a-missing-pod-selector-selects-all", (2,), {"shop/deny": "policyTypes: [Ingress]"}, """
        out pay/web > shop/web shop/bare shop/api: -80
        shop/web > out: +80
    """),
    Case("policies-add-up", (2,), {
        "shop/deny": "podSelector: {}",
        "shop/a": f"{WEB}\ningress: [{{from: [{API}]}}]",
        "shop/b": f"{WEB}\ningress: [{{from: [{DB}], ports: [{{port: 8080}}]}}]",
    }, """
        shop/api > shop/web: +80 +8080
        shop/db > shop/web: +8080 -80
        shop/bare > shop/web: -80 -8080
        shop/web > shop/api: -80
    """, core=True),
    Case("allow-all-opens-what-another-denies", (2, 3), {
        "shop/deny": "podSelector: {}\npolicyTypes: [Ingress, Egress]",
        "shop/open": f"{WEB}\npolicyTypes: [Ingress, Egress]\ningress: [{{}}]\negress: [{{}}]",
    }, """
        out pay/web > shop/web: +80 +53/udp +icmp
        shop/web > out pay/web: +80 +53/udp +icmp
        shop/bare > shop/web: -80
        shop/web > shop/bare: -80
    """),
    Case("both-ends-must-allow", (2,), {
        "shop/in": f"podSelector: {{matchLabels: {{app: db}}}}\ningress: [{{from: [{API}]}}]",
        "shop/out": f"{WEB}\npolicyTypes: [Egress]\negress: [{{to: [{DB}]}}]",
        "shop/out2": f"podSelector: {{matchLabels: {{app: api}}}}\npolicyTypes: [Egress]\negress: [{{to: [{DB}], ports: [{{port: 80}}]}}]",
    }, """
        shop/web > shop/db: -80
        shop/api > shop/db: +80 -8080 -53/udp
        shop/bare > shop/db: -80
        shop/web > shop/api: -80
        shop/bare > shop/api: +80
    """, core=True),
    Case("both-ends-on-a-bridge-must-allow", (2,), {
        "pay/in": f"podSelector: {{matchLabels: {{app: card}}}}\ningress: [{{from: [{API}], ports: [{{port: 80}}, {{protocol: UDP, port: 53}}]}}]",
        "pay/out": "podSelector: {matchLabels: {app: api}}\npolicyTypes: [Egress]\negress: [{to: [{podSelector: {}}], ports: [{port: 80}, {port: 8080}]}]",
    }, """
        pay/api > pay/card: +80 -8080 -53/udp -icmp
        pay/web > pay/card: -80
        pay/card > pay/api: +80 +53/udp +icmp
        shop/bare shop/api > pay/card: -80
    """, core=True),
    Case("equal-labels-in-another-namespace-are-not-isolated", (2,), {"shop/p": WEB, "ops/p": WEB}, """
        shop/api > shop/web: -80
        shop/api > pay/web: +80
    """),
    Case("an-ingress-allow-says-nothing-of-egress", (2, 9), {
        "shop/p": f"{WEB}\npolicyTypes: [Ingress, Egress]\ningress: [{{from: [{API}]}}]",
    }, """
        shop/api > shop/web: +80 +53/udp +8080/sctp +icmp
        shop/web > shop/api: -80 -53/udp -icmp
    """, core=True),
    Case("an-egress-allow-says-nothing-of-ingress", (2, 9), {
        "shop/p": f"{WEB}\npolicyTypes: [Ingress, Egress]\negress: [{{to: [{API}]}}]",
    }, """
        shop/web > shop/api: +80 +53/udp +8080/sctp +icmp
        shop/api > shop/web: -80 -53/udp -icmp
    """),
    Case("lists-that-are-empty-or-null-are-missing", (3,), {
        "shop/a": f"{WEB}\ningress: [{{from: [], ports: [{{port: 80}}]}}]",
        "shop/b": "podSelector: {matchLabels: {app: db}}\ningress: [{from: null, ports: []}]",
        "shop/c": f"podSelector: {{matchLabels: {{app: api}}}}\ningress: [{{from: [{DB}], ports: null}}]",
        "pay/d": "podSelector: {matchLabels: {app: card}}\npolicyTypes: [Egress]\negress: [{to: [], ports: []}]",
        "pay/e": "podSelector: {matchLabels: {app: api}}\npolicyTypes: [Egress]\negress: [{to: null, ports: [{port: 80}]}]",
    }, """
        out shop/bare peer > shop/web: +80 -8080 -53/udp -icmp
        out shop/bare > shop/db: +80 +53/udp +icmp
        shop/db > shop/api: +80 +53/udp +icmp
        shop/bare out > shop/api: -80
        pay/card > out shop/bare: +80 +icmp
        pay/api > out shop/bare: +80 -8080 -icmp
    """),
    Case("ingress-of-one-empty-rule-allows-all", (3,), {"shop/p": f"{WEB}\ningress: [{{}}]"}, """
        out peer shop/bare pay/card shop/web-far > shop/web: +80 +53/udp +8080/sctp +icmp
    """),
    Case("a-rule-is-peers-and-ports", (3,), {"shop/p": f"""
        {WEB}
        ingress: [{{from: [{API}, {DB}], ports: [{{port: 80}}, {{port: 53, protocol: UDP}}]}}]
    """}, """
        shop/api shop/db > shop/web: +80 +53/udp -8080 -8080/udp -8080/sctp -icmp
        shop/bare out > shop/web: -80 -53/udp
    """, core=True),
    Case("rules-do-not-mix", (3,), {"shop/p": f"""
        {WEB}
        ingress: [{{from: [{API}], ports: [{{port: 80}}]}}, {{from: [{DB}], ports: [{{port: 8080}}]}}]
    """}, """
        shop/api > shop/web: +80 -8080
        shop/db > shop/web: -80 +8080
    """),
    Case("policies-do-not-mix", (2, 3), {
        "shop/p": f"{WEB}\ningress: [{{from: [{API}], ports: [{{port: 80}}]}}]",
        "shop/q": f"{WEB}\ningress: [{{from: [{DB}], ports: [{{port: 8080}}]}}]",
    }, """
        shop/api > shop/web: +80 -8080
        shop/db > shop/web: -80 +8080
    """),
    Case("of-two-rules-one-may-be-wider", (2, 3), {
        "shop/p": f"{WEB}\ningress: [{{from: [{API}], ports: [{{port: 80}}]}}, {{ports: [{{port: 80}}]}}]",
        "shop/q": f"{WEB}\ningress: [{{from: [{API}]}}]",
    }, """
        shop/api > shop/web: +80 +8080 +icmp
        shop/db > shop/web: +80 -8080 -icmp
    """),
)  # fmt: skip
