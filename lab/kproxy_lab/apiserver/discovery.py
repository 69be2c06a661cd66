"""Discovery documents: which groups, versions and resources there are, and the server's version.

Only the plain (unaggregated) documents are served; clients that prefer aggregated ones fall back.
"""

from __future__ import annotations

from kproxy_lab.apiserver.errors import JSON
from kproxy_lab.apiserver.resources import VERBS, Resource, ResourceTable

VERSION: JSON = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2+embedded",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}
"""The release whose behaviour the server follows."""

REVIEW_GROUP = "authorization.k8s.io"
REVIEW_RESOURCE = "selfsubjectaccessreviews"
"""Answered without being stored, so it is no row of the table."""


def document(path: str, table: ResourceTable) -> JSON | None:
    """Return the discovery document at a path, or None if there is none."""
    steps = [step for step in path.split("/") if step]
    groups = {**table.group_versions(), REVIEW_GROUP: ("v1",)}
    match steps:
        case ["version"]:
            return VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": list(groups[""]), "serverAddressByClientCIDRs": []}
        case ["apis"]:
            listed = [_group(name, versions) for name, versions in groups.items() if name]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        case ["api", version] if version in groups[""]:
            return _resources("", version, table)
        case ["apis", group] if group and group in groups:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, groups[group])}
        case ["apis", group, version] if version in groups.get(group, ()):
            return _resources(group, version, table)
    return None


def _group(name: str, versions: tuple[str, ...]) -> JSON:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _resources(group: str, version: str, table: ResourceTable) -> JSON:
    listed: list[JSON] = []
    for row in table:
        if (row.group, row.version) == (group, version):
            listed.append(_resource(row))
            if row.has_status:
                status = {"name": f"{row.plural}/status", "singularName": "", "namespaced": row.namespaced}
                listed.append({**status, "kind": row.kind, "verbs": ["get", "patch", "update"]})
    if group == REVIEW_GROUP:
        kind = "SelfSubjectAccessReview"
        review = {"name": REVIEW_RESOURCE, "singularName": kind.lower(), "namespaced": False, "kind": kind}
        listed.append({**review, "verbs": ["create"]})
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": listed}


def _resource(row: Resource) -> JSON:
    found: JSON = {
        "name": row.plural,
        "singularName": row.kind.lower(),
        "namespaced": row.namespaced,
        "kind": row.kind,
        "verbs": list(VERBS),
    }
    return {**found, "shortNames": list(row.short_names)} if row.short_names else found
