"""The store to which source threads write objects and from which the run loop takes changes."""

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from kproxy.state.kinds import KINDS, POLICY_KINDS, Kind
from kproxy.state.policy_changes import PolicyChanges
from kproxy.state.problems import Problem
from kproxy.state.rejections import Rejections
from kproxy.state.slice_index import Trigger
from kproxy.state.tables import Changes, ServiceInput, Tables
from kproxy.state.wire import Node, WireObject


class Arrival(NamedTuple):
    """When the first pending change of a service arrived (monotonic).

    `triggers` and `versions` have the last trigger and resourceVersion of each family that has one.
    """

    at: float
    triggers: Mapping[str, str] = {}
    versions: Mapping[str, str] = {}


class ObjectStore:
    """A thread-safe Sink around the tables that wakes the run loop after a change.

    A change of the kinds of NetworkPolicies (Kind.for_policies) wakes only `policy_wait`, and nothing of
    services waits for these kinds.
    """

    def __init__(self, required: Collection[Kind], kinds: Collection[Kind] = KINDS) -> None:
        """`required`: the kinds of `kinds` whose first complete lists make the store ready.

        Those for policies are left out.
        """
        self._tables = Tables(kinds, time.monotonic)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._policy_wake = threading.Event()
        self._required = frozenset(kind for kind in required if not kind.for_policies)
        self._complete_since: float | None = None
        self._unsynced_since: float | None = time.monotonic()
        self._untaken_since: float | None = None
        self._failed_since: dict[str, float] = {}
        self._changed_at: float | None = None
        self._incomplete_since: float | None = None
        self._taken = -1
        self._rejections = Rejections(kinds, self._lock)

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:
        """Store a complete list of a kind. Rejected objects that it does not name are gone."""
        with self._lock:
            self._note(kind, self._tables.replace(kind, objects, unreadable))
            if self._complete_since is None and self._required <= self._tables.synced:
                self._complete_since = time.monotonic()
        self._rejections.listed(kind, objects, unreadable)

    def upsert(self, kind: Kind, obj: WireObject, version: str = "") -> None:
        """Store one object; `version` is its resourceVersion, where it is known."""
        with self._lock:
            self._note(kind, self._tables.upsert(obj, version))
        self._rejections.came(kind, obj)

    def upsert_version(self, kind: Kind, obj: WireObject, version: str) -> None:
        """Store one object of a known resourceVersion (VersionSink)."""
        self.upsert(kind, obj, version)

    def delete(self, kind: Kind, key: str) -> None:
        """Remove one object."""
        with self._lock:
            self._note(kind, self._tables.delete(kind, key))
        self._rejections.gone(kind, key)

    def forget(self, kind: Kind) -> None:
        """Drop everything about a kind that is not watched any more, as if it had never been listed."""
        with self._lock:
            self._tables.forget(kind)
        self._rejections.listed(kind, (), ())

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        """Report an object that cannot be used, once per defect."""
        self._rejections.reject(kind, key, problem)

    def set_problems(self, problems: Sequence[Problem]) -> None:
        """Replace all defects reported before by the current ones (ProblemSink)."""
        self._rejections.replace_all(problems)

    @property
    def ready(self) -> bool:
        """Whether the first complete list of every required kind has arrived."""
        with self._lock:
            return self._required <= self._tables.synced

    @property
    def missing(self) -> frozenset[Kind]:
        """The required kinds without a complete list so far."""
        with self._lock:
            return self._required - self._tables.synced

    @property
    def changed(self) -> bool:
        """Whether anything changed since the last call of `changed_services` or `take_all`."""
        with self._lock:
            return self._tables.revision != self._taken

    @property
    def pending_since(self) -> float | None:
        """Monotonic time of the oldest change that is not applied yet, or None if all are.

        Before the first sync everything waits since the creation of the store, also objects that have not
        arrived yet.
        """
        with self._lock:
            return _oldest(
                self._unsynced_since,
                self._tables.pending.new_since,
                self._tables.pending.taken_since,
                *self._failed_since.values(),
            )

    @property
    def unsynced_since(self) -> float | None:
        """Monotonic time since when the oldest change waits for a sync to finish, or None if none does.

        Before the first lists are complete there is no sync to wait for. A change that the kernel refused in
        a sync does not wait any more, and neither does one that only waits for a family that fails.
        """
        with self._lock:
            return self._unsynced()

    @property
    def waiting_since(self) -> float | None:
        """Monotonic time since when the oldest change waits for a sync, or its kind for its first list."""
        with self._lock:
            return self._unsynced() if self._complete_since is not None else self._oldest_unsynced()

    @property
    def changed_at(self) -> float | None:
        """The time of the last change in seconds since the epoch; None before the first."""
        return self._changed_at

    @property
    def incomplete_since(self) -> float | None:
        """Monotonic time since when a service that changed since the last sync is incomplete, or None."""
        with self._lock:
            return self._incomplete_since

    @property
    def services(self) -> int:
        """The number of known Services."""
        with self._lock:
            return self._tables.services

    def changes(self) -> Mapping[Kind, Changes]:
        """The number of changes of Services and EndpointSlices, and of services that wait for a sync."""
        with self._lock:
            return {kind: self._tables.changes(kind) for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE)}

    def rejected(self) -> list[Problem]:
        """The defects of every object that cannot be used now."""
        return self._rejections.current()

    @property
    def missing_lists(self) -> list[Kind]:
        """The required kinds without a complete list so far, in order."""
        with self._lock:
            return sorted(self._required - self._tables.synced)

    def node(self) -> Node | None:
        """The node's object as last seen."""
        with self._lock:
            return self._tables.node

    def read(self, key: str) -> ServiceInput:
        """A service and its slices as they are now."""
        with self._lock:
            return self._tables.read(key)

    def objects(self, kind: Kind) -> dict[str, WireObject]:
        """A copy of the current objects of a kind by key."""
        with self._lock:
            return dict(self._tables.objects(kind))

    @property
    def service_ranges(self) -> tuple[str, ...]:
        """The ranges of all ServiceCIDRs; the same object until they change."""
        with self._lock:
            return self._tables.service_ranges

    def changed_services(self) -> list[ServiceInput]:
        """Return the services that changed since the last call, and treat all current ones as complete."""
        with self._lock:
            self._read_changes()
            return [self._tables.read(key) for key in self._tables.pending.noted()]

    def take(self, keys: Collection[str], families: Collection[str]) -> list[ServiceInput]:
        """Return the state of these services, which each family is going to apply, ordered by key."""
        with self._lock:
            since = self._tables.pending.take(keys, families)
            self._unsynced_since = _oldest(self._unsynced_since, since)
            return [self._tables.read(key) for key in sorted(keys)]

    def take_all(self, families: Collection[str]) -> list[ServiceInput]:
        """Return all services, which these families, and no other from now on, are going to apply."""
        with self._lock:
            self._tables.touch_all()
            self._wait_from_now()
            self._read_changes()
            self._tables.pending.take_all(families)
            self._failed_since = {f: since for f, since in self._failed_since.items() if f in families}
            return self._tables.dirty()

    def arrivals(
        self, keys: Iterable[str], families: Collection[str], before: float | None = None
    ) -> dict[str, Arrival]:
        """When the taken changes of these services arrived, if that is known and was `before` a time."""
        with self._lock:
            pending = self._tables.pending
            return {
                key: Arrival(
                    since,
                    {f: text for f in families if (text := pending.last_trigger(key, f))},
                    {f: text for f in families if (text := pending.last_version(key, f))},
                )
                for key in keys
                if (since := pending.arrival(key)) is not None and (before is None or since < before)
            }

    def waits_since(self, key: str) -> float | None:
        """When the oldest change of a service arrived that some family has not applied, or None."""
        with self._lock:
            return self._tables.pending.waits_since(key)

    def commit(self, refused: Mapping[str, Collection[str]], failed: Collection[str] = ()) -> list[Trigger]:
        """Note the end of a sync: which services each family refused, and the families that `failed`.

        Every other taken service is applied in the families of `refused`. A failed family keeps what it has
        not applied, and something waits for it even if no object changed. Returns the triggers of the applied
        changes of endpoints.
        """
        with self._lock:
            for family in failed:
                since = self._unsynced_since
                self._failed_since.setdefault(family, time.monotonic() if since is None else since)
            triggers: list[Trigger] = []
            for family, keys in refused.items():
                self._failed_since.pop(family, None)
                triggers += self._tables.pending.commit(family, keys)
            if refused:
                self._unsynced_since = self._untaken_since
            return triggers

    def wait(self, timeout: float | None) -> None:
        """Block until a change, a call of `wake` or the end of `timeout` seconds."""
        self._wake.wait(timeout)
        self._wake.clear()

    def wake(self) -> None:
        """End a `wait` and a `policy_wait`; may be called from a signal handler or another thread."""
        self._wake.set()
        self._policy_wake.set()

    def policy_changes(self, *, everything: bool = False) -> PolicyChanges:
        """Return what changed of the kinds of NetworkPolicies since the last call, or all objects of them."""
        with self._lock:
            return self._tables.policies.take(self._tables.synced, everything=everything)

    @property
    def policy_pending_since(self) -> float | None:
        """Monotonic time of the oldest change that `policy_changes` has not returned, or None."""
        with self._lock:
            return self._tables.policies.since

    @property
    def missing_policy_lists(self) -> list[Kind]:
        """The kinds of NetworkPolicies without a complete list so far."""
        with self._lock:
            return [kind for kind in POLICY_KINDS if kind not in self._tables.synced]

    def policy_wait(self, timeout: float | None) -> None:
        """Block until the Node or an object for policies changes, or `policy_wake`, or the `timeout`."""
        self._policy_wake.wait(timeout)
        self._policy_wake.clear()

    def policy_wake(self) -> None:
        """End a `policy_wait`; may be called from any thread."""
        self._policy_wake.set()

    def _unsynced(self) -> float | None:
        since = self._oldest_unsynced()
        if since is None or self._complete_since is None:
            return None
        return max(since, self._complete_since)

    def _oldest_unsynced(self) -> float | None:
        return _oldest(self._unsynced_since, self._tables.pending.new_since)

    def _read_changes(self) -> None:
        """Note that the run loop reads all current changes."""
        self._taken = self._tables.revision
        self._untaken_since = None
        self._tables.settle()
        self._incomplete_since = None

    def _wait_from_now(self) -> None:
        if self._unsynced_since is None:
            self._unsynced_since = time.monotonic()

    def _note(self, kind: Kind, changed: bool) -> None:
        if kind.for_policies:
            if changed:
                self._policy_wake.set()
        elif changed:
            if kind is Kind.NODE:
                self._policy_wake.set()  # which pods are of this node follows from its ranges
            now = time.monotonic()
            if self._unsynced_since is None:
                self._unsynced_since = now
            if self._untaken_since is None:
                self._untaken_since = now
            self._changed_at = time.time()
            if not self._tables.has_incomplete:
                self._incomplete_since = None
            elif self._incomplete_since is None:
                self._incomplete_since = now
            self._wake.set()


def _oldest(*times: float | None) -> float | None:
    return min((each for each in times if each is not None), default=None)
