"""Policies and flows for tests under traffic, and changes that leave every verdict as it is."""

from collections.abc import Iterator

from tests.policy import objects
from tests.policy.objects import (
    JSON,
    Key,
    blocks,
    labels_in,
    pods_with,
    rule_from,
    rule_to,
    spaces_with,
    spec,
)
from tests.policy.stream import on_both_protocols
from tests.policy.world import Expected, World, parse

WEB, API, CARD = (labels_in(app=app) for app in ("web", "api", "card"))
POLICIES = {
    "shop/deny": spec({}, ingress=[], egress=[]),
    "shop/web": spec(WEB, ingress=[rule_from(pods_with(app="api"), spaces_with(env="lab"))]),
    "shop/api": spec(API, egress=[rule_to(pods_with(app="web"))]),
    "pay/card": spec(
        CARD, ingress=[rule_from(pods_with(app="api"), *blocks("192.0.2.10/32", "2001:db8:1::10/128"))]
    ),
    "pay/web": spec(WEB, egress=[rule_to(pods_with())]),
}
FLOWS = """
    shop/api ops/prom ops/prom-far node > shop/web: +80
    pay/api out node > pay/card: +80
    pay/web > pay/api: +80
    shop/db out peer shop/web-far pay/api > shop/web: -80
    shop/bare out2 peer pay/card-far > pay/card: -80
    shop/api > shop/db out node: -80
    shop/web > shop/api out: -80
    pay/web > out shop/web gateway: -80
"""


def policies() -> dict[Key, JSON]:
    """The policies as objects, by key."""
    return objects.by_key(objects.policy(key, spec) for key, spec in POLICIES.items())


def flows() -> list[Expected]:
    """The flows whose verdicts stand, over TCP and UDP."""
    return on_both_protocols(parse(FLOWS))


def changes(world: World) -> Iterator[dict[Key, JSON]]:
    """All objects, again and again, each time with another change that leaves all verdicts as they are."""
    standing = dict(world.standing)
    extra = objects.policy("shop/extra", spec({}, ingress=[rule_from(pods_with(app="nothing"))]))
    env = [{"key": "env", "operator": "NotIn", "values": ["prod"]}, {"key": "env", "operator": "Exists"}]
    rewritten = objects.policy(
        "shop/web",
        spec(
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]},
            ingress=[
                rule_from({"namespaceSelector": {"matchExpressions": env}}),
                rule_from(pods_with(app="api")),
            ],
        ),
    )
    web, api, card = world.pods["shop/web"], world.pods["shop/api"], world.pods["pay/card"]
    for number in range(1000):
        label = {"turn": str(number)}
        elsewhere = objects.pod("shop/elsewhere", None, {"app": "api"}, {})
        elsewhere["status"] |= {"podIP": f"10.244.2.{100 + number % 100}"}
        for changed in (
            extra,
            rewritten,
            objects.pod("shop/web", web, {"app": "web", **label}, {}),
            objects.pod(
                "shop/api", api, {"app": "api", "tier": "back", **label}, {"http/TCP": 1000 + number}
            ),
            objects.pod("pay/card", card, {"app": "card", **label}, {}),
            elsewhere,
            objects.namespace("ops", {"env": "lab", **label}),
            objects.namespace("pay", {"env": "prod", **label}),
            objects.policy("pay/other", spec(CARD, ingress=[rule_from(ports=[{"port": 1000 + number}])])),
            objects.policy("ops/deny", spec({}, ingress=[])),
        ):
            key = objects.key_of(changed)
            yield {**standing, key: changed}
            yield standing
