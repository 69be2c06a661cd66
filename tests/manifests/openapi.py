"""Strict decoding of Kubernetes objects, by the models that Kubernetes generates from its OpenAPI schemas.

Unknown fields, missing required ones and values of another type are all reported, each with its path.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml
from kubernetes import client

_LIST = re.compile(r"[Ll]ist\[(.*)\]\Z")
_DICT = re.compile(r"(?:dict\(|Dict\[)str, (.*)[)\]]\Z")
_PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool, "datetime": str, "object": object}

MODELS = {
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("apps/v1", "DaemonSet"): "V1DaemonSet",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
}


class _Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    pass


class Meta(_Strict):
    name: str
    namespace: str | None = None
    labels: dict[str, str] = {}


class Relabeling(_Strict):
    target_label: str
    source_labels: list[str] = []
    replacement: str | None = None


class Endpoint(_Strict):
    port: str
    path: str = "/metrics"
    interval: str | None = None
    relabelings: list[Relabeling] = []


class Selector(_Strict):
    match_labels: dict[str, str]


class PodMonitorSpec(_Strict):
    selector: Selector
    pod_metrics_endpoints: list[Endpoint]


class PodMonitor(_Strict):
    api_version: str
    kind: str
    metadata: Meta
    spec: PodMonitorSpec


class Alert(_Strict):
    alert: str
    expr: str
    for_: str = msgspec.field(name="for")
    labels: dict[str, str]
    annotations: dict[str, str]


class Group(_Strict):
    name: str
    rules: list[Alert]


class RuleSpec(_Strict):
    groups: list[Group]


class PrometheusRule(_Strict):
    api_version: str
    kind: str
    metadata: Meta
    spec: RuleSpec


CUSTOM: dict[tuple[str, str], type] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
}


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def problems(obj: dict[str, Any]) -> list[str]:
    """All that is wrong with an object; empty for one that the API would take."""
    key = obj["apiVersion"], obj["kind"]
    if (custom := CUSTOM.get(key)) is not None:
        try:
            msgspec.convert(obj, custom)
        except msgspec.ValidationError as error:
            return [str(error)]
        return []
    return _check(obj, MODELS[key], obj["kind"])


def _check(value: Any, kind: str, path: str) -> list[str]:
    if (inner := _LIST.match(kind)) is not None:
        if not isinstance(value, list):
            return [f"{path}: not a list"]
        return [each for n, item in enumerate(value) for each in _check(item, inner[1], f"{path}[{n}]")]
    if (inner := _DICT.match(kind)) is not None:
        if not isinstance(value, dict):
            return [f"{path}: not a map"]
        return [each for key, item in value.items() for each in _check(item, inner[1], f"{path}.{key}")]
    if kind in _PLAIN:
        fits = isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
        return [] if fits else [f"{path}: {value!r} is not {kind}"]
    model = getattr(client, kind)
    if not isinstance(value, dict):
        return [f"{path}: not a {kind}"]
    attributes = {wire: attribute for attribute, wire in model.attribute_map.items()}
    found = [f"{path}.{field}: unknown field" for field in value if field not in attributes]
    known = {field: item for field, item in value.items() if field in attributes}
    for field, item in known.items():
        found += _check(item, model.openapi_types[attributes[field]], f"{path}.{field}")
    try:
        model(**{attributes[field]: item for field, item in known.items()})
    except ValueError as error:  # pydantic's errors are ValueErrors of many lines
        found.append(f"{path}: {' '.join(str(error).split())}")
    return found


def load(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    return documents(path.read_text())
