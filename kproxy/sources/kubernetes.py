"""Objects from a Kubernetes API server: one thread per kind, over one set of credentials.

Required kinds are watched from the start, optional ones from `watch` to `unwatch`.
"""

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from kproxy.sources.api_client import ObjectApi
from kproxy.sources.base import ForgettingSink, Sink
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.listing import StreamedListSupport, resources
from kproxy.sources.reflector import Reflector
from kproxy.sources.servers import Server
from kproxy.sources.transport import Observe, Transport
from kproxy.sources.watch_status import WatchStatus
from kproxy.state.kinds import KINDS, Kind

__all__ = ["ClusterAccess", "ClusterAccessError", "KubernetesSource", "KubernetesSourceConfig", "WatchStatus"]

log = structlog.stdlib.get_logger(__name__)


class KubernetesSource:
    """Lists and watches required kinds, and optional ones on demand (implements Source)."""

    def __init__(
        self,
        access: ClusterAccess,
        node: str | None = None,
        config: KubernetesSourceConfig | None = None,
        observe: Observe = lambda *_: None,
        moved: Callable[[], None] = lambda: None,
        kinds: Iterable[Kind] = KINDS,
    ) -> None:
        """`node` is the name of this node; None: do not watch a Node. `observe` is called after each request.

        `moved` is called from any thread when `servers` changed.
        """
        self._config = config or KubernetesSourceConfig()
        self._transport = Transport(access, self._config.transport, observe, moved)
        self._support = StreamedListSupport(self._config)
        self._resources = {each.kind: each for each in resources(node, kinds)}
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._reflectors: dict[Kind, Reflector] = {}
        self._ends: dict[Kind, _End] = {}
        self._threads: dict[Kind, threading.Thread] = {}
        self.watch(kind for kind in self._resources if kind.required)

    def status(self) -> tuple[WatchStatus, ...]:
        """The state of the watch of each kind; may be called from any thread at any time.

        Kinds that are not needed, or that the server does not have or refuses, are left out.
        """
        with self._lock:
            watched = dict(self._reflectors)
        return tuple(
            watched[kind].status
            for kind in self._resources
            if kind in watched and not watched[kind].unavailable
        )

    @property
    def servers(self) -> frozenset[Server]:
        """The addresses and ports of API servers; may be read from any thread."""
        return self._transport.servers

    def watch(self, kinds: Iterable[Kind]) -> None:
        """Watch these kinds too from now on; may be called from any thread, even before `run`.

        Raises KeyError for a kind that this source was not made for.
        """
        for kind in kinds:
            resource = self._resources[kind]
            with self._lock:
                if kind not in self._reflectors:
                    self._reflectors[kind] = Reflector(self._transport, resource, self._config, self._support)
                    self._ends[kind] = _End()
                    self._start(kind)

    def unwatch(self, kinds: Iterable[Kind]) -> None:
        """Watch these kinds no more, and let the sink forget them; may be called from any thread."""
        for kind in kinds:
            with self._lock:
                reflector, end = self._reflectors.pop(kind, None), self._ends.pop(kind, None)
            if reflector is not None and end is not None:
                end.forgets = True
                end.stop.set()
                reflector.interrupt()

    def objects(self) -> ObjectApi:
        """A client for single objects, over the same connections and credentials."""
        return ObjectApi(self._transport)

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Feed `sink` until `stop` is set; can be run once.

        Raises ClusterAccessError at once if the configuration cannot be used; later failures are retried.
        """
        self._transport.load()
        with self._lock:
            self._sink = sink
            for kind in self._reflectors:
                self._start(kind)
        stop.wait()
        with self._lock:
            self._sink = None
            for end in self._ends.values():
                end.stop.set()
            threads = list(self._threads.values())
        self._transport.close()
        deadline = time.monotonic() + self._config.stop_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("watch_abandoned", thread=thread.name)

    def _start(self, kind: Kind) -> None:
        """Start the thread of a kind, unless the source does not run; the lock is held."""
        if self._sink is None:
            return
        work = (kind, self._reflectors[kind], self._ends[kind], self._sink, self._threads.get(kind))
        thread = threading.Thread(target=_follow, args=work, name=f"watch-{kind.name.lower()}", daemon=True)
        self._threads[kind] = thread
        thread.start()


class _End:
    """The end of a watch: its event, and whether the sink forgets the kind then."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.forgets = False


def _follow(kind: Kind, reflector: Reflector, end: _End, sink: Sink, former: threading.Thread | None) -> None:
    """Watch a kind once its former watch has ended."""
    if former is not None:
        former.join()
    reflector.run(sink, end.stop)
    if end.forgets and isinstance(sink, ForgettingSink):
        sink.forget(kind)
        log.info("watch_stopped", kind=kind.name)
