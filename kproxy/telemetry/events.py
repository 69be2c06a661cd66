"""Kubernetes Events about services, policies and the node, where kubectl shows them.

They are sent from a separate thread; failures are only logged. A repetition within the lifetime of an Event
(one hour) increases its count instead of creating another. The rate of requests is limited, independent of
the number of problems.
"""

import enum
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import structlog

from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.series import EVENTS
from kproxy.text import clean

log = structlog.stdlib.get_logger(__name__)

CONTROLLER = "kproxy.io/kproxy"
NOTE_MAX = 1024
"""Longest note in bytes (events.k8s.io/v1 validation)."""
REMEMBERED_SECONDS = 3600.0
"""How long an API server keeps Events by default (--event-ttl)."""
UPDATE_SECONDS = 300.0
"""Minimum seconds between two updates of one Event's count."""
BURST = 25
REFILL_SECONDS = 10.0
"""The rate limit of requests: bursts of at most BURST, and one per REFILL_SECONDS on average."""
_QUEUED = 1000
_REMEMBERED = 4096


class Reason(enum.StrEnum):
    """Reasons of Events, each with its action."""

    QUARANTINED = "ServiceQuarantined"
    CONFLICT = "AddressConflict"
    REFUSED = "AddressRefused"
    MODE = "ProxyModeRefused"
    CONFIGURATION = "ConfigurationRejected"
    UNHEALTHY = "ProxyUnhealthy"
    DEGRADED = "ProxyModeDegraded"
    POLICY_REJECTED = "NetworkPolicyRejected"
    POLICY_QUARANTINED = "NetworkPolicyQuarantined"
    HEALTH_PORT = "FailedToStartServiceHealthcheck"
    """The reason that kube-proxy uses (pkg/proxy/healthcheck/service_health.go)."""

    @property
    def action(self) -> str:
        """The action of such an Event."""
        return _ACTIONS.get(self, "ProgramService")

    @property
    def about(self) -> "Regarded":
        """The kind of the objects that such an Event is about, if it is not about the node."""
        return _POLICIES if self in (Reason.POLICY_REJECTED, Reason.POLICY_QUARANTINED) else _SERVICES


_ACTIONS = {
    Reason.MODE: "ChangeProxyMode",
    Reason.HEALTH_PORT: "Listen",
    Reason.CONFIGURATION: "ReloadConfiguration",
    Reason.UNHEALTHY: "SyncProxyRules",
    Reason.DEGRADED: "ChangeProxyMode",
    Reason.POLICY_REJECTED: "EnforceNetworkPolicy",
    Reason.POLICY_QUARANTINED: "EnforceNetworkPolicy",
}


class Regarded(msgspec.Struct, frozen=True):
    """A kind of object that Events are about: as in its `apiVersion` and `kind`, and in the path."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str, name: str) -> str:
        """The path of one object."""
        root = "apis" if "/" in self.api_version else "api"
        return f"/{root}/{self.api_version}/namespaces/{namespace}/{self.plural}/{name}"


_SERVICES = Regarded("v1", "Service", "services")
_POLICIES = Regarded("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")


class Notice(msgspec.Struct, frozen=True):
    """A message about the service, or another object of the kind `reason.about`, with this key.

    The key is `namespace/name`; empty: about the node.
    """

    reason: Reason
    service: str
    note: str


class Api(Protocol):
    """The API server's methods that Events need. They raise an Exception for any answer except success."""

    def uid(self, path: str) -> str:
        """The uid of the object at a path."""

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        """POST to a path."""

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        """PATCH a path by a JSON merge patch (RFC 7386)."""


class _SentEvent:
    """One Event that exists in the API server."""

    def __init__(self, path: str, now: float) -> None:
        self.path = path
        self.count = 1
        self.at = now
        self.updated = now


