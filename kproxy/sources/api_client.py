"""Read and write single objects of the API server, as far as Events need it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from kproxy.sources.errors import ApiError
from kproxy.sources.transport import Transport


class _Meta(msgspec.Struct, frozen=True):
    uid: str = ""


class _Object(msgspec.Struct, frozen=True):
    metadata: _Meta


class ObjectApi:
    """Requests over a Transport. Every method raises ApiError or ClusterAccessError unless it succeeded."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def uid(self, path: str) -> str:
        """The uid of the object at a path."""
        try:
            return msgspec.json.decode(self._transport.send("GET", path, None), type=_Object).metadata.uid
        except msgspec.DecodeError as error:
            raise ApiError(f"{path} cannot be read: {error}") from error

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        """POST an object to the path of its kind."""
        self._transport.send("POST", path, msgspec.json.encode(body))

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        """Change the object at a path by a JSON merge patch (RFC 7386)."""
        self._transport.send("PATCH", path, msgspec.json.encode(body), "application/merge-patch+json")
