"""Pods that begin and end, and addresses that change hands (point 12)."""

from typing import Final

from tests.policy import objects
from tests.policy.cases.case import Case, PodChange

WEB: Final = "podSelector: {matchLabels: {app: web}}"
FROM_API: Final = {"shop/p": f"{WEB}\ningress: [{{from: [{{podSelector: {{matchLabels: {{app: api}}}}}}]}}]"}
LATER: Final = "2026-02-01T00:00:00Z"

CASES: Final = (
    Case("a-pod-that-succeeded-is-no-peer-and-no-subject", (12,), FROM_API, """
        shop/api > shop/web: -80
        shop/db out > shop/web: -80
        pay/card out > shop/bare: +80
    """, objects=[PodChange("shop/api", more={"phase": "Succeeded"})]),
    Case("a-finished-pod-is-no-longer-isolated", (12,), FROM_API, """
        shop/db out > shop/web: +80 +icmp
    """, objects=[PodChange("shop/web", more={"phase": "Failed"})], core=True),
    Case("a-block-matches-the-address-of-a-finished-pod", (5, 12), {
        "shop/p": f"{WEB}\ningress: [{{from: [{{ipBlock: {{cidr: 10.244.1.10/32}}}}]}}]",
    }, """
        v4 shop/api > shop/web: +80
        v6 shop/api > shop/web: -80
    """, objects=[PodChange("shop/api", more={"phase": "Failed"})]),
    Case("a-terminating-pod-is-judged-until-it-ends", (12,), FROM_API, """
        shop/api > shop/web: +80
        shop/db > shop/web: -80
    """, objects=[PodChange("shop/api", more={"deleted": LATER}), PodChange("shop/web", more={"deleted": LATER})], core=True),
    Case("a-pending-pod-with-an-address-is-isolated", (12,), FROM_API, """
        shop/api > shop/web: +80
        shop/db out > shop/web: -80
    """, objects=[PodChange("shop/web", more={"phase": "Pending"}), PodChange("shop/api", more={"phase": "Pending"})]),
    Case("a-pod-of-unknown-phase-is-isolated", (12,), FROM_API, """
        shop/api > shop/web: +80
        shop/db > shop/web: -80
    """, objects=[PodChange("shop/web", more={"phase": "Unknown"})]),
    Case("a-pod-without-an-address-is-nobody", (12,), FROM_API, """
        shop/db out > shop/web: +80
        shop/api > shop/web: +80
    """, objects=[PodChange("shop/web", at=None)]),
    Case("an-address-of-one-family-only", (12,), FROM_API, """
        v4 shop/api > shop/web: +80
        v4 shop/db > shop/web: -80
        v6 shop/api shop/db > shop/web: +80
    """, objects=[PodChange("shop/web", at=None, status={"podIP": "10.244.1.130", "podIPs": [{"ip": "10.244.1.130"}]})]),
    Case("an-address-in-pod-ip-alone", (12,), FROM_API, """
        v6 shop/db > shop/web: -80
        v4 shop/db > shop/web: +80
    """, objects=[PodChange("shop/web", at=None, status={"podIP": "fd00:10:244:1:1:0:0:10"})]),
    Case("the-heir-of-a-finished-pod", (12,), FROM_API, """
        shop/api > shop/web: -80
        shop/db out > shop/bare: +80
    """, objects=[
        PodChange("shop/api", more={"phase": "Succeeded"}),
        PodChange("pay/heir", at="shop/api", labels={"app": "heir"}, more={"created": LATER}),
    ]),
    Case("the-heir-has-the-labels", (12,), FROM_API, """
        shop/api > shop/web: +80
    """, objects=[
        PodChange("shop/api", labels={"app": "old"}, more={"phase": "Failed"}),
        PodChange("shop/heir", at="shop/api", labels={"app": "api"}, more={"created": LATER}),
    ]),
    Case("the-heir-of-a-terminating-pod", (12,), FROM_API, """
        shop/bare > shop/web: +80
        shop/api > shop/web: -80
    """, objects=[
        PodChange("shop/api", more={"deleted": LATER}),
        PodChange("pay/heir", at="shop/api", labels={"app": "api"}, more={"created": LATER}),
        PodChange("shop/new", at="shop/bare", labels={"app": "api"}, more={"created": LATER}),
        PodChange("shop/bare", more={"deleted": LATER}),
    ], core=True),
    Case("the-heir-is-isolated-and-the-old-pod-was-not", (12,), {"pay/p": "podSelector: {matchLabels: {app: heir}}"}, """
        out shop/api > shop/bare: -80
    """, objects=[
        PodChange("shop/bare", more={"phase": "Succeeded"}),
        PodChange("pay/heir", at="shop/bare", labels={"app": "heir"}, more={"created": LATER}),
    ]),
    Case("an-isolated-pod-ended-and-its-heir-is-free", (12,), FROM_API, """
        shop/db out > shop/web: +80
    """, objects=[
        PodChange("shop/web", more={"phase": "Succeeded"}),
        PodChange("ops/heir", at="shop/web", labels={"app": "web"}, more={"created": LATER}),
    ]),
    Case("other-labels-of-a-pod", (2, 4), FROM_API, """
        shop/db > shop/web: +80
        shop/api > shop/web: -80
        shop/api shop/bare > shop/bare shop/api: -80
    """.replace("shop/api shop/bare > shop/bare shop/api: -80", "shop/api > shop/bare: -80"), objects=[
        PodChange("shop/db", labels={"app": "api"}),
        PodChange("shop/api", labels={"app": "other"}),
        PodChange("shop/bare", labels={"app": "web"}),
    ]),
    Case("other-labels-of-namespaces", (4,), {
        "shop/p": f"{WEB}\ningress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: b}}}}}}]}}]",
    }, """
        ops/prom > shop/web: +80
        pay/card shop/api > shop/web: -80
    """, objects=[objects.namespace("ops", {"team": "b"}), objects.namespace("pay", {"team": "c"})]),
    Case("a-pod-of-this-node-moved-to-another", (12,), FROM_API, """
        shop/db out > shop/web: +80
        shop/api > shop/web: +80
    """, objects=[PodChange("shop/web", more={"node": "node-b"})]),
    Case("pods-that-are-gone", (12,), FROM_API, """
        shop/api > shop/web: -80
        shop/bare > shop/web: -80
    """, gone=[("Pod", "shop", "api"), ("Pod", "shop", "web-far"), ("Pod", "pay", "card")]),
)  # fmt: skip
