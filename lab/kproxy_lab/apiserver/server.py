"""The embedded API server as tests and demos use it: synchronous, thread-safe, in-process.

    with ApiServer() as api:
        api.apply({"apiVersion": "v1", "kind": "Service", ...})
        run_client(api.kubeconfig(path))

It listens on loopback by default, keeps everything in memory and stops at the end of its block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from kproxy_lab.apiserver.access import TlsFiles, write_kubeconfig
from kproxy_lab.apiserver.allocation import NODE_PORTS, SERVICE_CIDRS, Allocations
from kproxy_lab.apiserver.errors import JSON, ApiError
from kproxy_lab.apiserver.faults import Fault, FaultBook
from kproxy_lab.apiserver.handlers import Handlers, Settings
from kproxy_lab.apiserver.journal import Journal
from kproxy_lab.apiserver.listener import Listener, SocketFactory, bind
from kproxy_lab.apiserver.registry import Registry
from kproxy_lab.apiserver.resources import Resource, ResourceTable
from kproxy_lab.apiserver.store import DEFAULT_HISTORY, Store
from kproxy_lab.apiserver.watch import Hub

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ApiServer:
    """A Kubernetes API server for the kinds of :data:`~kproxy_lab.apiserver.resources.RESOURCES`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsFiles | None = None,
        tokens: Iterable[str] | None = None,
        watch_list: bool = True,
        bookmark_interval: float = 60.0,
        history: int = DEFAULT_HISTORY,
        watch_buffer: int | None = None,
        service_cidrs: Iterable[str] = SERVICE_CIDRS,
        seed: bool = True,
        sockets: SocketFactory = bind,
        resources: ResourceTable | None = None,
    ) -> None:
        """Configure the server; nothing listens before :meth:`start`.

        Args:
            host: address to listen on.
            port: 0 takes a free one and keeps it.
            tls: serve https with these files.
            tokens: accepted bearer tokens; None accepts every request. Go clients send kubeconfig
                credentials over https only, so kubectl and kube-proxy need ``tls`` with it.
            watch_list: serve streamed lists; off, sendInitialEvents answers 422.
            bookmark_interval: seconds between bookmarks.
            history: changes remembered per resource.
            watch_buffer: changes a watch may be behind before it is cut off; ``history`` by default.
            service_cidrs: one per family, the cluster's primary family first.
            seed: create the usual namespaces and the default ServiceCIDR.
            sockets: makes the listening socket, for instance in another network namespace.
            resources: the kinds to serve.
        """
        table = resources or ResourceTable()
        self.store = Store(table, history=history)
        self.registry = Registry(table, self.store, Allocations(service_cidrs, NODE_PORTS))
        self.requests = Journal()
        self.faults = FaultBook(self._faults_changed)
        self._settings = Settings(None if tokens is None else set(tokens), watch_list, bookmark_interval)
        self._tls = tls
        self._hub = Hub(self.store, buffer=history if watch_buffer is None else watch_buffer)
        handlers = Handlers(self.registry, self._hub, self.faults, self.requests, self._settings)
        self._listener = Listener(handlers.handle, host=host, port=port, tls=tls, sockets=sockets)
        self._started = False
        self._wake_posted = threading.Event()
        self.store.subscribe(self._wake)
        if seed:
            self._seed(service_cidrs)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; see :meth:`restart` for an interruption.

        Raises:
            OSError: the address cannot be bound.
        """
        self._listener.start()
        self._started = True

    def stop(self) -> None:
        """Drop every connection and stop; objects stay readable in-process."""
        self._started = False
        self._listener.stop()

    def restart(self, *, keep_history: bool = True, while_down: Callable[[], object] | None = None) -> None:
        """Stop listening, drop all connections, and listen again on the same port.

        Without ``keep_history`` old revisions are gone afterwards, as after a restart of a real
        server with an empty watch cache. ``while_down`` runs in between.
        """
        self._listener.close()
        if while_down is not None:
            while_down()
        if not keep_history:
            self.compact()
        self._listener.open()

    @property
    def port(self) -> int:
        """Return the port, once started."""
        return self._listener.port

    @property
    def url(self) -> str:
        """Return the base URL; a wildcard address is given as loopback."""
        host = _ANY_ADDRESS.get(self._listener.host, self._listener.host)
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def revision(self) -> int:
        """Return the newest revision."""
        return self.store.revision

    @property
    def tokens(self) -> set[str] | None:
        """Accepted bearer tokens, which may be changed in place; None accepts every request."""
        return self._settings.tokens

    @tokens.setter
    def tokens(self, tokens: set[str] | None) -> None:
        self._settings.tokens = tokens

    def expire_tokens(self, *tokens: str) -> None:
        """Stop accepting these tokens, or all of them when none is named."""
        if self._settings.tokens is not None:
            self._settings.tokens = self._settings.tokens - set(tokens) if tokens else set()

    def kubeconfig(
        self, path: Path | str, *, token: str | None = None, token_file: Path | None = None,
        server: str | None = None, client_certificate: bool = True,
    ) -> Path:  # fmt: skip
        """Write a kubeconfig for this server and return its path.

        Without ``token`` and ``token_file`` an accepted token is used if the server wants one.
        ``server`` overrides the URL, for clients that reach it by another address.
        """
        if token is None and token_file is None and self.tokens:
            token = min(self.tokens)
        return write_kubeconfig(
            Path(path), server or self.url, tls=self._tls, token=token, token_file=token_file,
            client_certificate=client_certificate,
        )  # fmt: skip

    def apply(self, obj: JSON, *, validate: bool = True, kind: str | None = None) -> JSON:
        """Create or replace an object and return it as stored. Watches always see an event.

        Unlike a request, this may set status, uid and creationTimestamp, and change what is
        immutable. With ``validate=False`` nothing is checked or filled in except resourceVersion:
        any garbage is stored as it is (``kind`` names the kind if the object does not).

        Raises:
            ApiError: 400 or 422, only with ``validate``.
            KeyError: the kind is not served.
        """
        resource = self._resource(kind) if kind is not None else None
        return self.registry.apply(obj, resource=resource, validate=validate).decode()

    def apply_many(self, objs: Iterable[JSON], *, validate: bool = True) -> int:
        """Apply many objects in one transaction, waking watches once. Returns how many."""
        return self.registry.apply_many(objs, validate=validate)

    def edit(self, kind: str, namespace: str, name: str, change: Callable[[JSON], None]) -> JSON:
        """Let ``change`` modify the current object in place, and apply the result atomically.

        Raises:
            ApiError: 404, 422.
        """
        resource = self._resource(kind)
        with self.store.transaction():
            obj = self.registry.get(resource, namespace, name).decode()
            change(obj)
            return self.registry.apply(obj, resource=resource).decode()

    def get(self, kind: str, namespace: str, name: str) -> JSON | None:
        """Return an object, or None. ``namespace`` is ignored for cluster-wide kinds."""
        resource = self._resource(kind)
        entry = self.store.get(resource, resource.key(namespace, name))
        return entry.decode() if entry is not None else None

    def list(self, kind: str, namespace: str = "") -> list[JSON]:
        """Return all objects of a kind, of one namespace if given, ordered by namespace and name."""
        entries = self.store.entries(self._resource(kind))
        return [entry.decode() for entry in entries if namespace in ("", entry.namespace)]

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Delete an object; False if there was none."""
        resource = self._resource(kind)
        with self.store.transaction():
            entry = self.store.get(resource, resource.key(namespace, name))
            if entry is not None:
                self.registry.delete(entry)
        return entry is not None

    def compact(self) -> None:
        """Forget old revisions: reads and new watches from them are expired (410) from now on."""
        self.store.compact()

    def watchers(self, resource: str | None = None) -> int:
        """Return how many watches run, of one resource (plural) or of all."""
        return self._hub.running(resource)

    def wait_watchers(self, count: int, resource: str | None = None, *, timeout: float = 10.0) -> bool:
        """Block until exactly ``count`` watches run; False when ``timeout`` seconds pass first."""
        return self._hub.wait(count, resource, timeout)

    def drop_watches(self, resource: str | None = None) -> None:
        """Drop the connections of running watches; new ones are served."""
        self._listener.run(self._on_loop(lambda: self._hub.drop(resource)))

    def drop_connections(self) -> None:
        """Drop every connection; new ones are served."""
        self._listener.drop_connections()

    def _resource(self, kind: str) -> Resource:
        return self.registry.table.named(kind)

    def _wake(self) -> None:
        if self._started and not self._wake_posted.is_set():
            self._wake_posted.set()
            self._listener.post(self._wake_hub)

    def _wake_hub(self) -> None:
        self._wake_posted.clear()
        self._hub.wake()

    def _faults_changed(self) -> None:
        if not self._started:
            return
        self._listener.post(self._hub.wake)
        if self.faults.refusing:
            self._listener.close()
        else:
            self._listener.open()

    @staticmethod
    async def _on_loop(work: Callable[[], None]) -> None:
        work()

    def _seed(self, service_cidrs: Iterable[str]) -> None:
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        cidr = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [*service_cidrs]}}  # fmt: skip
        self.apply(cidr)


__all__ = ["ApiError", "ApiServer", "Fault", "TlsFiles"]
