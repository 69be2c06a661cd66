"""Which Pods, Namespaces and NetworkPolicies changed since planning read them.

Policies are planned by a thread of their own, so their objects have a log beside that of services: one change
costs its reader one object and not a pass over all of them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import cast

import msgspec

from kproxy.state.kinds import POLICY_KINDS, Kind
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from kproxy.state.wire import WireObject


class PolicyChanges(msgspec.Struct, frozen=True):
    """What changed since the last reading, by key; None: the object is gone.

    `complete`: the first lists of all three kinds have arrived. Before that, nothing may be enforced: a pod
    without its policy would be open. `since` is the monotonic time of the oldest of these changes.
    """

    complete: bool
    pods: Mapping[str, Pod | None]
    namespaces: Mapping[str, Namespace | None]
    policies: Mapping[str, NetworkPolicy | None]
    since: float | None = None

    def __bool__(self) -> bool:
        """Whether any object changed."""
        return bool(self.pods or self.namespaces or self.policies)


class PolicyLog:
    """The keys of changed objects, until they are read. Not thread-safe: the owner locks."""

    def __init__(self, objects: Mapping[Kind, Mapping[str, WireObject]], clock: Callable[[], float]) -> None:
        """`objects`: those in force by kind and key; the owner changes them in place."""
        self._objects = objects
        self._clock = clock
        # Dictionaries, because they keep the order in which the changes came.
        self._changed: dict[Kind, dict[str, None]] = {kind: {} for kind in POLICY_KINDS}
        self._since: float | None = None

    @property
    def since(self) -> float | None:
        """Monotonic time of the oldest change that was not read yet, or None."""
        return self._since

    def note(self, kind: Kind, key: str) -> None:
        """Note that an object came, changed or is gone."""
        if self._since is None:
            self._since = self._clock()
        self._changed[kind][key] = None

    def pause(self) -> None:
        """Note that a kind is not watched any more: until its next first list, no change waits."""
        self._since = None

    def take(self, listed: Collection[Kind], *, everything: bool = False) -> PolicyChanges:
        """Return what changed since the last call, or every object in force, and begin anew.

        `listed`: the kinds whose first complete list has arrived.
        """
        pods, namespaces, policies = (self._read(kind, everything=everything) for kind in POLICY_KINDS)
        since, self._since = self._since, None
        return PolicyChanges(
            complete=all(kind in listed for kind in POLICY_KINDS),
            pods=cast("Mapping[str, Pod | None]", pods),
            namespaces=cast("Mapping[str, Namespace | None]", namespaces),
            policies=cast("Mapping[str, NetworkPolicy | None]", policies),
            since=since,
        )

    def _read(self, kind: Kind, *, everything: bool) -> Mapping[str, WireObject | None]:
        objects = self._objects.get(kind, {})
        changed, self._changed[kind] = self._changed[kind], {}
        return dict(objects) if everything else {key: objects.get(key) for key in changed}
