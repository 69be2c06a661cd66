"""List all objects of an API server once, without a watch."""

import threading
from collections.abc import Collection, Iterable, Sequence

from kproxy.sources.cluster import ClusterAccess
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import StatusError
from kproxy.sources.listing import UNAVAILABLE, list_paged, resources
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
    """List the objects of `kinds`; optional kinds that the server does not have or refuses are left out.

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
                snapshot, _ = list_paged(transport, resource, config, threading.Event())
            except StatusError as error:
                if resource.kind.required or error.code not in UNAVAILABLE:
                    raise
                continue
            snapshot.deliver(taken)
        servers = transport.servers
    finally:
        transport.close()
    return LoadedManifests(taken.objects, tuple(taken.problems), servers)


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
