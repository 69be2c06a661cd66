"""Decode the envelopes of lists and watches without decoding the objects twice.

An object stays raw JSON until its kind's decoder reads it; of its metadata only the name and the
resourceVersion are decoded, which a watch needs.
"""

from typing import NamedTuple

import msgspec
from msgspec import field

from kproxy.sources.errors import DisconnectedError, Status, StatusError
from kproxy.state.kinds import Kind


class GarbledError(DisconnectedError):
    """The bytes are no valid answer of this API."""


class ListMeta(msgspec.Struct, rename="camel"):
    """metadata of a list."""

    resource_version: str
    continue_: str | None = field(name="continue", default=None)


class Page(msgspec.Struct):
    """A list or a part of one. No field has a default: a body that lacks one is not a list."""

    kind: str
    metadata: ListMeta
    items: list[msgspec.Raw] | None


class _Annotations(msgspec.Struct):
    initial_events_end: object = field(name="k8s.io/initial-events-end", default=None)


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str | None = None
    resource_version: str = ""


class _Head(msgspec.Struct):
    metadata: _Meta


class _BookmarkMeta(msgspec.Struct):
    annotations: _Annotations | None = None


class _BookmarkHead(msgspec.Struct):
    metadata: _BookmarkMeta


class _Envelope(msgspec.Struct):
    type: str
    object: msgspec.Raw


class WatchEvent(NamedTuple):
    """One event; `key` and `version` are "" if the object has none."""

    type: str
    raw: msgspec.Raw
    key: str
    version: str
    ends_list: bool
    """The bookmark after the last object of a streamed list (KEP-3157)."""


_PAGE = msgspec.json.Decoder(Page)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_HEAD = msgspec.json.Decoder(_Head)
_BOOKMARK = msgspec.json.Decoder(_BookmarkHead)
_STATUS = msgspec.json.Decoder(Status)


def read_page(body: bytes, kind: Kind) -> Page:
    """Decode a page of a list of `kind`; raises GarbledError for anything else."""
    try:
        page = _PAGE.decode(body)
    except (ValueError, RecursionError) as error:
        raise GarbledError(f"not a list: {error}") from error
    if page.kind != f"{kind}List" or not page.metadata.resource_version:
        raise GarbledError(f"not a {kind}List with a resourceVersion")
    return page


def read_event(line: bytes, kind: Kind) -> WatchEvent:
    """Decode one line of a watch of `kind`.

    Raises GarbledError if it is no event, and StatusError for an ERROR event.
    """
    try:
        envelope = _ENVELOPE.decode(line)
    except (ValueError, RecursionError) as error:
        raise GarbledError(f"not a watch event: {error}") from error
    if envelope.type == "ERROR":
        raise _error_of(envelope.object)
    if envelope.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        raise GarbledError(f"an event of the unknown type {envelope.type!r:.40}")
    try:
        metadata = _HEAD.decode(envelope.object).metadata
    except (ValueError, RecursionError):
        metadata = _Meta()
    key = metadata.name
    if key and kind.namespaced:
        key = f"{'default' if metadata.namespace is None else metadata.namespace}/{key}"
    ends_list = envelope.type == "BOOKMARK" and _ends_list(envelope.object)
    return WatchEvent(envelope.type, envelope.object, key, metadata.resource_version, ends_list)


def _ends_list(bookmark: msgspec.Raw) -> bool:
    try:
        annotations = _BOOKMARK.decode(bookmark).metadata.annotations
    except (ValueError, RecursionError):
        return False
    return annotations is not None and annotations.initial_events_end == "true"


def _error_of(raw: msgspec.Raw) -> StatusError:
    try:
        return _STATUS.decode(raw).error(500)
    except (ValueError, RecursionError):
        return StatusError(500, "an ERROR event that does not say why")
