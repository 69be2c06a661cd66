"""The class of a case, and helpers to write cases."""

from dataclasses import dataclass
from typing import Any

from tests.peer.contenders import NEWEST, Version
from tests.peer.objects import JSON, Ep, service, slices, vips

NODE_IPS = ["192.168.100.10", "fd00:192:168:100::10"]
CLIENTS = ["192.0.2.10/32", "2001:db8:1::10/128"]
"""The outside client's first address; its last one is not among them."""
PODS = ["10.244.0.0/16", "fd00:10:244::/56"]


@dataclass(frozen=True, slots=True)
class Step:
    """Objects that are written, and then those that are deleted, as (kind, name)."""

    write: tuple[JSON, ...] = ()
    delete: tuple[tuple[str, str], ...] = ()
    validate: bool = True


@dataclass(frozen=True, slots=True)
class Case:
    """A history of steps; `since`: the first version of kube-proxy that supports the feature.

    From the version `until` on, the outcome of kube-proxy is random.
    """

    name: str
    steps: tuple[Step, ...]
    since: Version = (1, 0)
    until: Version = NEWEST

    def __str__(self) -> str:
        return self.name


def write(*objects: JSON | list[JSON]) -> Step:
    """A step that writes objects, checked and completed as the API server does."""
    flat = [each for one in objects for each in (one if isinstance(one, list) else [one])]
    return Step(tuple(flat))


def raw(*objects: JSON | list[JSON]) -> Step:
    """A step that writes objects without validation."""
    return Step(write(*objects).write, validate=False)


def delete(kind: str, *names: str) -> Step:
    """A step that deletes objects of one kind."""
    return Step(delete=tuple((kind, name) for name in names))


def case(name: str, *steps: Step, since: Version = (1, 0), until: Version = NEWEST) -> Case:
    """A case."""
    return Case(name, steps, since, until)


LOCAL: JSON = {"externalTrafficPolicy": "Local"}
EVERYWHERE = slices("web", "local-0", "local-1", "remote-0")


def balancer(*ports: JSON, name: str = "web", number: int = 10, **spec: Any) -> JSON:
    """A load balancer with an address of each family."""
    ingress = [{"ip": ip} for ip in vips(number)]
    return service(name, *ports, type="LoadBalancer", ingress=ingress, **spec)


def unready(place: str) -> Ep:
    """An endpoint that is not ready."""
    return Ep(place, ready=False)


def leaving(place: str) -> Ep:
    """An endpoint that terminates and still serves."""
    return Ep(place, ready=False, serving=True, terminating=True)
