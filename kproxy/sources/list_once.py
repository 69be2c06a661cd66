"""List all objects of an API server once, without a watch."""

import threading
from collections.abc import Collection, Iterable, Sequence

from kproxy.sources.cluster import ClusterAccess
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import StatusError
from kproxy.sources.listing import UNAVAILABLE, Resource, Snapshot, after_refusal, list_paged, resources
from kproxy.sources.manifests import LoadedManifests
from kproxy.sources.transport import Transport
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import WireObject


def list_once(
    access: ClusterAccess,
    node: str,
    config: KubernetesSourceConfig | None = None,
    *,
    kinds: Iterable[Kind] = KINDS,
) -> LoadedManifests:
    """List the objects of `kinds`; of optional kinds that the server does not have or refuses there is none.

    Those of them that are for NetworkPolicies are left out: no object would mean that all pods are open.
    Raises ClusterAccessError if the configuration cannot be used, ApiError if a list fails.
    """
    config = config or KubernetesSourceConfig()
    transport = Transport(access, config.transport)
    kinds = tuple(kinds)
    taken = _Collector(kinds)
    try:
        transport.load()
        for resource in resources(node, kinds):
            try:
                snapshot = _listed(transport, resource, config)
            except StatusError as error:
                if resource.kind.required or error.code not in UNAVAILABLE:
                    raise
                if resource.kind.for_policies:
                    del taken.objects[resource.kind]
                continue
            snapshot.deliver(taken)
        servers = transport.servers
    finally:
        transport.close()
    return LoadedManifests(taken.objects, tuple(taken.problems), servers)


def _listed(transport: Transport, resource: Resource, config: KubernetesSourceConfig) -> Snapshot:
    """One complete list, with simpler selectors where the server does not know the others."""
    while True:
        try:
            return list_paged(transport, resource, config, threading.Event())[0]
        except StatusError as error:
            if (simpler := after_refusal(resource, error)) is None:
                raise
            resource = simpler


class _Collector:
    """Collects the delivered lists (implements ListSink)."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.objects: dict[Kind, tuple[WireObject, ...]] = dict.fromkeys(kinds, ())
        self.problems: list[Problem] = []

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:  # noqa: ARG002
        self.objects[kind] = tuple(objects)
        self.problems += [problem for obj in objects for problem in kind.problems_of(obj)]

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:  # noqa: ARG002
        self.problems.append(problem)
