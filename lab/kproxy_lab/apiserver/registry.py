"""Create, update, patch and delete with the server's own rules, over the store.

There are two kinds of writes. Requests over HTTP are treated as by a real server: types and values are
checked, the server owns system metadata, only /status changes the status, no-op writes are dropped.
In-process writes (:meth:`Registry.apply`) are for tests: they may set status, uid and creation time, always
produce an event, and may skip every check.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from kproxy_lab.apiserver.allocation import Allocations
from kproxy_lab.apiserver.defaults import allocate, apply_defaults, keep_allocated
from kproxy_lab.apiserver.errors import JSON, ApiError
from kproxy_lab.apiserver.resources import Resource, ResourceTable
from kproxy_lab.apiserver.selection import Selection
from kproxy_lab.apiserver.store import Entry, Store, make_entry
from kproxy_lab.apiserver.validation import check_types, check_update, check_values

_SYSTEM = ("uid", "creationTimestamp", "generation", "deletionTimestamp")
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"


class Registry:
    """Object lifecycle over a :class:`Store`. Safe to use from any thread."""

    def __init__(self, table: ResourceTable, store: Store, allocations: Allocations) -> None:
        self.table = table
        self.store = store
        self.allocations = allocations

    def get(self, resource: Resource, namespace: str, name: str) -> Entry:
        """Return the current version of an object.

        Raises:
            ApiError: 404.
        """
        entry = self.store.get(resource, resource.key(namespace, name))
        if entry is None:
            raise ApiError.not_found(resource.group, resource.plural, name)
        return entry

    def create(self, resource: Resource, namespace: str, body: object, *, dry_run: bool = False) -> Entry:
        """Create an object from a request body.

        Raises:
            ApiError: 400, 409 AlreadyExists, 422.
        """
        obj = own_copy(check_types(resource, body))
        metadata = obj["metadata"]
        self._place(resource, metadata, namespace)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + "".join(random.choices(_SUFFIX, k=5))
        name = metadata.get("name", "")
        if metadata.get("resourceVersion"):
            raise ApiError.bad_request("resourceVersion should not be set on objects to be created")
        for field in (*_SYSTEM, "managedFields"):
            metadata.pop(field, None)
        if resource.has_status and not resource.keeps_status_on_create:
            obj.pop("status", None)
        with self.store.transaction():
            if name and self.store.get(resource, resource.key(namespace, name)) is not None:
                raise ApiError.already_exists(resource.group, resource.plural, name)
            self._admit(resource, obj, None)
            return self._commit(resource, obj, dry_run=dry_run)

    def update(
        self, resource: Resource, namespace: str, name: str, body: object, *, status: bool = False,
        dry_run: bool = False,
    ) -> Entry:  # fmt: skip
        """Replace an object, or only its status.

        Raises:
            ApiError: 400, 404, 409 on a stale resourceVersion or another uid, 422.
        """
        with self.store.transaction():
            old = self.get(resource, namespace, name)
            return self._replace(old, check_types(resource, body), status=status, dry_run=dry_run)

    def patch(
        self, resource: Resource, namespace: str, name: str, change: Callable[[JSON], Any], *,
        status: bool = False, dry_run: bool = False,
    ) -> Entry:  # fmt: skip
        """Replace an object by ``change(object)``.

        Raises:
            ApiError: as :meth:`update`, and whatever ``change`` raises.
        """
        with self.store.transaction():
            old = self.get(resource, namespace, name)
            body = check_types(resource, change(old.decode()))
            return self._replace(old, body, status=status, dry_run=dry_run)

    def delete(self, entry: Entry, preconditions: JSON | None = None, *, dry_run: bool = False) -> bytes:
        """Delete an object and return its last state; one with finalizers is only marked.

        Raises:
            ApiError: 404 when it is gone already, 409 when a precondition does not hold.
        """
        resource = entry.resource
        with self.store.transaction():
            entry = self.get(resource, entry.namespace, entry.name)
            obj = entry.decode()
            for field, wanted in (preconditions or {}).items():
                if wanted and wanted != obj["metadata"].get(field):
                    why = f"the {field} in the precondition ({wanted}) does not match"
                    raise ApiError.conflict(resource.group, resource.plural, entry.name, why)
            if dry_run:
                return entry.body
            metadata = obj.get("metadata")
            if isinstance(metadata, dict) and metadata.get("finalizers"):
                metadata.setdefault("deletionTimestamp", _now())
                return self.store.put(resource, entry.namespace, entry.name, obj).body
            if resource.kind == "Namespace":
                self._empty(entry.name)
            self._remove(entry)
            return entry.body

    def delete_selected(self, resource: Resource, selection: Selection) -> list[Entry]:
        """Delete every selected object and return what was deleted, ordered by key."""
        with self.store.transaction():
            found = [entry for entry in self.store.entries(resource) if entry.matches(selection)]
            for entry in found:
                self.delete(entry)
            return found

    def apply(self, obj: JSON, *, resource: Resource | None = None, validate: bool = True) -> Entry:
        """Create or replace an object in-process; the module docstring lists what this may do.

        With ``validate=False`` nothing is checked, defaulted or allocated: the object is stored as
        it is, apart from its resourceVersion. It needs a name to be stored under, no more.

        Raises:
            ApiError: 400 or 422, only with ``validate``.
            KeyError: the kind is unknown and no ``resource`` is given.
        """
        resource = resource or self.table.of(obj)
        if not validate:
            return self._store_raw(resource, obj)
        obj = own_copy(check_types(resource, obj))
        metadata = obj["metadata"]
        metadata.pop("resourceVersion", None)
        self._place(resource, metadata, metadata.get("namespace") or "default")
        with self.store.transaction():
            key = resource.key(metadata.get("namespace", ""), metadata.get("name", ""))
            entry = self.store.get(resource, key)
            old = entry.decode() if entry is not None else None
            if old is not None and isinstance(old.get("metadata"), dict):
                for field in _SYSTEM:
                    if field in old["metadata"]:
                        metadata.setdefault(field, old["metadata"][field])
                if resource.has_status and "status" in old:
                    obj.setdefault("status", old["status"])
            self._admit(resource, obj, old, immutable=False)
            return self._commit(resource, obj)

    def apply_many(self, objs: Iterable[JSON], *, validate: bool = True) -> int:
        """Apply many objects in one transaction, waking watches once. Returns how many."""
        count = 0
        with self.store.transaction():
            for obj in objs:
                self.apply(obj, validate=validate)
                count += 1
        return count

    def _replace(self, old_entry: Entry, body: JSON, *, status: bool, dry_run: bool) -> Entry:
        resource, old = old_entry.resource, old_entry.decode()
        obj = own_copy(body)
        metadata, old_metadata = obj["metadata"], old["metadata"]
        self._place(resource, metadata, old_entry.namespace)
        if metadata.setdefault("name", old_entry.name) != old_entry.name:
            given = metadata["name"]
            raise ApiError.bad_request(f"the name of the object ({given}) does not match the request")
        stale = metadata.get("resourceVersion") not in (None, "", old_metadata.get("resourceVersion"))
        if stale or metadata.get("uid") not in (None, "", old_metadata.get("uid")):
            why = "the object has been modified; please apply your changes to the latest version"
            raise ApiError.conflict(resource.group, resource.plural, old_entry.name, why)
        if status:
            obj = own_copy({**old, "status": obj.get("status", {})})
            metadata = obj["metadata"]
        elif resource.has_status:
            obj.pop("status", None)
            if "status" in old:
                obj["status"] = old["status"]
        metadata.pop("managedFields", None)
        for field in _SYSTEM:
            metadata.pop(field, None)
            if field in old_metadata:
                metadata[field] = old_metadata[field]
        self._admit(resource, obj, old)
        metadata["resourceVersion"] = old_metadata.get("resourceVersion")
        if obj == old:
            return old_entry
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and not dry_run:
            self._remove(old_entry)
            return old_entry
        return self._commit(resource, obj, dry_run=dry_run)

    def _admit(self, resource: Resource, obj: JSON, old: JSON | None, *, immutable: bool = True) -> None:
        """Default, validate and allocate, in place; fill in what the server owns of metadata."""
        metadata = obj["metadata"]
        owner = resource.key(metadata.get("namespace", ""), metadata.get("name", ""))
        if resource.kind == "Service":
            obj.setdefault("spec", {})
            old_spec = old.get("spec") if old else None
            if isinstance(old_spec, dict):
                keep_allocated(obj["spec"], old_spec)
        apply_defaults(resource, obj)
        check_values(resource, obj, owner, self.allocations)
        if old is not None and immutable:
            check_update(resource, obj, old)
        if resource.kind == "Service":
            allocate(obj["spec"], self.allocations)
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", _now())
        if resource.has_generation:
            before = (old or {}).get("metadata", {}).get("generation", 0)
            changed = old is None or _content(obj) != _content(old)
            metadata["generation"] = before + 1 if changed else before

    def _commit(self, resource: Resource, obj: JSON, *, dry_run: bool = False) -> Entry:
        metadata = obj["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if dry_run:
            return make_entry(resource, namespace, name, obj, self.store.revision)
        entry = self.store.put(resource, namespace, name, obj)
        if resource.kind == "Service":
            self.allocations.record(entry.key, obj["spec"])
        return entry

    def _store_raw(self, resource: Resource, obj: JSON) -> Entry:
        metadata = obj.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
        copy = {**obj, "metadata": dict(metadata)} if isinstance(metadata, dict) else dict(obj)
        with self.store.transaction():
            place = str(namespace or "default") if resource.namespaced else ""
            entry = self.store.put(resource, place, str(name or "unnamed"), copy)
            if resource.kind == "Service":
                self.allocations.record(entry.key, obj.get("spec"))
            return entry

    def _remove(self, entry: Entry) -> None:
        self.store.remove(entry)
        if entry.resource.kind == "Service":
            self.allocations.release(entry.key)

    def _empty(self, namespace: str) -> None:
        for resource in self.table:
            if resource.namespaced:
                self.delete_selected(resource, Selection(namespace=namespace))

    @staticmethod
    def _place(resource: Resource, metadata: JSON, namespace: str) -> None:
        """Settle metadata.namespace from the path; refuse another one in the body."""
        if not resource.namespaced:
            metadata.pop("namespace", None)
        elif (metadata.get("namespace") or namespace) != namespace:
            raise ApiError.bad_request("the namespace of the object does not match the namespace in the path")
        else:
            metadata["namespace"] = namespace


def own_copy(obj: JSON) -> JSON:
    """Copy the parts of an object that defaulting writes to, without nulls; the rest is shared."""
    copy = {field: value for field, value in obj.items() if value is not None}
    for field in ("metadata", "spec", "status"):
        if isinstance(copy.get(field), dict):
            copy[field] = {k: v for k, v in copy[field].items() if v is not None}
    holder = copy["spec"] if isinstance(copy.get("spec"), dict) else copy
    if isinstance(holder.get("ports"), list):
        holder["ports"] = [dict(port) if isinstance(port, dict) else port for port in holder["ports"]]
    return copy


def _content(obj: JSON) -> JSON:
    return {field: value for field, value in obj.items() if field not in ("metadata", "status")}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
