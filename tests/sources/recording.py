"""A Sink that keeps both a history and real Tables, and lets a test wait for a state instead of sleeping."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from kproxy.sources.base import Source
from kproxy.sources.kubernetes import KubernetesSource, WatchStatus
from kproxy.sources.reflector import Reflector
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import EndpointSlice, Service, WireObject

PATIENCE = 30.0
"""Seconds a test waits for something that must happen before it fails; never a measure of speed."""


class RecordingSink:
    """Records what a source says, applies it to a mirror of the objects in force, and wakes whoever waits."""

    def __init__(self, kinds: Iterable[Kind] = KINDS) -> None:
        kinds = tuple(kinds)
        self.condition = threading.Condition()
        self.history: list[tuple[str, Kind, str]] = []
        self.problems: list[tuple[Kind, str | None, Problem]] = []
        self.objects: dict[Kind, dict[str, WireObject]] = {kind: {} for kind in kinds}
        self.lists: dict[Kind, int] = dict.fromkeys(kinds, 0)
        self.vanished: set[str] = set()
        """Every key that was in force and then was not, by a delete or by a list without it."""
        self.unreadable: dict[Kind, set[str]] = {kind: set() for kind in kinds}

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:
        with self.condition:
            old = self.objects[kind]
            self.objects[kind] = {key: old[key] for key in unreadable if key in old}
            self.objects[kind].update({obj.key: obj for obj in objects})
            self.vanished |= old.keys() - self.objects[kind].keys()
            self.lists[kind] += 1
            self.unreadable[kind] = set(unreadable)
            self._note("replace", kind, str(len(objects)))

    def upsert(self, kind: Kind, obj: WireObject) -> None:
        with self.condition:
            self.objects[kind][obj.key] = obj
            self._note("upsert", kind, obj.key)

    def delete(self, kind: Kind, key: str) -> None:
        with self.condition:
            self.objects[kind].pop(key, None)
            self.vanished.add(key)
            self._note("delete", kind, key)

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        with self.condition:
            self.problems.append((kind, key, problem))
            self._note("reject", kind, str(key))

    def _note(self, verb: str, kind: Kind, what: str) -> None:
        self.history.append((verb, kind, what))
        self.condition.notify_all()

    def wait(self, predicate: Callable[[], object], what: str = "condition") -> None:
        """Wait until `predicate` holds; it is tried after each call of the source."""
        deadline = time.monotonic() + PATIENCE
        with self.condition:
            while not predicate():
                left = deadline - time.monotonic()
                assert left > 0, f"{what} did not come; history ends {self.history[-10:]}"
                self.condition.wait(left)

    def wait_listed(self, *kinds: Kind, times: int = 1) -> None:
        self.wait(lambda: all(self.lists[kind] >= times for kind in kinds), f"list of {kinds}")

    def keys(self, kind: Kind) -> set[str]:
        with self.condition:
            return set(self.objects[kind])

    def service(self, key: str) -> Service:
        with self.condition:
            found = self.objects[Kind.SERVICE][key]
        assert isinstance(found, Service)
        return found

    def piece(self, key: str) -> EndpointSlice:
        with self.condition:
            found = self.objects[Kind.ENDPOINT_SLICE][key]
        assert isinstance(found, EndpointSlice)
        return found

    def deletes(self) -> list[str]:
        with self.condition:
            return [what for verb, _, what in self.history if verb == "delete"]


class _Announcing(Reflector):
    """Tells of each change of its state, which nobody needs to hear of outside of tests."""

    changed: threading.Condition

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        with self.changed:
            self.changed.notify_all()


def wait_for_status(source: KubernetesSource, predicate: Callable[[WatchStatus], object]) -> WatchStatus:
    """Wait until the status of some watch is as wanted."""
    changed = threading.Condition()
    for each in source._reflectors.values():
        vars(each)["changed"] = changed
        each.__class__ = _Announcing
    with changed:
        found = changed.wait_for(lambda: list(filter(predicate, source.status())), PATIENCE)
    assert found, source.status()
    return found[0]


class Running:
    """A source running in a thread for the length of a `with` block."""

    def __init__(self, source: Source, kinds: Iterable[Kind] = KINDS) -> None:
        self.sink = RecordingSink(kinds)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._source = source
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._source.run(self.sink, self.stop)
        except BaseException as error:  # noqa: BLE001 - kept for the test to look at
            self.error = error

    def __enter__(self) -> RecordingSink:
        self._thread.start()
        return self.sink

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Stop the source; it must return."""
        self.stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the source does not stop"
        assert self.error is None, self.error
