"""Keep one kind up to date while the process runs: list, watch, and start again after any failure.

Invariants: a list reaches the sink only when it is complete. The resourceVersion of an event is stored only
after the sink has the event, because the next watch continues from it. If a watch cannot continue (history
compacted, server restored from a backup), the kind is listed again, which makes the deletes correct.
"""

import threading
import time

import structlog

from kproxy.sources.backoff import Backoff
from kproxy.sources.base import Sink, VersionSink
from kproxy.sources.cluster import ClusterAccessError
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import ApiError, StalledError, StatusError, UnreachableError
from kproxy.sources.expired_410_gone import Expiry, VersionOrder
from kproxy.sources.listing import (
    UNAVAILABLE,
    EventReader,
    Resource,
    Snapshot,
    StoppedError,
    StreamedListSupport,
    StreamedListUnsupportedError,
    after_refusal,
    current_version,
    list_paged,
    mends_with_time,
    open_streamed_list,
    open_watch,
    read_streamed_list,
)
from kproxy.sources.stream import Stream
from kproxy.sources.transport import Transport
from kproxy.sources.watch_status import Phase, WatchStatus
from kproxy.sources.wire_events import GarbledError, WatchEvent
from kproxy.state.decode import decode
from kproxy.state.problems import ObjectRejected

log = structlog.stdlib.get_logger(__name__)


