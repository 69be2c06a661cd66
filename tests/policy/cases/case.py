"""One row of the truth table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kproxy_lab.lab import Pod
from tests.policy import objects
from tests.policy.objects import JSON


@dataclass(frozen=True, slots=True)
class PodChange:
    """A pod that stands in place of, or beside, those of the cluster.

    It has the address of the pod `at` ("": its own; None: none yet); labels and ports are its own by default.
    `more` are further arguments of `objects.pod`, `spec` and `status` further fields.
    """

    key: str
    at: str | None = ""
    labels: Mapping[str, str] | None = None
    ports: Mapping[str, int] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)

    def build(self, pods: Mapping[str, Pod]) -> JSON:
        """The object; `pods` are the lab's by key."""
        place = objects.PLACES.get(self.key) or objects.PLACES[self.at or "shop/bare"]
        labels = place.labels if self.labels is None else self.labels
        ports = place.ports if self.ports is None else self.ports
        at = None if self.at is None else pods[self.at or self.key]
        made = objects.pod(self.key, at, labels, ports, **self.more)
        made["spec"] |= self.spec
        made["status"] |= self.status
        return made


@dataclass(frozen=True, slots=True)
class Case:
    """Policies (specs in YAML, by `namespace/name`), and the flows that must pass (+) and must not (-).

    `points` are the numbers of the semantics in docs/network-policy.md. `objects` stand in place of those of
    the cluster, `gone` (kind, namespace, name) are missing. `core` cases run from manifests too, those that `only`
    manifests can show (an API server deletes the objects of a deleted Namespace) not from an API server.
    """

    name: str
    points: tuple[int, ...]
    policies: Mapping[str, str]
    flows: str
    objects: Sequence[JSON | PodChange] = ()
    gone: Sequence[tuple[str, str, str]] = ()
    core: bool = False
    only: bool = False

    def __str__(self) -> str:
        return self.name

    def build(self, pods: Mapping[str, Pod]) -> list[JSON]:
        """Its objects, policies last."""
        changed = [each.build(pods) if isinstance(each, PodChange) else each for each in self.objects]
        return changed + [objects.policy(key, spec) for key, spec in self.policies.items()]
