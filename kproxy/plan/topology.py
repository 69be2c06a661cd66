"""Select the endpoints for each policy by readiness, termination, locality and topology hints.

The criteria are kube-proxy's (pkg/proxy/topology.go; KEP-1669 terminating endpoints, KEP-2433 hints,
KEP-3015 PreferSameZone and PreferSameNode). `reasons` says why the others are not selected, on demand.
"""

import enum
from collections.abc import Sequence

import msgspec

from kproxy.plan.model import EndpointPlan, NodeView


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An endpoint before any policy: its plan, its conditions and its hints."""

    plan: EndpointPlan
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    @property
    def draining(self) -> bool:
        """Serving and terminating: used only if no endpoint is ready."""
        return self.serving and self.terminating


class Usable(msgspec.Struct, frozen=True, gc=False):
    """The selected endpoints; each tuple is ordered by address text."""

    cluster: tuple[EndpointPlan, ...] = ()
    local: tuple[EndpointPlan, ...] = ()
    reachable: tuple[EndpointPlan, ...] = ()
    has_endpoints: bool = False


class Reason(enum.StrEnum):
    """Why an endpoint of a Service gets no connection; the first that applies."""

    FAMILY = "wrong family"
    PORT_NAME = "other port name"
    PORT_NUMBER = "no port number"
    ADDRESS = "address not allowed"
    LIMIT = "limit"
    DUPLICATE = "duplicate"
    NOT_READY = "not ready"
    NOT_SERVING = "not serving"
    TERMINATING = "terminating"
    HINT = "hint"
    LOCAL_POLICY = "Local policy"
    WEIGHT = "weight 0"


class NotSelected(msgspec.Struct, frozen=True, gc=False):
    """A reason, and what it depends on: "zones eu-1b" for a hint."""

    reason: Reason
    detail: str = ""


class _Preference(enum.Enum):
    ANY = enum.auto()
    SAME_NODE = enum.auto()
    SAME_ZONE = enum.auto()


def select(
    candidates: Sequence[Candidate], node: NodeView, *, uses_cluster: bool, uses_local: bool
) -> Usable:
    """Select endpoints for the policies in use. `candidates` are ordered by address text."""
    if not candidates:
        return Usable()
    cluster: tuple[EndpointPlan, ...] = ()
    preference = _Preference.ANY
    if uses_cluster:
        ready = [c for c in candidates if c.ready]
        preference = _preference(ready, node)
        if preference is not _Preference.ANY:
            ready = [c for c in ready if _preferred(c, preference, node)]
        cluster = tuple([c.plan for c in ready])
        if not cluster:
            cluster = tuple(c.plan for c in candidates if c.draining)
    if not uses_local:
        return Usable(cluster, (), cluster, bool(cluster))

    has_endpoints = bool(cluster) or any(c.ready or c.draining for c in candidates)
    local = tuple(c.plan for c in candidates if c.plan.local and c.ready)
    local_is_draining = False
    if not local:
        local = tuple(c.plan for c in candidates if c.plan.local and c.draining and not c.ready)
        local_is_draining = bool(local)
    if not uses_cluster:
        return Usable((), local, local, has_endpoints)
    if preference is _Preference.ANY and not local_is_draining:
        return Usable(cluster, local, cluster, has_endpoints)
    union = {e.address_port: e for e in (*cluster, *local)}
    reachable = tuple(union[text] for text in sorted(union))
    return Usable(cluster, local, reachable, has_endpoints)


def _preference(candidates: Sequence[Candidate], node: NodeView) -> _Preference:
    """Hints count only if every ready endpoint has them and at least one names this node or its zone."""
    ready = [c for c in candidates if c.ready]
    if not ready:
        return _Preference.ANY
    if all(c.nodes for c in ready) and any(node.name in c.nodes for c in ready):
        return _Preference.SAME_NODE
    zone = node.zone or ""
    if all(c.zones for c in ready) and any(zone in c.zones for c in ready):
        return _Preference.SAME_ZONE
    return _Preference.ANY


def _preferred(candidate: Candidate, preference: _Preference, node: NodeView) -> bool:
    if preference is _Preference.SAME_NODE:
        return node.name in candidate.nodes
    if preference is _Preference.SAME_ZONE:
        return (node.zone or "") in candidate.zones
    return True


def reasons(candidates: Sequence[Candidate], node: NodeView, *, local: bool) -> dict[str, NotSelected]:
    """Why `select` passes over candidates under the policy Local or Cluster, by `ip:port`."""
    usable = select(candidates, node, uses_cluster=not local, uses_local=local)
    chosen = {endpoint.address_port for endpoint in (usable.local if local else usable.cluster)}
    preference = _preference([c for c in candidates if c.ready], node)
    return {
        candidate.plan.address_port: _reason(candidate, preference, local=local)
        for candidate in candidates
        if candidate.plan.address_port not in chosen
    }


def _reason(candidate: Candidate, preference: _Preference, *, local: bool) -> NotSelected:
    if not candidate.ready and not candidate.draining:
        if candidate.terminating:
            return NotSelected(Reason.NOT_SERVING, "terminating, and does not serve any more")
        return NotSelected(Reason.NOT_READY)
    if local and not candidate.plan.local:
        return NotSelected(Reason.LOCAL_POLICY, "not on this node")
    if not candidate.ready:
        return NotSelected(Reason.TERMINATING, "ready endpoints exist")
    if preference is _Preference.SAME_NODE:
        return NotSelected(Reason.HINT, f"nodes {', '.join(sorted(candidate.nodes))}")
    return NotSelected(Reason.HINT, f"zones {', '.join(sorted(candidate.zones))}")
