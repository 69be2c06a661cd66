"""HTTP request handler over the registry.

Every request takes the same steps: it is recorded, faults are applied, it is authenticated, routed by path
and method to one Kubernetes verb, and answered with JSON. Protobuf bodies are refused with 415, as by a
server that does not know a type's protobuf form; clients then fall back to JSON or give up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from kproxy_lab.apiserver.body import GARBAGE, BodyWriter, CutError, abort, error_of, stall
from kproxy_lab.apiserver.discovery import REVIEW_GROUP, REVIEW_RESOURCE, document
from kproxy_lab.apiserver.errors import JSON, ApiError, success
from kproxy_lab.apiserver.faults import Action, Armed, FaultBook
from kproxy_lab.apiserver.journal import Journal, RequestRecord
from kproxy_lab.apiserver.listing import check_future, list_body, page, parse_options
from kproxy_lab.apiserver.manifests import parse_yaml
from kproxy_lab.apiserver.patch import json_patch, merge_patch
from kproxy_lab.apiserver.registry import Registry
from kproxy_lab.apiserver.resources import Resource
from kproxy_lab.apiserver.strategic import server_side_apply, strategic_merge
from kproxy_lab.apiserver.watch import Hub, WatchStream

APPLY_PATCH = ("application/apply-patch+yaml", "application/apply-patch+json")
_JSON_TYPES = ("application/json", "application/yaml", "", "application/octet-stream")
_NO_SERVER = b"<html><body><h1>503 Service Unavailable</h1>No server is available.</body></html>"
_HEALTH = ("/healthz", "/livez", "/readyz")


class Target(NamedTuple):
    """What a path names. ``resource`` is None for paths outside the table."""

    resource: Resource | None
    namespace: str = ""
    name: str = ""
    subresource: str = ""


class Answer(NamedTuple):
    """A status and an encoded body."""

    code: int
    body: bytes
    headers: dict[str, str] | None = None
    content_type: str = "application/json"


@dataclass(slots=True)
class Settings:
    """Settings that may change while the server runs; read on every request."""

    tokens: set[str] | None = None
    """Accepted bearer tokens; None accepts every request."""
    streamed_lists: bool = True
    bookmark_interval: float = 60.0
    """Seconds between bookmarks of one watch."""


class Handlers:
    """The request handler of one server."""

    def __init__(
        self, registry: Registry, hub: Hub, faults: FaultBook, journal: Journal, settings: Settings
    ) -> None:
        self._registry = registry
        self._hub = hub
        self._faults = faults
        self._journal = journal
        self._settings = settings

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        target = self._route(request.path)
        verb = _verb(request, target)
        plural = target.resource.plural if target.resource else ""
        armed = self._faults.take(plural, verb, request.headers.get("User-Agent", ""))
        try:
            answer = await self._answer(request, target, verb, armed)
        except ApiError as error:
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            answer = Answer(error.code, msgspec.json.encode(error.status()), headers)
        if isinstance(answer, WatchStream):
            self._record(request, target, verb, 200)
            return await answer.run(armed)
        before = armed is not None and armed.fault.action is Action.CLOSE and not armed.fault.after_bytes
        self._record(request, target, verb, 0 if before else answer.code)
        return await self._send(request, answer, armed)

    async def _answer(
        self, request: web.BaseRequest, target: Target, verb: str, armed: Armed | None
    ) -> Answer | WatchStream:
        if armed is not None and armed.fault.action is Action.STATUS:
            raise error_of(armed.fault)
        if armed is not None and armed.fault.action is Action.GATEWAY:
            return Answer(armed.fault.code, _NO_SERVER, content_type="text/html")
        self._authenticate(request)
        if target.resource is None:
            return await self._plain(request)
        accept = request.headers.get("Accept", "*/*")
        if not any(known in accept for known in ("json", "*/*", "application/*")):
            raise ApiError(406, "only the following media types are accepted: application/json")
        if verb in ("get", "list", "watch"):
            return self._read(request, target, target.resource, verb)
        return await self._write(request, target, target.resource, verb)

    async def _plain(self, request: web.BaseRequest) -> Answer:
        """Answer paths that are not stored resources."""
        if request.path in _HEALTH:
            return Answer(200, b"ok", content_type="text/plain")
        if request.path == f"/apis/{REVIEW_GROUP}/v1/{REVIEW_RESOURCE}" and request.method == "POST":
            review = await _body(request)
            return Answer(201, msgspec.json.encode({**review, "status": {"allowed": True}}))
        found = document(request.path, self._registry.table) if request.method == "GET" else None
        if found is None:
            raise ApiError.no_such_path()
        return Answer(200, msgspec.json.encode(found))

    def _read(
        self, request: web.BaseRequest, target: Target, resource: Resource, verb: str
    ) -> Answer | WatchStream:
        store = self._registry.store
        options = parse_options(
            request.query, resource, target.namespace,
            name=target.name if verb == "watch" else "", streamed_lists=self._settings.streamed_lists,
        )  # fmt: skip
        if verb in ("watch", "get"):
            check_future(store, options.revision)
        if verb == "watch":
            interval = self._settings.bookmark_interval
            return WatchStream(self._hub, self._faults, request, resource, options, interval)
        if verb == "get":
            return Answer(200, self._registry.get(resource, target.namespace, target.name).body)
        return Answer(200, list_body(resource, page(store, resource, options)))

    async def _write(self, request: web.BaseRequest, target: Target, resource: Resource, verb: str) -> Answer:
        registry, (_, namespace, name, subresource) = self._registry, target
        dry_run = "dryRun" in request.query
        status = subresource == "status"
        match verb:
            case "create":
                entry = registry.create(resource, namespace, await _body(request), dry_run=dry_run)
                return Answer(201, entry.body)
            case "update":
                body = await _body(request)
                entry = registry.update(resource, namespace, name, body, status=status, dry_run=dry_run)
                return Answer(200, entry.body)
            case "patch":
                return await self._patch(request, target, resource, dry_run=dry_run)
            case "delete":
                body = await _body(request, optional=True)
                entry = registry.get(resource, namespace, name)
                last = registry.delete(entry, body.get("preconditions"), dry_run=dry_run)
                if resource.returns_deleted:
                    return Answer(200, last)
                uid = msgspec.json.decode(last).get("metadata", {}).get("uid", "")
                details = {"name": name, "group": resource.group, "kind": resource.plural, "uid": uid}
                return Answer(200, msgspec.json.encode(success(details)))
            case "deletecollection":
                await _body(request, optional=True)
                options = parse_options(
                    request.query, resource, namespace, streamed_lists=self._settings.streamed_lists
                )
                found = registry.delete_selected(resource, options.selection)
                revision = registry.store.revision
                listed = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version,
                          "metadata": {"resourceVersion": str(revision)},
                          "items": [msgspec.Raw(entry.body) for entry in found]}  # fmt: skip
                return Answer(200, msgspec.json.encode(listed))
        raise ApiError(405, "the server does not allow this method on the requested resource")

    async def _patch(
        self, request: web.BaseRequest, target: Target, resource: Resource, *, dry_run: bool
    ) -> Answer:
        media = request.content_type
        patch = _decode(await request.read(), yaml_too=media == APPLY_PATCH[0])
        change = _patcher(media, resource.kind, patch)
        registry, status = self._registry, target.subresource == "status"
        with registry.store.transaction():
            if media in APPLY_PATCH:
                missing = registry.store.get(resource, resource.key(target.namespace, target.name)) is None
                if missing and isinstance(patch, dict):
                    patch.setdefault("metadata", {}).setdefault("name", target.name)
                    entry = registry.create(resource, target.namespace, patch, dry_run=dry_run)
                    return Answer(201, entry.body)
            entry = registry.patch(
                resource, target.namespace, target.name, change, status=status, dry_run=dry_run
            )
        return Answer(200, entry.body)

    def _authenticate(self, request: web.BaseRequest) -> None:
        tokens = self._settings.tokens
        if tokens is None or request.path in _HEALTH:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip() in tokens:
            return
        if request.transport is not None and request.transport.get_extra_info("peercert"):
            return
        raise ApiError(401, "Unauthorized")

    async def _send(
        self, request: web.BaseRequest, answer: Answer, armed: Armed | None
    ) -> web.StreamResponse:
        headers = {"Content-Type": answer.content_type, **(answer.headers or {})}
        action = armed.fault.action if armed is not None else None
        if armed is None or action in (Action.STATUS, Action.GATEWAY, Action.WATCH_ERROR):
            return web.Response(status=answer.code, body=answer.body, headers=headers)
        if action is Action.GARBAGE:
            return web.Response(status=answer.code, body=GARBAGE, headers=headers)
        if action is Action.TRUNCATE:
            cut = web.Response(
                status=answer.code, body=answer.body[: armed.fault.after_bytes], headers=headers
            )
            cut.force_close()
            return cut
        if not armed.fault.after_bytes:
            if action is Action.CLOSE:
                abort(request)
                return web.Response()
            if action is Action.STALL:
                await stall(armed, self._hub.wakers.listening)
                return web.Response(status=answer.code, body=answer.body, headers=headers)
        response = web.StreamResponse(status=answer.code, headers=headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        body = BodyWriter(request, response, self._hub.wakers.listening)
        try:
            await body.strike(armed)
            await body.send(answer.body)
            await response.write_eof()
        except (CutError, ConnectionError):
            abort(request)
        return response

    def _record(self, request: web.BaseRequest, target: Target, verb: str, status: int) -> None:
        self._journal.add(
            RequestRecord(
                method=request.method,
                path=request.path,
                query=dict(request.query),
                user_agent=request.headers.get("User-Agent", ""),
                status=status,
                verb=verb,
                resource=target.resource.plural if target.resource else "",
                at=time.monotonic(),
                headers={k: v for k, v in request.headers.items() if k.lower() != "authorization"},
            )
        )

    def _route(self, path: str) -> Target:
        table = self._registry.table
        match [step for step in path.split("/") if step]:
            case ["api", version, *rest]:
                group = ""
            case ["apis", group, version, *rest]:
                pass
            case _:
                return Target(None)
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces" and table.at(group, version, rest[2]) is not None:
            namespace, rest = rest[1], rest[2:]
        if not 1 <= len(rest) <= 3 or (len(rest) == 3 and rest[2] != "status"):
            return Target(None)
        plural, name, subresource = (*rest, "", "")[:3]
        resource = table.at(group, version, plural)
        if resource is None or (subresource and not resource.has_status):
            return Target(None)
        if (namespace and not resource.namespaced) or (name and resource.namespaced and not namespace):
            return Target(None)
        return Target(resource, namespace, name, subresource)


def _verb(request: web.BaseRequest, target: Target) -> str:
    """Return Kubernetes' verb for a request, or the method in lower case for other paths."""
    if target.resource is None:
        return request.method.lower()
    if request.method == "GET":
        if request.query.get("watch", "").lower() in ("1", "true"):
            return "watch"
        return "get" if target.name else "list"
    named = {"PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    unnamed = {"POST": "create", "DELETE": "deletecollection"}
    return (named if target.name else unnamed).get(request.method, "")


def _patcher(media: str, kind: str, patch: Any) -> Callable[[JSON], Any]:
    if media == "application/json-patch+json":
        return lambda obj: json_patch(obj, patch)
    if not isinstance(patch, dict):
        raise ApiError.bad_request("the patch is not an object")
    if media == "application/merge-patch+json":
        return lambda obj: merge_patch(obj, patch)
    if media == "application/strategic-merge-patch+json":
        return lambda obj: strategic_merge(kind, obj, patch)
    if media in APPLY_PATCH:
        return lambda obj: server_side_apply(kind, obj, patch)
    raise ApiError(415, f"the body of the request was in an unknown format: {media}")


async def _body(request: web.BaseRequest, *, optional: bool = False) -> JSON:
    """Return the request's body as an object; with ``optional`` an empty one is fine.

    Raises:
        ApiError: 400, 415.
    """
    media = request.content_type if "Content-Type" in request.headers else ""
    if media not in _JSON_TYPES:
        raise ApiError(415, f"the body of the request was in an unknown format: {media}")
    raw = await request.read()
    if optional and not raw.strip():
        return {}
    body = _decode(raw, yaml_too=media == "application/yaml")
    if not isinstance(body, dict):
        raise ApiError.bad_request("the body of the request is not an object")
    return body


def _decode(raw: bytes, *, yaml_too: bool) -> Any:
    try:
        return parse_yaml(raw)[0] if yaml_too else msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise ApiError.bad_request(f"the body of the request cannot be parsed: {error}") from error
