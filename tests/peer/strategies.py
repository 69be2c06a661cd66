"""Random Services and EndpointSlices, of all types and conditions, and histories of their changes.

Names, cluster IPs and node ports are few, so that services conflict and the same object is written several
times. Features that an older kube-proxy lacks are not generated for it; see `Era`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from kproxy_lab.lab.topology import Family
from tests.peer.cases.words import CLIENTS, NODE_IPS, PODS
from tests.peer.contenders import Version
from tests.peer.objects import JSON, OTHER_TARGET, TARGET, Ep, port, served, service, slices, vips

NAMES = ("a", "b", "c")
PLACES = {"a": ("local-0", "local-1", "remote-0"), "b": ("remote-1", "local")}
"""The endpoints of each slice: of one that is in two slices, kube-proxy takes either."""
SETTINGS = settings(
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[*HealthCheck],
    derandomize=True,
)
"""Failing examples are not shrunk: that takes minutes here. The failing history is printed as it is."""

_FAMILIES: list[Sequence[Family]] = [(4, 6), (4, 6), (4, 6), (4,), (6,)]

Change = tuple[str, Any]
"""("write", objects) or ("delete", (kind, name))."""


@dataclass(frozen=True, slots=True)
class Era:
    """The features of a version of kube-proxy."""

    internal_policy: bool
    terminating: bool
    ip_mode: bool

    @staticmethod
    def of(version: Version) -> "Era":
        """By the version's number."""
        return Era(version >= (1, 22), version >= (1, 26), version >= (1, 29))


@st.composite
def _service(draw: st.DrawFn, era: Era) -> JSON:
    name = draw(st.sampled_from(NAMES))
    number = NAMES.index(name) + 20
    kind = draw(
        st.sampled_from(
            [
                "ClusterIP",
                "ClusterIP",
                "NodePort",
                "NodePort",
                "LoadBalancer",
                "LoadBalancer",
                "None",
                "ExternalName",
            ]
        )
    )
    outside = kind in {"NodePort", "LoadBalancer"}
    fixed: JSON = {"nodePort": 30400 + number} if outside and draw(st.booleans()) else {}
    ports = [port(80, "web", **fixed)]
    if draw(st.booleans()):
        ports.append(port(53, "dns", "UDP"))
    spec: dict[str, Any] = {"type": "ClusterIP" if kind == "None" else kind}
    if kind == "None":
        spec["clusterIP"] = "None"
    if kind == "ExternalName":
        return service(name, *ports, externalName="example.org", **spec)
    addresses = [*vips(number), *vips(30), *NODE_IPS]
    if draw(st.booleans()):
        spec["externalIPs"] = draw(st.lists(st.sampled_from(addresses), unique=True, max_size=3))
    ingress: list[JSON] = []
    if kind == "LoadBalancer":
        mode = draw(
            st.sampled_from([{}, {}, {"ipMode": "VIP"}, {"ipMode": "Proxy"}] if era.ip_mode else [{}])
        )
        chosen = draw(st.sampled_from([vips(number), vips(number)[:1], vips(30), []]))
        ingress = [{"ip": ip, **mode} for ip in chosen]
        if draw(st.booleans()):
            spec["loadBalancerSourceRanges"] = draw(
                st.sampled_from([CLIENTS, PODS, CLIENTS[:1], ["0.0.0.0/0", CLIENTS[1]]])
            )
    if outside or spec.get("externalIPs"):
        spec["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    if era.internal_policy:
        spec["internalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Cluster", "Local"]))
    if draw(st.sampled_from([False, False, True])):
        spec["sessionAffinity"] = "ClientIP"
    labels = draw(st.sampled_from([{}] * 6 + [{"service.kubernetes.io/service-proxy-name": "other"}]))
    return service(name, *ports, labels=labels, ingress=ingress, **spec)


@st.composite
def _slices(draw: st.DrawFn, era: Era) -> list[JSON]:
    conditions: list[dict[str, Any]] = [{}, {}, {}, {"ready": None}, {"ready": False}]
    if era.terminating:
        conditions += [
            {"ready": False, "serving": True, "terminating": True},
            {"ready": False, "serving": False, "terminating": True},
        ]
    name = draw(st.sampled_from(NAMES))
    suffix = draw(st.sampled_from(["a", "a", "b"]))
    places = draw(st.lists(st.sampled_from(PLACES[suffix]), unique=True, max_size=3))
    endpoints = [Ep(place, **draw(st.sampled_from(conditions))) for place in places]
    ports = [served(draw(st.sampled_from([TARGET, OTHER_TARGET])), "web")]
    if draw(st.booleans()):
        ports.append(served(TARGET, "dns", "UDP"))
    families = draw(st.sampled_from(_FAMILIES))
    return slices(name, *endpoints, ports=ports, suffix=suffix, families=families)


def _deletion() -> st.SearchStrategy[Change]:
    named = [("Service", name) for name in NAMES]
    parts = [
        ("EndpointSlice", f"{name}-{suffix}-{family}")
        for name in NAMES
        for suffix in "ab"
        for family in (4, 6)
    ]
    return st.tuples(st.just("delete"), st.sampled_from(named + parts))


def histories(version: Version) -> st.SearchStrategy[list[list[Change]]]:
    """Steps of a few changes each; contenders are compared after every step."""
    era = Era.of(version)
    one = st.tuples(st.just("write"), _service(era).map(lambda obj: [obj]))
    some = st.tuples(st.just("write"), _slices(era))
    first = st.lists(st.one_of(one, some), min_size=3, max_size=7)
    later = st.lists(st.one_of(one, some, some, _deletion()), min_size=1, max_size=4)
    return st.tuples(first, later, later).map(list)
