"""A plain HTTP client for the tests of the embedded API server: no retries, nothing hidden."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import trustme
import urllib3

from kproxy_lab.apiserver import ApiServer, TlsFiles

JSON = dict[str, Any]
SERVICES = "/api/v1/namespaces/default/services"
ALL_SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
ALL_SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
CUT = (http.client.HTTPException, urllib3.exceptions.HTTPError, OSError)
"""What a dropped connection raises."""


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    body: JSON
    headers: dict[str, str]

    @property
    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.body["items"]]


class Stream:
    """The lines of one watch."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._pieces = response.stream()
        self._buffer = b""

    def line(self) -> bytes:
        """Return the next line, empty at the proper end of the stream.

        A connection that ends improperly raises ProtocolError.
        """
        while b"\n" not in self._buffer:
            piece = next(self._pieces, None)
            if piece is None:
                rest, self._buffer = self._buffer, b""
                return rest
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def event(self) -> tuple[str, JSON]:
        event = json.loads(self.line())
        return event["type"], event["object"]

    def events(self, count: int) -> list[tuple[str, str]]:
        """Return (type, name) of the next ``count`` events."""
        found = (self.event() for _ in range(count))
        return [(kind, obj["metadata"].get("name", "")) for kind, obj in found]


def connection(api: ApiServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=20)


def call(
    api: ApiServer, method: str, path: str, body: object = None, *, media: str = "application/json",
    headers: dict[str, str] | None = None, **query: object,
) -> Reply:  # fmt: skip
    link = connection(api)
    try:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": media, **(headers or {})} if data is not None else headers or {}
        link.request(method, f"{path}?{urlencode(query)}" if query else path, data, sent)
        response = link.getresponse()
        return Reply(response.status, json.loads(response.read()), dict(response.headers))
    finally:
        link.close()


def get(api: ApiServer, path: str, **query: object) -> Reply:
    return call(api, "GET", path, None, media="", headers={}, **query)


@contextmanager
def watch(api: ApiServer, path: str, **query: object) -> Iterator[Stream]:
    with urllib3.PoolManager(retries=False, timeout=20) as pool:
        url = f"{api.url}{path}?{urlencode({'watch': '1', **query})}"
        response = pool.request("GET", url, preload_content=False)
        try:
            assert response.status == 200, response.data
            yield Stream(response)
        finally:
            response.close()


def issue(directory: Path) -> TlsFiles:
    """Write a CA, a server certificate for 127.0.0.1 and a client certificate."""
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    files = {name: directory / name for name in ("ca", "cert", "key", "client_cert", "client_key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    server.private_key_pem.write_to_path(str(files["key"]))
    client.private_key_pem.write_to_path(str(files["client_key"]))
    for leaf, name in ((server, "cert"), (client, "client_cert")):
        leaf.cert_chain_pems[0].write_to_path(str(files[name]))
    return TlsFiles(**files, client_ca=files["ca"])


def service(name: str, *, namespace: str = "default", labels: JSON | None = None, **spec: object) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {"ports": [{"port": 80}], **spec},
    }


def endpoint_slice(name: str, *addresses: str, service_name: str = "web") -> JSON:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [{"name": "http", "port": 8080}],
    }
