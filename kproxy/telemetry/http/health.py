"""/healthz and /livez, compatible with kube-proxy for load balancers and kubelets.

A proxy is unhealthy when changes have waited for two sync periods and nothing was applied in that time, per
family (kproxy.telemetry.verdict): the run loop hangs, or the kernel fails. A long backlog, or a sync of many
batches, is progress. The same limit applies to the first lists of objects; once they are complete, the first
sync has as much time again. An idle proxy is healthy.

/healthz also depends on the node: one that is being deleted should get no new traffic, although its proxy
works (KEP-3836). /livez ignores that, so that the proxy of such a node is not restarted.
"""

import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

import msgspec

from kproxy.addresses import Family
from kproxy.node.descriptors import DescriptorShares
from kproxy.state.wire import Node
from kproxy.telemetry.http.server import Answer, HttpServer
from kproxy.telemetry.status import BEING_DELETED
from kproxy.telemetry.verdict import in_time

HEALTHZ, LIVEZ = "/healthz", "/livez"
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


class FamilyHealth(msgspec.Struct, frozen=True):
    """Whether one family's changes reach the kernel in time, and when it was last updated.

    `behind`: seconds for which changes have waited without any being applied, None if none waits.
    """

    last_updated: datetime
    healthy: bool
    synced: bool = True
    behind: float | None = None


class Health(msgspec.Struct, frozen=True):
    """One answer. `longest_wait`: the longest time in seconds that changes may wait without progress.

    `node_reason`: the reason why the node is not eligible, "" if it is. `waits_for`: the data besides the
    lists of objects that the first sync waits for. `policies`: the same for NetworkPolicies, if they are
    enforced.
    """

    families: dict[Family, FamilyHealth]
    node_eligible: bool
    longest_wait: float = 0.0
    waits_for: str | None = None
    node_reason: str = ""
    policies: dict[Family, FamilyHealth] = {}

    @property
    def proxy_healthy(self) -> bool:
        """Whether every family applies its changes in time, those of policies too."""
        return all(each.healthy for each in (*self.families.values(), *self.policies.values()))


class HealthState:
    """Collects the run loop's reports; `clock` returns monotonic time.

    `pending_since` returns the time of that clock since which a change waits for a sync. It may wait for one
    family only: each family is responsible for changes after its own last progress.
    """

    def __init__(
        self, sync_period: float, clock: Callable[[], float], pending_since: Callable[[], float | None]
    ) -> None:
        self._longest_wait = 2 * sync_period
        self._clock = clock
        self._pending_since = pending_since
        self._lock = threading.Lock()
        self._updated: dict[Family, datetime] = {}
        self._synced: set[Family] = set()
        self._progress: dict[Family, float] = {}
        self._behind: dict[Family, float | None] = {}
        self._ineligible = ""
        self._waits_for: str | None = None
        self.policies: Callable[[], dict[Family, FamilyHealth]] = dict
        """Returns the health of the enforcement of NetworkPolicies, which keeps a HealthState of its own."""

    def set_sync_period(self, sync_period: float) -> None:
        """Use another period; changes may wait for two periods without progress."""
        with self._lock:
            self._longest_wait = 2 * sync_period

    def add_family(self, family: Family) -> None:
        """Add a family; it counts as healthy until changes have waited for too long."""
        with self._lock:
            self._updated[family] = datetime.now(UTC)
            self._behind[family] = None

    def updated(self, family: Family) -> None:
        """Note that a sync of the family has succeeded."""
        with self._lock:
            self._updated[family] = datetime.now(UTC)
            self._synced.add(family)
            self._progress[family] = self._clock()
            self._behind[family] = None

    def progressed(self, family: Family) -> None:
        """Note that a sync which has not ended yet has applied a batch.

        That does not end a failure: a sync may apply a part each time and then fail.
        """
        self._progress[family] = self._clock()

    def failed(self, family: Family) -> None:
        """Note that a sync of the family has failed: it is behind since its oldest waiting change."""
        with self._lock:
            if self._behind[family] is None:
                since = self._pending_since()
                self._behind[family] = self._clock() if since is None else since

    def wait_for(self, reason: str | None) -> None:
        """Note the data that the first sync waits for; None: it waits for none."""
        with self._lock:
            self._waits_for = reason

    def see_node(self, node: Node | None, *, known: bool) -> None:
        """Judge the node; before its first list has arrived (`known` False) it counts as eligible."""
        reason = _why_ineligible(node) if known else ""
        with self._lock:
            self._ineligible = reason

    def report(self) -> Health:
        """The current state."""
        now = self._clock()
        waiting = self._pending_since()
        with self._lock:
            families = {}
            for family, updated in self._updated.items():
                since = self._since(family, waiting)
                behind = None if since is None else max(0.0, now - since)
                healthy = in_time(behind, self._longest_wait)
                families[family] = FamilyHealth(updated, healthy, family in self._synced, behind)
            reason, longest, waits_for = self._ineligible, self._longest_wait, self._waits_for
        return Health(families, not reason, longest, waits_for, reason, self.policies())

    def _since(self, family: Family, waiting: float | None) -> float | None:
        behind = self._behind[family]
        if behind is None and waiting is not None:
            return max(waiting, self._progress.get(family, waiting))
        return behind

    def proxy_healthy(self) -> bool:
        """Whether every family applies its changes in time."""
        return all(family.healthy for family in self.report().families.values())


