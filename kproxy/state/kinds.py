"""The registry of kinds: one row per kind of object that kproxy reads from the API or from manifests.

Sources, tables, `kproxy check` and the agent read the differences between kinds from a row. They take the
rows as an argument (default KINDS), so that a test can add one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from kproxy.state import relevance, service_cidrs, sharing, sharing_policies
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from kproxy.state.problems import Problem
from kproxy.state.wire import (
    EndpointSlice,
    NamespacedObject,
    Node,
    Service,
    ServiceCIDR,
    WireObject,
)


@dataclass(frozen=True, slots=True)
class Loss:
    """The effect of a missing optional kind, for logs and `kproxy check`.

    `since` is the Kubernetes version whose ClusterRole system:node-proxier may read the kind, "" if none may;
    `instead` is the operator's alternative, such as "name the ranges with --flag".
    """

    effect: str
    since: str = ""
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.effect}; to avoid it, {self.instead}" if self.instead else self.effect


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Kind:
    """One kind of object. Kinds compare by identity and sort by name; `str` gives the name."""

    SERVICE: ClassVar["Kind"]
    ENDPOINT_SLICE: ClassVar["Kind"]
    NODE: ClassVar["Kind"]
    SERVICE_CIDR: ClassVar["Kind"]
    POD: ClassVar["Kind"]
    NAMESPACE: ClassVar["Kind"]
    NETWORK_POLICY: ClassVar["Kind"]

    name: str
    """As in the field `kind` of an object."""
    api_version: str
    """As in the field `apiVersion`: "v1" or "group/version"."""
    plural: str
    """As in the path and in RBAC rules."""
    wire: type[WireObject]
    """The struct an object is decoded into; each kind has its own. It says whether the kind is namespaced."""
    label_selector: str = ""
    field_selector: str = ""
    simpler_field_selectors: tuple[str, ...] = ()
    """What to try next, in order, where a server answers 400 because it does not know a field."""
    own_node: bool = False
    """Whether only the object with the name of this node is needed."""
    loss: Loss | None = None
    """None: the kind is required, and the first sync waits for it."""
    for_policies: bool = False
    """Whether NetworkPolicies are made of it and services are not: see `ObjectStore.policy_changes`."""
    relevant: Callable[[Any], bool] = _always
    """Takes a decoded object. One that is not relevant is treated as deleted."""
    defects: Callable[[Any], tuple[Problem, ...]] | None = None
    """Takes a decoded object and returns defects that affect only a part of it. See `problems_of`."""
    prepare: Callable[[Any], None] | None = None
    """Takes a newly decoded object, and may replace parts of it by equal ones."""
    decoder: msgspec.json.Decoder[WireObject] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", msgspec.json.Decoder(self.wire))

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: "Kind") -> bool:
        return self.name < other.name

    @property
    def group(self) -> str:
        """The API group; "" is the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def path(self) -> str:
        """The path of all its objects on an API server."""
        return f"/{'apis' if self.group else 'api'}/{self.api_version}/{self.plural}"

    @property
    def namespaced(self) -> bool:
        """Whether an object of this kind has a namespace."""
        return issubclass(self.wire, NamespacedObject)

    @property
    def required(self) -> bool:
        """Whether the first sync waits for a list of this kind."""
        return self.loss is None

    def wants(self, key: str, node: str | None) -> bool:
        """Whether the object with this key is needed on this node."""
        return not self.own_node or key == node

    def problems_of(self, obj: WireObject) -> tuple[Problem, ...]:
        """Every defect of a decoded object that affects only a part of it."""
        return self.defects(obj) if self.defects is not None else ()


Kind.SERVICE = Kind(
    name="Service",
    api_version="v1",
    plural="services",
    wire=Service,
    label_selector="!service.kubernetes.io/service-proxy-name",
    field_selector="spec.clusterIP!=None",
    relevant=relevance.of_service,
    prepare=sharing.share_service,
)

Kind.ENDPOINT_SLICE = Kind(
    name="EndpointSlice",
    api_version="discovery.k8s.io/v1",
    plural="endpointslices",
    wire=EndpointSlice,
    label_selector="!service.kubernetes.io/headless",
    relevant=relevance.of_slice,
    prepare=sharing.share_slice,
)

Kind.NODE = Kind(name="Node", api_version="v1", plural="nodes", wire=Node, own_node=True)

Kind.SERVICE_CIDR = Kind(
    name="ServiceCIDR",
    api_version="networking.k8s.io/v1",
    plural="servicecidrs",
    wire=ServiceCIDR,
    loss=Loss(
        "cluster IPs that no service has are routed on",
        since="1.33",
        instead="name the ranges with --service-cidr",
    ),
    defects=service_cidrs.problems_of,
)
"""In the API since Kubernetes 1.33 (KEP-1880)."""

_UNENFORCED = Loss(
    "NetworkPolicies are not enforced, but for those that a former process enforced",
    instead="grant the rights of manifests/components/network-policy, or set --network-policy=false",
)
_LIVE = "status.phase!=Succeeded,status.phase!=Failed"

Kind.POD = Kind(
    name="Pod",
    api_version="v1",
    plural="pods",
    wire=Pod,
    field_selector=f"spec.hostNetwork=false,{_LIVE}",
    simpler_field_selectors=(_LIVE, ""),
    loss=_UNENFORCED,
    for_policies=True,
    relevant=relevance.of_pod,
    prepare=sharing_policies.share_pod,
)
"""The field label spec.hostNetwork is known since Kubernetes 1.28."""

Kind.NAMESPACE = Kind(
    name="Namespace",
    api_version="v1",
    plural="namespaces",
    wire=Namespace,
    loss=_UNENFORCED,
    for_policies=True,
    prepare=sharing_policies.share_namespace,
)

Kind.NETWORK_POLICY = Kind(
    name="NetworkPolicy",
    api_version="networking.k8s.io/v1",
    plural="networkpolicies",
    wire=NetworkPolicy,
    loss=_UNENFORCED,
    for_policies=True,
    prepare=sharing_policies.own_spec,
)

POLICY_KINDS = (Kind.POD, Kind.NAMESPACE, Kind.NETWORK_POLICY)
"""The kinds that NetworkPolicies are made of."""

KINDS = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE, Kind.SERVICE_CIDR, *POLICY_KINDS)
"""Every kind. Selectors of services are kube-proxy's (cmd/kube-proxy/app/server.go)."""
