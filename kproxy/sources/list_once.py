"""All objects from an API server, listed once and not watched."""

import threading
from collections.abc import Collection, Sequence

from kproxy.sources.cluster import ClusterAccess
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import StatusError
from kproxy.sources.listing import SERVICE_CIDRS, UNAVAILABLE, list_paged, resources
from kproxy.sources.manifests import LoadedManifests
from kproxy.sources.transport import Transport
from kproxy.state.decode import Kind, WireObject
from kproxy.state.problems import Problem
from kproxy.state.service_cidrs import problems_of


def list_once(
    access: ClusterAccess,
    node: str,
    config: KubernetesSourceConfig | None = None,
    *,
    service_cidrs: bool = False,
) -> LoadedManifests:
    """Every Service and EndpointSlice that a proxy asks for, the Node, and ServiceCIDRs if they can be had.

    Raises ClusterAccessError if the configuration cannot be used, ApiError if a list fails.
    """
    config = config or KubernetesSourceConfig()
    transport = Transport(access, config.transport)
    taken = _Collector()
    try:
        transport.load()
        for resource in (*resources(node), *([SERVICE_CIDRS] if service_cidrs else [])):
            try:
                snapshot, _ = list_paged(transport, resource, config, threading.Event())
            except StatusError as error:
                if resource.without is None or error.code not in UNAVAILABLE:
                    raise
                continue
            snapshot.deliver(taken)
        servers = transport.servers
    finally:
        transport.close()
    return LoadedManifests(taken.objects, tuple(taken.problems), servers)


class _Collector:
    """Keeps what is delivered (implements ListSink)."""

    def __init__(self) -> None:
        self.objects: dict[Kind, tuple[WireObject, ...]] = dict.fromkeys(Kind, ())
        self.problems: list[Problem] = []

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:  # noqa: ARG002
        self.objects[kind] = tuple(objects)
        self.problems += [problem for obj in objects for problem in problems_of(obj)]

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:  # noqa: ARG002
        self.problems.append(problem)