class EventRecorder:
    """Sends notices as Events of `node`. `errors`: the exceptions of `api`; `clock`: monotonic seconds."""

    def __init__(
        self,
        api: Api,
        node: str,
        metrics: Metrics,
        errors: tuple[type[Exception], ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._node = node
        self._metrics = metrics
        self._errors = errors
        self._clock = clock
        self._queue: queue.Queue[Notice | None] = queue.Queue(_QUEUED)
        self._sent: dict[Notice, _SentEvent] = {}
        self._tokens = float(BURST)
        self._refilled = clock()

    def notify(self, notice: Notice) -> None:
        """Queue a notice; return at once. May be called from any thread."""
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            self._metrics.add(EVENTS, "dropped")

    def wake(self) -> None:
        """Wake `run`, so that it checks for the stop."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            log.debug("event_queue_full")

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set and `wake` called."""
        while not stop.is_set():
            notice = self._queue.get()
            if notice is not None and not stop.is_set():
                self.send(notice)

    def send(self, notice: Notice) -> None:
        """Send one notice, unless it was sent recently or the rate limit is reached."""
        now = self._clock()
        sent = self._sent.get(notice)
        if sent is not None and now - sent.at > REMEMBERED_SECONDS:
            del self._sent[notice]
            sent = None
        if sent is not None:
            sent.count += 1
            if now - sent.updated < UPDATE_SECONDS:
                return
        if not self._allowed(now):
            self._metrics.add(EVENTS, "dropped")
            log.debug("event_dropped", reason=notice.reason.value, **_named(notice))
            return
        try:
            if sent is None:
                self._remember(notice, _SentEvent(self._create(notice), now))
            else:
                series = {"count": sent.count, "lastObservedTime": _micro_time()}
                self._api.patch(sent.path, {"series": series})
                sent.updated = now
        except self._errors as error:
            self._metrics.add(EVENTS, "failed")
            self._sent.pop(notice, None)
            about = notice.reason.value
            log.warning("event_not_sent", about=about, reason=str(error), **_named(notice))
            return
        self._metrics.add(EVENTS, "sent")

    def _create(self, notice: Notice) -> str:
        """Create the Event; return its path."""
        regarding = self._regarding(notice) if notice.service else _node(self._node)
        namespace, name = regarding.get("namespace", "default"), regarding["name"]
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        event = f"{name[:200]}.{time.time_ns():x}"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": event, "namespace": namespace},
            "eventTime": _micro_time(),
            "reportingController": CONTROLLER,
            "reportingInstance": f"kproxy-{self._node}"[:128],
            "action": notice.reason.action,
            "reason": notice.reason.value,
            "regarding": regarding,
            "note": _cut(f"node {self._node}: {notice.note}"),
            "type": "Warning",
        }
        self._api.create(path, body)
        return f"{path}/{event}"

    def _regarding(self, notice: Notice) -> dict[str, str]:
        about = notice.reason.about
        namespace, _, name = notice.service.partition("/")
        return {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": namespace,
            "name": name,
            "uid": self._api.uid(about.path(namespace, name)),
        }

    def _remember(self, notice: Notice, sent: _SentEvent) -> None:
        self._sent[notice] = sent
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]

    def _allowed(self, now: float) -> bool:
        self._tokens = min(float(BURST), self._tokens + (now - self._refilled) / REFILL_SECONDS)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _named(notice: Notice) -> dict[str, str]:
    """The object as a field of a log line."""
    return {"policy" if notice.reason.about is _POLICIES else "service": notice.service}


def _node(name: str) -> dict[str, str]:
    """A reference to a node as kubelet makes it: `kubectl describe node` searches for the name as uid."""
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": name}


def _micro_time() -> str:
    """The current time as metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(text: str) -> str:
    note = clean(" ".join(text.split()), NOTE_MAX)
    data = note.encode()
    return note if len(data) <= NOTE_MAX else data[: NOTE_MAX - 3].decode(errors="ignore") + "..."
