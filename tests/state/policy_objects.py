"""Pods, Namespaces and NetworkPolicies as the API has them, and decoded as sources decode them."""

from typing import Any

import msgspec

from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod

Json = dict[str, Any]


def pod_json(name: str, ip: str = "10.1.0.1", *, namespace: str = "shop", **fields: Any) -> Json:
    """`fields`: labels, uid, ip6; node, hostNetwork, containers; phase. Others are of no use to policies."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": fields.get("uid", f"uid-{name}"),
            "resourceVersion": fields.get("version", "1"),
            "labels": fields.get("labels", {"app": "web"}),
            "annotations": {"a": "b" * 100},
        },
        "spec": {
            "nodeName": fields.get("node", "n1"),
            "hostNetwork": fields.get("hostNetwork", False),
            "containers": fields.get("containers", [{"name": "c", "ports": [{"containerPort": 80}]}]),
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
        "status": {
            "phase": fields.get("phase", "Running"),
            "podIP": ip,
            "podIPs": [{"ip": each} for each in (ip, fields.get("ip6", "")) if each],
            "conditions": fields.get("conditions", []),
        },
    }


def pod(name: str, ip: str = "10.1.0.1", **fields: Any) -> Pod:
    found = decode(Kind.POD, msgspec.json.encode(pod_json(name, ip, **fields)))
    assert isinstance(found, Pod)
    return found


def namespace(name: str = "shop", **labels: str) -> Namespace:
    found = decode(Kind.NAMESPACE, msgspec.json.encode({"metadata": {"name": name, "labels": labels}}))
    assert isinstance(found, Namespace)
    return found


def policy(name: str, spec: object = None, *, namespace: str = "shop") -> NetworkPolicy:
    """`spec` None: the object has none."""
    metadata = {"name": name, "namespace": namespace}
    plain: Json = {"metadata": metadata} | ({} if spec is None else {"spec": spec})
    found = decode(Kind.NETWORK_POLICY, msgspec.json.encode(plain))
    assert isinstance(found, NetworkPolicy)
    return found
