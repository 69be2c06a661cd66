"""The table of kinds the embedded API server knows; a new kind is one row.

Everything else (paths, discovery, selectors, status handling) is read from the row, so that no
other module names a kind unless Kubernetes itself treats that kind specially.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One API resource. Compared by identity: rows are made once, in :data:`RESOURCES`."""

    group: str
    version: str
    plural: str
    kind: str
    short_names: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    """Field selectors beyond ``metadata.name`` and ``metadata.namespace``, as dotted paths."""
    field_defaults: Mapping[str, str] = field(default_factory=dict)
    """What a selector compares where an object lacks one of the fields; otherwise it is empty."""
    namespaced: bool = True
    has_status: bool = False
    """Has a /status subresource, so writes to the object itself leave ``.status`` alone."""
    keeps_status_on_create: bool = False
    """Status sent with a create is stored (nodes register themselves with one)."""
    has_generation: bool = False
    """The server counts changes outside metadata and status in ``metadata.generation``."""
    returns_deleted: bool = False
    """A delete answers with the object; other kinds answer with a Status."""
    name_is_label: bool = False
    """Names are DNS labels (63 characters, no dots); other kinds take DNS subdomains."""
    zero: Mapping[str, Any] = field(default_factory=dict)
    """What an empty object of this kind carries on the wire beside metadata (seen in bookmarks)."""

    @property
    def api_version(self) -> str:
        """Return ``v1`` or ``group/version``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Return the path prefix of the group version, such as ``/apis/discovery.k8s.io/v1``."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def selectable(self) -> tuple[str, ...]:
        """Return every field label this resource can be selected by."""
        return ("metadata.name", "metadata.namespace", *self.fields)

    def key(self, namespace: str, name: str) -> str:
        """Return the storage key, which is also the list order: ``namespace/name`` or ``name``."""
        return f"{namespace}/{name}" if self.namespaced else name


RESOURCES: tuple[Resource, ...] = (
    Resource(
        "", "v1", "services", "Service", ("svc",), ("spec.clusterIP", "spec.type"),
        has_status=True, returns_deleted=True, name_is_label=True,
        zero={"spec": {}, "status": {"loadBalancer": {}}},
    ),
    Resource(
        "", "v1", "nodes", "Node", ("no",), ("spec.unschedulable",), namespaced=False,
        has_status=True, keeps_status_on_create=True, zero={"spec": {}, "status": {}},
    ),
    Resource(
        "", "v1", "namespaces", "Namespace", ("ns",), ("status.phase",), namespaced=False,
        has_status=True, returns_deleted=True, name_is_label=True, zero={"spec": {}, "status": {}},
    ),
    Resource(
        "", "v1", "pods", "Pod", ("po",),
        ("spec.nodeName", "spec.hostNetwork", "status.phase", "status.podIP"),
        field_defaults={"spec.hostNetwork": "false"},
        has_status=True, has_generation=True, returns_deleted=True,
        zero={"spec": {"containers": None}, "status": {}},
    ),
    Resource("", "v1", "configmaps", "ConfigMap", ("cm",)),
    Resource(
        "", "v1", "events", "Event", ("ev",),
        ("type", "reason", "involvedObject.kind", "involvedObject.name", "involvedObject.namespace"),
    ),
    Resource(
        "events.k8s.io", "v1", "events", "Event", ("ev",),
        ("type", "reason", "regarding.kind", "regarding.name", "regarding.namespace"),
    ),
    Resource(
        "discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", (),
        has_generation=True, zero={"addressType": "", "endpoints": None, "ports": None},
    ),
    Resource(
        "networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR", (), namespaced=False,
        has_status=True, zero={"spec": {"cidrs": None}, "status": {}},
    ),
    Resource(
        "networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", ("netpol",),
        has_generation=True, zero={"spec": {"podSelector": {}}},
    ),
)  # fmt: skip
"""Kinds that are stored. Field labels are those of 1.36 that clients of these kinds use."""


class ResourceTable:
    """Lookups over the rows, by path and by the names people use for a kind."""

    def __init__(self, rows: tuple[Resource, ...] = RESOURCES) -> None:
        self.rows = rows
        self._by_path = {(row.group, row.version, row.plural): row for row in rows}
        self._by_name: dict[str, Resource] = {}
        for row in rows:
            for name in (row.kind, row.plural, *row.short_names):
                self._by_name.setdefault(name, row)
                self._by_name[f"{name}.{row.group}"] = row

    def __iter__(self) -> Iterator[Resource]:
        return iter(self.rows)

    def at(self, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource served at a path, or None."""
        return self._by_path.get((group, version, plural))

    def named(self, name: str) -> Resource:
        """Return the resource for ``Service``, ``services``, ``svc`` or ``Event.events.k8s.io``.

        Raises:
            KeyError: no row has that name.
        """
        found = self._by_name.get(name)
        if found is None:
            raise KeyError(f"no resource named {name!r}")
        return found

    def of(self, obj: Mapping[str, Any]) -> Resource:
        """Return the resource an object belongs to by its apiVersion and kind.

        Raises:
            KeyError: the pair is not in the table.
        """
        kind, api_version = obj.get("kind"), obj.get("apiVersion")
        for row in self.rows:
            if row.kind == kind and row.api_version == api_version:
                return row
        raise KeyError(f"no resource for kind {kind!r} in {api_version!r}")

    def group_versions(self) -> dict[str, tuple[str, ...]]:
        """Return the versions of each group, in table order."""
        groups: dict[str, tuple[str, ...]] = {}
        for row in self.rows:
            versions = groups.get(row.group, ())
            if row.version not in versions:
                groups[row.group] = (*versions, row.version)
        return groups
