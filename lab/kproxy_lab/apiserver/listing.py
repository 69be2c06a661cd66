"""List and watch options, and pages of a list at one consistent revision.

The table of resourceVersion and resourceVersionMatch follows "Resource versions" in the Kubernetes
API concepts. A continue token names its revision and the next key, so that pages never mix states.
"""

from __future__ import annotations

import base64
import random
from bisect import bisect_right
from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from kproxy_lab.apiserver.errors import JSON, ApiError, Cause
from kproxy_lab.apiserver.resources import Resource
from kproxy_lab.apiserver.selection import Selection, parse_fields, parse_labels
from kproxy_lab.apiserver.store import Entry, Store

MIN_WATCH_SECONDS = 1800
"""A watch without timeoutSeconds ends after this to twice this, as with --min-request-timeout's default."""

_key_of = attrgetter("key")
_TRUE = ("1", "true", "True", "TRUE")


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Query parameters of a list or a watch, checked and typed."""

    selection: Selection
    watch: bool = False
    limit: int = 0
    token: str = ""
    revision: int | None = None
    """None when unset; 0 is "any"."""
    match: str = ""
    timeout: float | None = None
    bookmarks: bool = False
    initial_events: bool | None = None


class Page(NamedTuple):
    """One page of a list: its revision, its entries and where to go on (empty at the end)."""

    revision: int
    entries: list[Entry]
    token: str
    remaining: int | None


class _Token(msgspec.Struct):
    rv: int
    start: str


def parse_options(
    query: Mapping[str, str], resource: Resource, namespace: str, *, name: str = "", streamed_lists: bool
) -> ListOptions:
    """Read the options of a request; ``name`` adds a metadata.name requirement.

    Raises:
        ApiError: 400 for what cannot be parsed, 422 for combinations the real server forbids,
            among them sendInitialEvents when ``streamed_lists`` is off.
    """
    fields = query.get("fieldSelector", "")
    if name:
        fields = f"{fields},metadata.name={name}" if fields else f"metadata.name={name}"
    options = ListOptions(
        selection=Selection(
            namespace, parse_labels(query.get("labelSelector", "")), parse_fields(fields, resource)
        ),
        watch=_flag(query, "watch"),
        limit=_number(query, "limit") or 0,
        token=query.get("continue", ""),
        revision=_number(query, "resourceVersion"),
        match=query.get("resourceVersionMatch", ""),
        timeout=_number(query, "timeoutSeconds"),
        bookmarks=_flag(query, "allowWatchBookmarks"),
        initial_events=_flag(query, "sendInitialEvents") if query.get("sendInitialEvents") else None,
    )
    causes = list(_forbidden(options, streamed_lists=streamed_lists))
    if causes:
        raise ApiError.invalid("meta.k8s.io", "ListOptions", "", causes)
    return options


def watch_seconds(options: ListOptions) -> float:
    """Return how long a watch lasts, in seconds."""
    return options.timeout or MIN_WATCH_SECONDS * (1 + random.random())


def check_future(store: Store, revision: int | None) -> None:
    """Refuse a revision the store has not reached.

    Raises:
        ApiError: 504 "Too large resource version".
    """
    if revision is not None and revision > store.revision:
        raise ApiError.too_large_revision(revision, store.revision)


def page(store: Store, resource: Resource, options: ListOptions) -> Page:
    """Return the page that the options ask for.

    Raises:
        ApiError: 400 for a broken continue token, 410 when its revision (or the exact one asked
            for) is forgotten, 504 for a revision from the future.
    """
    with store.transaction():
        start, revision, limit = "", store.revision, options.limit
        if options.token:
            token = _decode(options.token)
            start = token.start
            revision = token.rv if token.rv >= 0 else revision
        else:
            check_future(store, options.revision)
            exact = options.match == "Exact" or (limit and not options.match)
            if exact and options.revision:
                revision = options.revision
            elif options.revision == 0 and not options.match:
                limit = 0  # served from the watch cache, which does not cut lists into pages
        if revision < store.tables[resource].floor:
            metadata = {"continue": _encode(-1, start)} if options.token else None
            raise ApiError.expired("the revision to list at is too old", metadata=metadata)
        entries = store.tables[resource].at(revision)
    first = bisect_right(entries, start, key=_key_of) if start else 0
    selection = options.selection
    everything = not selection.is_filtered and not selection.namespace
    if not limit:
        tail = entries[first:] if first else entries
        return Page(revision, tail if everything else [e for e in tail if e.matches(selection)], "", None)
    found: list[Entry] = []
    for at in range(first, len(entries)):
        if not everything and not entries[at].matches(selection):
            continue
        if len(found) == limit:
            remaining = len(entries) - at if everything else None
            return Page(revision, found, _encode(revision, found[-1].key), remaining)
        found.append(entries[at])
    return Page(revision, found, "", None)


def list_body(resource: Resource, result: Page) -> bytes:
    """Return the List object of a page. As in typed lists, items carry no kind and apiVersion."""
    metadata: JSON = {"resourceVersion": str(result.revision)}
    if result.token:
        metadata["continue"] = result.token
        if result.remaining is not None:
            metadata["remainingItemCount"] = result.remaining
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
    prefix = msgspec.json.encode({"kind": resource.kind, "apiVersion": resource.api_version})[:-1] + b","
    cut = len(prefix)
    items = [b"{" + e.body[cut:] if e.body.startswith(prefix) else e.body for e in result.entries]
    return b"".join((msgspec.json.encode(head)[:-1], b',"items":[', b",".join(items), b"]}\n"))


def _forbidden(options: ListOptions, *, streamed_lists: bool) -> list[Cause]:
    causes = []

    def forbid(field: str, why: str) -> None:
        causes.append(Cause(field, "FieldValueForbidden", f"Forbidden: {why}"))

    if options.watch:
        if options.initial_events is not None and not streamed_lists:
            forbid("sendInitialEvents", "the WatchList feature is not enabled")
        if options.initial_events is not None and options.match != "NotOlderThan":
            forbid("resourceVersionMatch", "must be NotOlderThan when sendInitialEvents is given")
        if options.initial_events is None and options.match:
            forbid("resourceVersionMatch", "not allowed for a watch without sendInitialEvents")
        return causes
    if options.initial_events is not None:
        forbid("sendInitialEvents", "not allowed for a list")
    if options.match not in ("", "Exact", "NotOlderThan"):
        causes.append(Cause("resourceVersionMatch", "FieldValueNotSupported", "Unsupported value"))
    if options.match and options.revision is None:
        forbid("resourceVersionMatch", "not allowed without resourceVersion")
    if options.match == "Exact" and options.revision == 0:
        forbid("resourceVersionMatch", "Exact is not allowed for resourceVersion 0")
    if options.token and (options.match or options.revision):
        forbid("continue", "not allowed together with a resourceVersion")
    return causes


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "") in _TRUE


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise ApiError.bad_request(f"invalid {name} {text!r}: a number is needed")
    return int(text)


def _encode(revision: int, start: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(_Token(revision, start))).rstrip(b"=").decode()


def _decode(text: str) -> _Token:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=_Token)
    except (ValueError, msgspec.MsgspecError) as error:
        raise ApiError.bad_request(f"continue key is not valid: {error}") from error
