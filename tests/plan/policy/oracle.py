"""A naive judge of flows, written from the text of the API and from plain objects, for comparison.

It shares no code with the product: it looks at every pod and policy for every flow.
"""

import ipaddress
from typing import Any

Json = dict[str, Any]


def selected(selector: Json | None, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector that is given selects these labels."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions") or []:
        has, value = each["key"] in labels, labels.get(each["key"])
        meets = {
            "In": has and value in (each.get("values") or []),
            "NotIn": not has or value not in (each.get("values") or []),
            "Exists": has,
            "DoesNotExist": not has,
        }
        if not meets[each["operator"]]:
            return False
    return True


class Oracle:
    """Knows all objects of a cluster; no two pods may have one address."""

    def __init__(self, pods: list[Json], namespaces: list[Json], policies: list[Json], node: str) -> None:
        self.pods, self.policies, self.node = pods, policies, node
        self.labels = {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in namespaces}

    def holder(self, ip: str) -> Json | None:
        """The pod with an address of its own."""
        for pod in self.pods:
            if pod["spec"].get("hostNetwork") or pod["status"].get("phase") in ("Succeeded", "Failed"):
                continue
            if ip in [each["ip"] for each in pod["status"].get("podIPs") or []]:
                return pod
        return None

    def allows(self, protocol: str, source: str, destination: str, port: int) -> bool:
        """Whether both ends, as far as they are pods of the node, allow a new connection."""
        return self._end("Egress", source, destination, protocol, destination, port) and self._end(
            "Ingress", destination, source, protocol, destination, port
        )

    def _end(self, kind: str, own: str, other: str, protocol: str, destination: str, port: int) -> bool:
        pod = self.holder(own)
        if pod is None or pod["spec"].get("nodeName") != self.node:
            return True
        isolated = False
        for policy in self.policies:
            spec = policy["spec"]
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            if (
                policy["metadata"]["namespace"] != pod["metadata"]["namespace"]
                or kind not in types
                or not selected(spec.get("podSelector"), pod["metadata"].get("labels") or {})
            ):
                continue
            isolated = True
            for rule in spec.get(kind.lower()) or []:
                peers = rule.get("from" if kind == "Ingress" else "to") or []
                ports = rule.get("ports") or []
                namespace = policy["metadata"]["namespace"]
                if (not peers or any(self._peer(each, other, namespace) for each in peers)) and (
                    not ports or any(self._port(each, protocol, destination, port) for each in ports)
                ):
                    return True
        return not isolated

    def _peer(self, peer: Json, ip: str, own: str) -> bool:
        if peer.get("ipBlock") is not None:
            return self._within(peer["ipBlock"]["cidr"], ip) and not any(
                self._within(each, ip) for each in peer["ipBlock"].get("except") or []
            )
        pod = self.holder(ip)
        if pod is None:
            return False
        namespace = pod["metadata"]["namespace"]
        labels = {**self.labels.get(namespace, {}), "kubernetes.io/metadata.name": namespace}
        if peer.get("namespaceSelector") is None:
            if namespace != own:
                return False
        elif not selected(peer["namespaceSelector"], labels):
            return False
        return peer.get("podSelector") is None or selected(
            peer["podSelector"], pod["metadata"].get("labels") or {}
        )

    def _port(self, entry: Json, protocol: str, destination: str, port: int) -> bool:
        if (entry.get("protocol") or "TCP") != protocol:
            return False
        wanted = entry.get("port")
        if wanted is None:
            return True
        if isinstance(wanted, int):
            return wanted <= port <= (entry.get("endPort") or wanted)
        pod = self.holder(destination)
        if pod is None:
            return False
        spec = pod["spec"]
        sidecars = [
            each for each in spec.get("initContainers") or [] if each.get("restartPolicy") == "Always"
        ]
        return any(
            each.get("name") == wanted
            and (each.get("protocol") or "TCP") == protocol
            and each["containerPort"] == port
            for container in [*(spec.get("containers") or []), *sidecars]
            for each in container.get("ports") or []
        )

    @staticmethod
    def _within(cidr: str, ip: str) -> bool:
        return ipaddress.ip_address(ip) in ipaddress.ip_network(cidr, strict=False)
