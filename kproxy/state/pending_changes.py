"""The services with changes that a family has not applied yet, and since when each of them waits.

A change is new until the run loop takes its service. Then it waits for every family until that family has
applied it. A family whose kernel fails keeps only its own changes waiting: the other family applies them and
is done. A change that arrives while an older one is being applied keeps the service pending.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

from kproxy.state.kinds import Kind
from kproxy.state.slice_index import Trigger

KEPT_TRIGGERS = 2
"""The number of triggers kept of one slice until its change is applied: the first and the last."""


class PendingChanges:
    """Memory is bounded by the number of services and slices, not of changes. Not thread-safe.

    `clock` returns seconds. A revision grows with every change; families are named by their address type.
    """

    def __init__(self, kinds: Collection[Kind], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._revisions: dict[str, int] = {}
        """The last change of each service that some family has not applied."""
        self._noted: dict[str, None] = {}
        self._new: dict[str, float] = {}
        """The time of the first change that was not taken, the oldest first."""
        self._taken: dict[str, float] = {}
        """The time of the first change that was taken and that some family has not applied."""
        self._behind: dict[str, dict[str, int]] = {}
        """By family, the taken revision of each service that the family has not applied."""
        self._by_kind: dict[Kind, dict[str, int]] = {kind: {} for kind in kinds}
        self._triggers: dict[str, list[tuple[int, Trigger]]] = {}
        self._versions: dict[str, list[tuple[int, str]]] = {}
        """The last resourceVersions of the objects of a service that changed, the newest last."""

    def __len__(self) -> int:
        return len(self._revisions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._revisions)

    def revision(self, key: str) -> int:
        """The last change of a service; 0 if every family has applied it."""
        return self._revisions.get(key, 0)

    def touch(self, key: str, revision: int) -> None:
        """Note a change of a service."""
        self._revisions[key] = revision
        self._noted[key] = None
        if key not in self._new:
            self._new[key] = self._clock()

    def count(self, kind: Kind, key: str, revision: int) -> None:
        """Note that the change was one of an object of this kind."""
        self._by_kind[kind][key] = revision

    def counted(self, kind: Kind) -> int:
        """The number of services with a pending change of this kind."""
        return len(self._by_kind[kind])

    def trigger(self, key: str, revision: int, trigger: Trigger) -> None:
        """Keep the trigger of a change until the change is applied."""
        known = self._triggers.setdefault(key, [])
        of_slice = [index for index, (_, each) in enumerate(known) if each.slice == trigger.slice]
        if len(of_slice) >= KEPT_TRIGGERS:
            del known[of_slice[-1]]
        known.append((revision, trigger))

    def version(self, key: str, revision: int, version: str) -> None:
        """Note the resourceVersion of the object whose change has this revision."""
        known = self._versions.setdefault(key, [])
        taken = max((behind.get(key, 0) for behind in self._behind.values()), default=0)
        self._versions[key] = [*[each for each in known if each[0] <= taken][-1:], (revision, version)]

    def last_version(self, key: str, family: str) -> str:
        """The resourceVersion of the last change that a family was given; "" if it is not known."""
        given = self._behind.get(family, {}).get(key, 0)
        return next((text for at, text in reversed(self._versions.get(key, ())) if at <= given), "")

    def forget_triggers(self, key: str) -> None:
        """Drop the triggers of a service: its last change has none."""
        self._triggers.pop(key, None)

    def noted(self) -> list[str]:
        """The services that changed since the last call."""
        noted, self._noted = list(self._noted), {}
        return noted

    @property
    def new_since(self) -> float | None:
        """The time of the oldest change that was not taken; None if there is none."""
        return next(iter(self._new.values()), None)

    @property
    def taken_since(self) -> float | None:
        """The time of the oldest change that was taken and that some family has not applied."""
        return min(self._taken.values(), default=None)

    def arrival(self, key: str) -> float | None:
        """The time of the first change of a service that was taken and that some family has not applied."""
        return self._taken.get(key)

    def waits_since(self, key: str) -> float | None:
        """The time of the first change of a service that some family has not applied, taken or not."""
        return self._taken.get(key, self._new.get(key))

    def last_trigger(self, key: str, family: str) -> str:
        """The text of the last trigger of a service's pending change in a family; "" if there is none."""
        of_family = [each.text for _, each in self._triggers.get(key, ()) if each.address_type == family]
        return of_family[-1] if of_family else ""

    def take(self, keys: Iterable[str], families: Collection[str]) -> float:
        """Note that the current state of these services is given to every family.

        Returns the time of the oldest change among them, or now.
        """
        now = oldest = self._clock()
        for key in keys:
            since = self._new.pop(key, now)
            oldest = min(oldest, since)
            self._taken.setdefault(key, since)
            revision = self._revisions.get(key, 0)
            for family in families:
                self._behind.setdefault(family, {})[key] = revision
        return oldest

    def take_all(self, families: Collection[str]) -> None:
        """Note that every pending service is given to these families, and to no other from now on."""
        self._behind = {family: {} for family in families}
        self._noted = {}
        self.take(self._revisions, families)
        self._taken = {key: since for key, since in self._taken.items() if key in self._revisions}

    def commit(self, family: str, refused: Collection[str]) -> list[Trigger]:
        """Note that a family has applied everything that it was given except the `refused` services.

        Returns the triggers of the applied changes. A refused service that was applied before, and had to be
        written again, is pending from now on.
        """
        behind = self._behind.setdefault(family, {})
        done: list[Trigger] = []
        for key in [key for key in behind if key not in refused]:
            revision = behind.pop(key)
            done += self._pop_triggers(key, revision, family)
            if not any(key in others for others in self._behind.values()):
                done += self.settle(key, revision)
        for key in refused:
            if key not in behind:
                behind[key] = 0
                self._taken.setdefault(key, self._clock())
        return done

    def settle(self, key: str, revision: int) -> list[Trigger]:
        """Note that every family has applied this revision; return the triggers of its change."""
        if self._revisions.get(key) == revision:
            del self._revisions[key]
            self._new.pop(key, None)
            self._noted.pop(key, None)
            self._versions.pop(key, None)
        self._taken.pop(key, None)
        for pending in self._by_kind.values():
            if pending.get(key, revision + 1) <= revision:
                del pending[key]
        return self._pop_triggers(key, revision)

    def _pop_triggers(self, key: str, revision: int, family: str | None = None) -> list[Trigger]:
        """Remove and return the triggers up to a revision, of one family or of all."""
        done: list[Trigger] = []
        kept: list[tuple[int, Trigger]] = []
        for at, trigger in self._triggers.pop(key, ()):
            if at <= revision and family in (None, trigger.address_type):
                done.append(trigger)
            else:
                kept.append((at, trigger))
        if kept:
            self._triggers[key] = kept
        return done
