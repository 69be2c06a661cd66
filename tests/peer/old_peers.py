"""The environment that a kube-proxy older than 1.25 needs; a newer one gets none of this.

Up to 1.20 it watches EndpointSlices as discovery.k8s.io/v1beta1, which the embedded API server does not
serve; up to 1.24 it marks packets, and the kubelet's rules drop marked packets (KEP-3178).
"""

from kproxy_lab.apiserver import RESOURCES, ApiServer, Resource, ResourceTable
from kproxy_lab.apiserver.store import Change
from kproxy_lab.lab import Namespace
from tests.peer.objects import JSON

MARK = "0x00008000/0x00008000"
"""The mark of KUBE-MARK-DROP: the kubelet's --iptables-drop-bit, 15 by default."""

_V1BETA1 = Resource("discovery.k8s.io", "v1beta1", "endpointslices", "EndpointSlice")
_V1 = next(row for row in RESOURCES if row.plural == "endpointslices")
_ANY = 1 << 20


def resources() -> ResourceTable:
    """The embedded server's kinds, and EndpointSlice in its beta version; the other version stays first."""
    return ResourceTable((*RESOURCES, _V1BETA1))


class Beta:
    """Keeps a v1beta1 copy of each EndpointSlice up to date, from its construction on."""

    def __init__(self, api: ApiServer) -> None:
        self._registry = api.registry
        self._store = api.store
        self._position = 0
        api.store.subscribe(self._follow)

    def _follow(self) -> None:
        with self._store.transaction():
            changes, _ = self._store.changes(_V1, self._position, _ANY)
            self._position += len(changes)
            for change in changes:
                self._copy(change)

    def _copy(self, change: Change) -> None:
        if change.new is not None:
            self._registry.apply(beta(change.new.decode()), resource=_V1BETA1, validate=False)
        elif change.old is not None:
            copied = self._store.get(_V1BETA1, change.old.key)
            if copied is not None:
                self._registry.delete(copied)


def beta(obj: JSON) -> JSON:
    """A v1 EndpointSlice as v1beta1 has it: the node's name is in the topology, hints are unknown."""
    endpoints = []
    for endpoint in obj.get("endpoints") or ():
        copied = {key: value for key, value in endpoint.items() if key not in {"hints", "zone"}}
        if "nodeName" in copied:
            copied["topology"] = {"kubernetes.io/hostname": copied["nodeName"]}
        endpoints.append(copied)
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    return obj | {"apiVersion": _V1BETA1.api_version, "endpoints": endpoints, "metadata": metadata}


def drop_marked(node: Namespace, variant: str) -> None:
    """Write the rules by which a kubelet older than 1.25 drops what its kube-proxy has marked."""
    rules = (
        "*nat\n:KUBE-MARK-DROP - [0:0]\n"
        f"-A KUBE-MARK-DROP -j MARK --or-mark {MARK.partition('/')[0]}\nCOMMIT\n"
        "*filter\n:KUBE-FIREWALL - [0:0]\n"
        f"-A KUBE-FIREWALL -m mark --mark {MARK} -j DROP\n"
        "-I INPUT -j KUBE-FIREWALL\n-I OUTPUT -j KUBE-FIREWALL\nCOMMIT\n"
    )
    for stem in ("iptables", "ip6tables"):
        node.run([f"{stem}-{variant}-restore", "--noflush"], stdin=rules)