class Reflector:
    """Keeps a sink in step with one resource. `run` belongs to one thread; `status` may be read from any."""

    def __init__(
        self,
        transport: Transport,
        resource: Resource,
        config: KubernetesSourceConfig,
        support: StreamedListSupport,
    ) -> None:
        self._transport = transport
        self._resource = resource
        self._config = config
        self._support = support
        self._backoff = Backoff(config)
        self._version: str | None = None
        self._unverified = False
        self._expiry = Expiry()
        self._order = VersionOrder()
        self._flapping = False
        self._broken_streams = 0
        self._phase = Phase.NEW
        self._down_since = 0.0
        self._opened: float | None = None
        self._synced = self._answered = False
        self._unavailable = False
        self._connected_since: float | None = None
        self._lost_at: float | None = time.time()
        self._last_error: str | None = None
        self._stream: Stream | None = None
        self._log = log.bind(kind=resource.kind.name)

    @property
    def status(self) -> WatchStatus:
        """The current state of the watch."""
        connected = self._connected_since
        return WatchStatus(
            kind=self._resource.kind,
            synced=self._synced,
            connected_since=connected,
            consecutive_failures=0 if connected is not None else self._backoff.failures,
            last_error=self._last_error,
            resource_version=self._version,
            down_since=self._lost_since(connected),
        )

    @property
    def unavailable(self) -> bool:
        """Whether the kind is optional and the server does not have it or refuses it."""
        return self._unavailable

    def _lost_since(self, connected: float | None) -> float | None:
        """After broken connections, a new one counts from its first event or once it is steady."""
        lost = self._lost_at
        if lost is None or (connected is not None and time.time() - connected >= self._config.steady_seconds):
            return None
        return lost

    def run(self, sink: Sink, stop: threading.Event) -> None:
        """Feed `sink` until `stop` is set."""
        while not stop.is_set():
            self._opened = None
            error: Exception | None = None
            try:
                self._cycle(sink, stop)
            except StoppedError:
                return
            except (ApiError, ClusterAccessError) as failure:
                error = failure
            except Exception as failure:  # noqa: BLE001 - a defect of kproxy must not end the watch
                if not stop.is_set():
                    self._log.exception("source_defect")
                self._version = None
                error = failure
            self._connected_since = None
            if not self._simplify(error):
                self._sync_as_empty(error, sink)
                if not stop.is_set():
                    stop.wait(self._after(error))

    def interrupt(self) -> None:
        """End a watch whose `stop` has just been set; may be called from any thread."""
        stream = self._stream
        if stream is not None:
            stream.interrupt()

    def _simplify(self, error: Exception | None) -> bool:
        """Whether to list again at once with simpler selectors, because the server does not know these."""
        simpler = after_refusal(self._resource, error)
        if simpler is None:
            return False
        self._log.info(
            "selectors_unsupported",
            reason=str(error),
            refused=self._resource.selectors.get("fieldSelector", ""),
            next=simpler.selectors.get("fieldSelector", ""),
        )
        self._resource, self._version = simpler, None
        return True

    def _cycle(self, sink: Sink, stop: threading.Event) -> None:
        """One connection: a list unless a resourceVersion is known, then the watch to its end."""
        if self._version is None:
            kind = self._resource.kind
            streamed = (kind.required or kind.for_policies) and self._support.expected()
            if streamed and self._broken_streams < self._config.streamed_list_attempts:
                try:
                    self._list_streamed(sink, stop)
                    return
                except StreamedListUnsupportedError as error:
                    self._support.refuse()
                    self._log.info("streamed_list_unsupported", reason=str(error), fallback="pages")
                except StatusError as error:
                    if self._version is not None or mends_with_time(error):
                        raise
                    self._log.info("streamed_list_failed", reason=str(error), fallback="pages")
            self._broken_streams = 0
            self._list_paged(sink, stop)
        elif self._unverified:
            self._check_version(self._version)
        self._unverified = False
        self._watch(sink, stop)

    def _list_paged(self, sink: Sink, stop: threading.Event) -> None:
        started = time.monotonic()
        snapshot, version = list_paged(self._transport, self._resource, self._config, stop)
        self._deliver(snapshot, version, sink, stop, started, "paged")

    def _list_streamed(self, sink: Sink, stop: threading.Event) -> None:
        started = time.monotonic()
        self._broken_streams += 1
        stream = open_streamed_list(self._transport, self._resource, self._config)
        try:
            reader = EventReader(stream, self._resource.kind, self._config)
            events = iter(reader)
            self._note(stream, stop)
            snapshot, version = read_streamed_list(events, stream, self._resource, self._config)
            self._broken_streams = 0
            self._unverified = False
            self._deliver(snapshot, version, sink, stop, started, "streamed")
            self._open()
            for event in events:
                self._take(event, sink, stop)
        finally:
            stream.close()

    def _deliver(
        self, snapshot: Snapshot, version: str, sink: Sink, stop: threading.Event, started: float, mode: str
    ) -> None:
        if stop.is_set():
            raise StoppedError
        snapshot.deliver(sink)
        self._version = version
        self._synced = self._answered = True
        self._unavailable = False
        self._expiry.listed()
        self._log.info(
            "list_complete",
            objects=len(snapshot),
            unreadable=snapshot.unreadable,
            ms=round((time.monotonic() - started) * 1000),
            mode=mode,
        )

    def _watch(self, sink: Sink, stop: threading.Event) -> None:
        stream = open_watch(self._transport, self._resource, self._config, self._version or "")
        self._follow(stream, sink, stop)

    def _follow(self, stream: Stream, sink: Sink, stop: threading.Event) -> None:
        reader = EventReader(stream, self._resource.kind, self._config)
        try:
            self._note(stream, stop)
            self._open()
            for event in reader:
                self._take(event, sink, stop)
        except StalledError:
            self._expiry.stalled(silent=reader.silent)
            raise
        finally:
            stream.close()

    def _note(self, stream: Stream, stop: threading.Event) -> None:
        """Note the open stream for `interrupt`, which may have come too early to see it."""
        self._stream = stream
        if stop.is_set():
            raise StoppedError

    def _take(self, event: WatchEvent, sink: Sink, stop: threading.Event) -> None:
        """Pass one event to the sink, and only then store its resourceVersion."""
        if stop.is_set():
            raise StoppedError
        if not self._order.see(event.version, self._version):
            self._log.warning("versions_unordered", listed=self._version, came=event.version)
        kind = self._resource.kind
        if event.type == "DELETED":
            if not event.key:
                self._version = None
                raise GarbledError("a DELETED event without a name")
            if self._resource.wants(event.key):
                sink.delete(kind, event.key)
        elif event.type != "BOOKMARK":
            self._upsert(event, sink)
        self._version = event.version or self._version
        self._expiry.progressed()
        if self._flapping or self._phase is Phase.DOWN:
            self._up()

    def _upsert(self, event: WatchEvent, sink: Sink) -> None:
        kind = self._resource.kind
        try:
            decoded = decode(kind, event.raw)
        except ObjectRejected as rejected:
            key = rejected.key or event.key or None
            if key is None or self._resource.wants(key):
                sink.reject(kind, key, rejected.problem)
            return
        if not self._resource.wants(decoded.key):
            return
        if event.version and isinstance(sink, VersionSink):
            sink.upsert_version(kind, decoded, event.version)
        else:
            sink.upsert(kind, decoded)

    def _check_version(self, version: str) -> None:
        """After an outage, check that the server has the known history: a restored one would stay silent."""
        self._order.check(current_version(self._transport, self._resource, self._config), version)

    def _open(self) -> None:
        """Note an open watch. After connections that broke at once, it counts only from its first event."""
        self._opened = time.monotonic()
        self._connected_since = time.time()
        if not self._flapping:
            self._up()

    def _up(self) -> None:
        if self._phase is Phase.DOWN:
            down = round(time.monotonic() - self._down_since, 1)
            self._log.info("watch_restored", after_seconds=down, failures=self._backoff.failures)
        self._phase = Phase.UP
        self._lost_at = None
        self._last_error = None

    def _sync_as_empty(self, error: Exception | None, sink: Sink) -> None:
        """Mark an optional kind as synced and empty when its first list fails; log once if it is unavailable.

        Objects listed before stay in force. While no server is reached, the first list is still awaited, and
        for NetworkPolicies always: without their objects, pods that a former process isolated would be open.
        """
        if self._resource.kind.required or error is None or isinstance(error, UnreachableError):
            return
        if not self._answered and not self._resource.kind.for_policies:
            self._answered = True
            sink.replace(self._resource.kind, (), ())
        if isinstance(error, StatusError) and error.code in UNAVAILABLE:
            self._version = None
            if not self._unavailable:
                self._log.warning("kind_unavailable", reason=str(error), effect=str(self._resource.kind.loss))
            self._unavailable = True

    def _after(self, error: Exception | None) -> float:
        """Handle the end of a connection; return the seconds to wait before the next."""
        lived = time.monotonic() - self._opened if self._opened is not None else 0.0
        steady = lived >= self._config.steady_seconds
        if steady or self._lost_at is None:
            self._lost_at = time.time()
        if self._unavailable:
            if self._resource.kind.for_policies:
                return self._backoff.next(None, reached=True)
            return self._config.unavailable_retry_seconds
        if steady:
            self._backoff.reset()
            self._expiry.steady()
            self._flapping = False
        if self._expiry.must_list(error):
            self._version = None
            if self._expiry.may_list_at_once():
                self._log.info("list_again", reason=str(error))
                return 0.0
        elif error is None and steady:
            self._log.debug("watch_ended", lived_seconds=round(lived))
            return 0.0
        if error is None:
            error = ApiError(f"the server ended the watch after {lived:.1f} s")
        else:
            self._unverified = True
        self._flapping = self._opened is not None and not steady
        reached = not isinstance(error, UnreachableError)
        wait = self._backoff.next(getattr(error, "retry_after", None), reached=reached)
        self._down(error, wait)
        return wait

    def _down(self, error: Exception, wait: float) -> None:
        """Log the first failure of a series, then the second, the fourth, the eighth, ..."""
        self._last_error = str(error)
        failures = self._backoff.failures
        if self._phase is not Phase.DOWN:
            self._down_since = time.monotonic()
        rare = failures & (failures - 1) == 0
        if rare:
            self._phase = Phase.DOWN
        say = self._log.warning if rare else self._log.debug
        say("watch_lost", reason=str(error), failures=failures, retry_seconds=round(wait, 2))
