"""Who is a peer by labels of pods and of namespaces (point 4)."""

from typing import Final

from tests.policy import objects
from tests.policy.cases.case import Case, PodChange

WEB: Final = "podSelector: {matchLabels: {app: web}}"


def ingress(*peers: str) -> dict[str, str]:
    """A policy that lets these peers in to shop/web."""
    return {"shop/p": f"{WEB}\ningress: [{{from: [{', '.join(peers)}]}}]"}


def egress(*peers: str) -> dict[str, str]:
    """A policy that lets shop/api out to these peers."""
    spec = f"podSelector: {{matchLabels: {{app: api}}}}\npolicyTypes: [Egress]\negress: [{{to: [{', '.join(peers)}]}}]"
    return {"shop/p": spec}


def expression(key: str, operator: str, *values: str) -> str:
    """A selector with one expression."""
    listed = f", values: [{', '.join(values)}]" if values else ""
    return f"{{matchExpressions: [{{key: {key}, operator: {operator}{listed}}}]}}"


CASES: Final = (
    Case("pods-alone-are-of-the-own-namespace", (4,), ingress("{podSelector: {matchLabels: {tier: back}}}"), """
        shop/api shop/db > shop/web: +80
        pay/card pay/api pay/card-far shop/bare > shop/web: -80
    """, core=True),
    Case("all-pods-of-the-own-namespace", (4,), ingress("{podSelector: {}}"), """
        shop/api shop/db shop/bare shop/web-far > shop/web: +80 +53/udp +8080/sctp +icmp
        pay/card pay/web ops/prom out peer > shop/web: -80
    """, core=True),
    Case("namespaces-alone-are-all-their-pods", (4,), ingress("{namespaceSelector: {matchLabels: {env: prod}}}"), """
        pay/card pay/api pay/web pay/card-far shop/bare shop/db > shop/web: +80
        ops/prom ops/prom-far out peer > shop/web: -80
    """, core=True),
    Case("all-namespaces-are-all-pods-and-nothing-else", (4, 7), ingress("{namespaceSelector: {}}"), """
        pay/card shop/bare ops/prom ops/prom-far shop/web-far > shop/web: +80 +icmp
        out peer > shop/web: -80 -icmp
    """),
    Case("both-in-one-peer-are-and", (4,), ingress(
        "{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {role: scrape}}}"
    ), """
        ops/prom ops/prom-far > shop/web: +80
        shop/api shop/bare pay/card > shop/web: -80
    """, core=True),
    Case("in-two-peers-they-are-or", (4,), ingress(
        "{namespaceSelector: {matchLabels: {team: b}}}", "{podSelector: {matchLabels: {app: db}}}"
    ), """
        pay/card pay/web pay/card-far shop/db > shop/web: +80
        shop/api shop/bare ops/prom > shop/web: -80
    """, core=True),
    Case("all-namespaces-and-some-pods", (4,), ingress("{namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}"), """
        shop/api pay/api > shop/web: +80
        shop/db pay/card ops/prom > shop/web: -80
    """),
    Case("some-namespaces-and-all-pods", (4,), ingress("{namespaceSelector: {matchLabels: {team: b}}, podSelector: {}}"), """
        pay/api pay/card pay/card-far > shop/web: +80
        shop/db shop/bare ops/prom > shop/web: -80
    """),
    Case("a-namespace-by-its-name", (4,), ingress(
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: pay}}}"
    ), """
        pay/api pay/card-far > shop/web: +80
        shop/db ops/prom > shop/web: -80
    """, core=True),
    Case("namespaces-by-names-in-a-list", (4,), ingress(
        "{namespaceSelector: " + expression("kubernetes.io/metadata.name", "In", "ops", "shop") + "}"
    ), """
        ops/prom shop/bare > shop/web: +80
        pay/card > shop/web: -80
    """),
    Case("a-label-with-the-name-of-a-namespace-cannot-be-forged", (4,), ingress(
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: pay}}}"
    ), """
        pay/card > shop/web: +80
        ops/prom > shop/web: -80
    """, objects=[objects.namespace("pay", {"kubernetes.io/metadata.name": "pay", "team": "b"})]),
    Case("in", (4,), ingress("{podSelector: " + expression("app", "In", "api", "db", "none") + "}"), """
        shop/api shop/db > shop/web: +80
        shop/bare shop/web-far pay/api > shop/web: -80
    """),
    Case("not-in-matches-a-missing-key", (4,), ingress("{podSelector: " + expression("app", "NotIn", "api", "web") + "}"), """
        shop/db shop/bare > shop/web: +80
        shop/api shop/web-far pay/card > shop/web: -80
    """),
    Case("exists", (4,), ingress("{podSelector: " + expression("tier", "Exists") + "}"), """
        shop/db shop/api shop/web-far > shop/web: +80
        shop/bare > shop/web: -80
    """),
    Case("does-not-exist", (4,), ingress("{podSelector: " + expression("tier", "DoesNotExist") + "}"), """
        shop/bare > shop/web: +80
        shop/db shop/api ops/prom > shop/web: -80
    """),
    Case("not-in-of-namespaces-matches-a-missing-key", (4,), ingress(
        "{namespaceSelector: " + expression("region", "NotIn", "north") + "}"
    ), """
        pay/card ops/prom shop/bare > shop/web: +80
        out > shop/web: -80
    """),
    Case("namespaces-without-a-label", (4,), ingress("{namespaceSelector: " + expression("env", "DoesNotExist") + "}"), """
        ops/prom > shop/web: +80
        shop/bare pay/card > shop/web: -80
    """, objects=[objects.namespace("ops", {"team": "a"})]),
    Case("expressions-and-labels-are-and", (4,), ingress(
        "{podSelector: {matchLabels: {tier: back}, matchExpressions: ["
        "{key: app, operator: NotIn, values: [db]}, {key: app, operator: Exists}]}}"
    ), """
        shop/api > shop/web: +80
        shop/db shop/bare shop/web-far > shop/web: -80
    """),
    Case("an-empty-value-is-a-value", (4,), ingress('{podSelector: {matchLabels: {canary: ""}}}'), """
        shop/bare > shop/web: +80
        shop/api shop/db > shop/web: -80
    """, objects=[PodChange("shop/bare", labels={"canary": ""})]),
    Case("nothing-matches-a-selector", (4,), ingress("{podSelector: {matchLabels: {app: nothing}}}"), """
        shop/api shop/bare pay/card out > shop/web: -80
    """),
    Case("subjects-by-expressions", (2, 4), {
        "shop/a": "podSelector: " + expression("app", "DoesNotExist"),
        "shop/b": "podSelector: " + expression("app", "NotIn", "web", "db"),
        "pay/c": "podSelector: " + expression("app", "In", "card") + "\npolicyTypes: [Egress]",
    }, """
        out > shop/bare shop/api: -80
        out > shop/web shop/db: +80
        pay/card > out: -80
        pay/web > out: +80
    """),
    Case("namespaces-without-an-object-have-their-name", (4,), {
        **ingress("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: pay}}}"),
        "shop/q": "podSelector: {matchLabels: {app: db}}\ningress: [{from: [{namespaceSelector: {}}]}]",
        "shop/r": "podSelector: {matchLabels: {app: api}}\ningress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]",
        "shop/s": "podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}\ningress: [{from: [{podSelector: {}}]}]",
    }, """
        pay/card pay/card-far > shop/web shop/db: +80
        ops/prom > shop/web: -80
        ops/prom shop/bare > shop/db: +80
        ops/prom shop/bare > shop/api: -80
        shop/api > shop/bare: +80
        pay/card > shop/bare: -80
    """, gone=[("Namespace", "", "pay"), ("Namespace", "", "shop"), ("Namespace", "", "ops")], core=True, only=True),
    Case("egress-to-pods-of-the-own-namespace", (4,), egress("{podSelector: {matchLabels: {app: web}}}"), """
        shop/api > shop/web shop/web-far: +80 +8080
        shop/api > pay/web shop/db out node peer: -80
    """, core=True),
    Case("egress-to-namespaces", (4,), egress("{namespaceSelector: {matchLabels: {team: b}}}"), """
        shop/api > pay/web pay/card pay/card-far: +80 +icmp
        shop/api > shop/web ops/prom out peer: -80 -icmp
    """, core=True),
    Case("egress-to-both-in-one-peer", (4,), egress(
        "{namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchLabels: {app: web}}}"
    ), """
        shop/api > pay/web shop/web shop/web-far: +80
        shop/api > pay/card ops/prom shop/db: -80
    """),
    Case("egress-to-all-pods-is-not-to-the-world", (4,), egress("{namespaceSelector: {}}"), """
        shop/api > pay/web shop/web ops/prom-far shop/bare: +80
        shop/api > out peer node gateway: -80
    """),
)  # fmt: skip