def _why_ineligible(node: Node | None) -> str:
    """The reason why a node should get no new traffic; "" if there is none."""
    if node is None:
        return "Node object is not found"
    if node.metadata.deletion_timestamp is not None:
        return BEING_DELETED
    taints = (node.spec.taints if node.spec else None) or ()
    if any(taint.key == AUTOSCALER_TAINT for taint in taints):
        return f"node has the taint {AUTOSCALER_TAINT}"
    return ""


def answer(health: Health, *, include_node: bool) -> tuple[int, bytes]:
    """HTTP status and body, in kube-proxy's format (pkg/proxy/healthcheck/proxy_health.go).

    `lastUpdated` is the current time while healthy, else the time of the latest sync. kube-proxy has no
    `networkPolicy`.
    """
    now = datetime.now(UTC)
    proxy_healthy = health.proxy_healthy
    healthy = proxy_healthy and (health.node_eligible or not include_node)
    newest = max((f.last_updated for f in health.families.values()), default=now)
    body: dict[str, object] = {
        "lastUpdated": _text(now if healthy else newest),
        "currentTime": _text(now),
    }
    if include_node:
        body["nodeEligible"] = health.node_eligible
    body["healthy"] = proxy_healthy
    body["status"] = _shown(health.families)
    if health.policies:
        body["networkPolicy"] = _shown(health.policies)
    return (200 if healthy else 503), json.dumps(body, separators=(",", ":")).encode()


def _shown(families: Mapping[Family, FamilyHealth]) -> dict[str, object]:
    return {
        family.value: {"lastUpdated": _text(f.last_updated), "healthy": f.healthy}
        for family, f in families.items()
    }


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


class HealthServer(HttpServer):
    """Serves the two paths; `answered` is called with path and status of every answer.

    An answer needs only the server's loop, so a probe is answered even if the process is busy.
    """

    def __init__(
        self,
        address: str,
        state: HealthState,
        answered: Callable[[str, int], None] = lambda *_: None,
        *,
        limit: int = DescriptorShares().healthz,
    ) -> None:
        def respond(path: str) -> Answer:
            status, body = answer(state.report(), include_node=path == HEALTHZ)
            answered(path, status)
            return Answer(body, "application/json", status)

        routes = {path: partial(respond, path) for path in (HEALTHZ, LIVEZ)}
        super().__init__("healthz", address, routes, limit=limit, quick=True)
