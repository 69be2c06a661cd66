"""Clusters for explanations: objects as the API sends them, on a node that is described, not asked."""

from collections.abc import Sequence
from typing import Any

from kproxy.config.model import ProxyConfig
from kproxy.inspect.explain.desired import explain_desired
from kproxy.inspect.explain.offline import ReadCluster, StaticRouting
from kproxy.inspect.explain.question import read_question
from kproxy.inspect.explain.report import Report
from kproxy.inspect.objects import facts_of
from kproxy.modes.registry import mode_registry
from kproxy.state.decode import decode
from kproxy.state.kinds import POLICY_KINDS, Kind
from kproxy.state.tables import Tables
from kproxy.state.wire import WireObject
from tests.builders import Json, endpoint, raw

NODE_IP, NODE_IP6 = "192.168.0.2", "fd00:168::2"
PODS = "10.244.0.0/16"
OUTSIDER = "203.0.113.9"

NODE: Json = {
    "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
    "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in (NODE_IP, NODE_IP6)]},
}


def pod(ip: str, name: str, node: str = "node1", **fields: Any) -> Json:
    """A ready endpoint that names its pod."""
    return endpoint(ip, node=node, **fields) | {"targetRef": {"kind": "Pod", "name": name}}


def cluster(
    objects: Sequence[Json],
    mode: str = "iptables",
    policies: Sequence[WireObject] = (),
    node_ips: Sequence[str] = (NODE_IP, NODE_IP6),
    **settings: Any,
) -> ReadCluster:
    """A cluster of Services and EndpointSlices (those with `addressType`).

    `policies` are Pods, Namespaces and NetworkPolicies. `node_ips` are the addresses of the node.
    """
    settings = {"cluster_cidrs": (PODS, "fd00:1::/64")} | settings
    config = ProxyConfig(node_name="node1", proxy_mode=mode, **settings)
    slices = [each for each in objects if "addressType" in each]
    services = [each for each in objects if "addressType" not in each]
    tables = Tables()
    for kind, of_kind in ((Kind.NODE, [NODE]), (Kind.SERVICE, services), (Kind.ENDPOINT_SLICE, slices)):
        tables.replace(kind, [decode(kind, raw(each)) for each in of_kind])
    for kind in POLICY_KINDS:
        tables.replace(kind, [each for each in policies if isinstance(each, kind.wire)])
    facts = facts_of(config, tables, node_ips, [])
    routing = StaticRouting(node_ips, facts.view.addresses)
    return ReadCluster(config, mode_registry().spec(config), tables, facts, routing)


def explain(known: ReadCluster, source: str, destination: str, protocol: str = "tcp") -> Report:
    """What is desired."""
    return explain_desired(read_question(source, protocol, destination), known)
