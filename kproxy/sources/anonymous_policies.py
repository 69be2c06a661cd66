"""Replace names and addresses in Pods, Namespaces and NetworkPolicies; selectors select the same as before.

Labels are replaced by key and by value, the same everywhere; keys of Kubernetes' own domains stay. A spec of
a NetworkPolicy may be of any shape, because one that cannot be understood is recorded too.
"""

from typing import Any, Protocol

Json = Any

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""The label of a Namespace that has its name (KEP-2161)."""

_WORDS = frozenset(
    (
        *("TCP", "UDP", "SCTP", "Ingress", "Egress", "In", "NotIn", "Exists", "DoesNotExist"),
        *("Pending", "Running", "Succeeded", "Failed", "Unknown", "Always", "OnFailure", "Never"),
    )
)
_OWN_DOMAINS = ("kubernetes.io", "k8s.io")


class Names(Protocol):
    """What replaces names and addresses."""

    def name(self, what: str, text: str) -> str:
        """Replace a name of this sort."""

    def address(self, text: str) -> str:
        """Replace an address or a CIDR."""


def replaced_part(value: Json, names: Names, field: str = "") -> Json:
    """Replace names in the value of a field of one of these objects; "": in the whole object.

    `metadata.name` and `metadata.namespace` are left to the caller.
    """
    if isinstance(value, dict):
        return _replaced_mapping(value, names, field)
    if isinstance(value, list):
        return [replaced_part(each, names, field) for each in value]
    return _text(field, value, names) if isinstance(value, str) else value


def _replaced_mapping(value: dict[str, Json], names: Names, field: str) -> Json:
    if field in ("labels", "matchLabels"):
        return {_key(key, names): _value(key, each, names) for key, each in value.items()}
    if field == "metadata":
        kept = {key: each for key, each in value.items() if key in ("name", "namespace")}
        return kept | {key: replaced_part(each, names, key) for key, each in value.items() if key not in kept}
    if isinstance(key := value.get("key"), str):
        values = value.get("values")
        new = {name: replaced_part(each, names, name) for name, each in value.items()}
        if isinstance(values, list):
            new["values"] = [_value(key, each, names) for each in values]
        return new
    return {name: replaced_part(each, names, name) for name, each in value.items()}


def _text(field: str, text: str, names: Names) -> str:
    if not text:
        return text
    match field:
        case "podIP" | "ip" | "cidr" | "except":
            return names.address(text)
        case "nodeName":
            return names.name("node", text)
        case "name" | "port":
            return names.name("port", text)
        case "uid":
            return names.name("uid", text)
        case "key":
            return _key(text, names)
        case "creationTimestamp" | "deletionTimestamp":
            return text
    return text if text in _WORDS else "unknown"


def _key(key: str, names: Names) -> str:
    domain = key.partition("/")[0] if "/" in key else ""
    if any(domain == own or domain.endswith(f".{own}") for own in _OWN_DOMAINS):
        return key
    return names.name("label", key)


def _value(key: str, value: Json, names: Names) -> Json:
    if not isinstance(value, str) or not value:
        return value
    return names.name("namespace" if key == NAMESPACE_LABEL else "value", value)
