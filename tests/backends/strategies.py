"""Objects and histories that tests of all backends draw from."""

from __future__ import annotations

from typing import Any, Protocol

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.backends.iptables_node import CONTESTED
from tests.builders import endpoint, endpoint_slice, port, service
from tests.suite.matrix import SEED

SERVICES = ("a", "b", "c", "d", "e")

ANNOTATIONS: list[dict[str, str]] = [
    *([{}] * 3),
    {"kproxy.io/scheduler": "wlc"},
    {"kproxy.io/weights": '{"node:node1": 3, "*": 0}'},
]
SETTINGS = settings(
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    derandomize=not SEED,
    print_blob=True,
)
"""Failing examples are not shrunk: that takes minutes here. The failing history is printed as it is."""


@st.composite
def _service(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(SERVICES))
    number = SERVICES.index(name) + 1
    fields: dict[str, Any] = {}
    ports = [port(nodePort=draw(st.sampled_from([0, 30000 + number])))]
    if draw(st.booleans()):
        ports.append(port(53, "dns", "UDP"))
    if draw(st.booleans()):
        fields["externalIPs"] = draw(st.lists(st.sampled_from(CONTESTED), unique=True))
    if draw(st.booleans()):
        fields |= {
            "type": "LoadBalancer",
            "ingress": [f"198.51.100.{number}"],
            "healthCheckNodePort": 32000 + number,
        }
        if draw(st.booleans()):
            fields["loadBalancerSourceRanges"] = ["198.18.0.0/24", "192.168.0.0/24"]
    elif ports[0]["nodePort"]:
        fields["type"] = "NodePort"
    fields["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    fields["internalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Cluster", "Local"]))
    if draw(st.booleans()):
        fields["sessionAffinity"] = "ClientIP"
    annotations = draw(st.sampled_from(ANNOTATIONS))
    created = draw(st.sampled_from(["2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]))
    return service(name, f"10.96.0.{number}", ports=ports, created=created, annotations=annotations, **fields)


_CONDITIONS: list[dict[str, Any]] = [
    *([{}] * 3),
    {"ready": False, "serving": False},
    {"ready": False, "serving": True, "terminating": True},
]


@st.composite
def _slice(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(SERVICES))
    number = SERVICES.index(name) + 1
    pods = draw(st.sets(st.integers(1, 4), max_size=3))
    endpoints = [
        endpoint(
            f"10.1.{number}.{pod}",
            node=draw(st.sampled_from(["node1", "node2"])),
            **draw(st.sampled_from(_CONDITIONS)),
        )
        for pod in sorted(pods)
    ]
    return endpoint_slice(
        *endpoints, service=name, ports=[port(8080), port(5353, "dns", "UDP")], address_type="IPv4"
    )


CHANGE = st.one_of(
    st.tuples(st.just("service"), _service()),
    st.tuples(st.just("slice"), _slice()),
    st.tuples(st.just("slice"), _slice()),
    st.tuples(st.just("drop"), st.sampled_from(SERVICES)),
)
STEP = st.tuples(st.lists(CHANGE, max_size=4), st.sampled_from(["sync", "sync", "sync", "restart", "check"]))
HISTORY = st.lists(STEP, min_size=1, max_size=6)
START = st.lists(
    st.one_of(st.tuples(st.just("service"), _service()), st.tuples(st.just("slice"), _slice())), max_size=10
)


class Target(Protocol):
    """Something that takes objects."""

    def put(self, service: dict[str, Any] | None, *slices: dict[str, Any]) -> None:
        """Write objects."""

    def drop(self, key: str) -> None:
        """Delete a service."""


def change(target: Target, changes: list[tuple[str, Any]]) -> None:
    """Apply what was drawn."""
    for what, value in changes:
        if what == "service":
            target.put(value)
        elif what == "slice":
            target.put(None, value)
        else:
            target.drop(f"ns1/{value}")
