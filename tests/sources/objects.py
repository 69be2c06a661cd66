"""Plain JSON objects as an API server holds them."""

import json
from pathlib import Path
from typing import Any

import yaml


def service(name: str, ip: str = "10.96.0.1", port: int = 80, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": port, "protocol": "TCP", "targetPort": 8080}],
        },
    }


def endpoint_slice(owner: str, addresses: list[str], name: str = "", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{owner}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": owner, **labels},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def node(name: str, zone: str = "z1") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }


def write(path: Path, *objects: object) -> None:
    """Write a file as editors and kubelet do: complete, then moved into place."""
    new = path.with_name(f".{path.name}.new")
    if path.suffix == ".json":
        new.write_text("\n".join(map(json.dumps, objects)))
    else:
        new.write_text(yaml.safe_dump_all(objects))
    new.replace(path)
