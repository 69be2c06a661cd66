"""A tenant with rights in one namespace: writes objects past validation, on a thread of its own."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

from kproxy_lab.apiserver import ApiServer
from tests.tenants.objects import JSON, SPACE

KINDS = ("EndpointSlice", "Service")


class Attacker:
    """Writes to the API. `pause` ends at once when the attack is to end."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self.written = 0

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def number(self) -> int:
        """A number that no other of its services has had."""
        return next(self._numbers)

    def write(self, *objects: JSON) -> None:
        self.written += self._api.apply_many(objects, validate=False)

    def write_all(self, objects: Iterable[JSON], at_once: int = 100) -> None:
        """Write many objects in portions, so that the API server serves others in between."""
        for batch in _batched(objects, at_once):
            if self.stopped:
                return
            self.write(*batch)

    def delete(self, kind: str, name: str, space: str = SPACE) -> None:
        self._api.delete(kind, space, name)
        self.written += 1

    def pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def begin(self) -> None:
        """Begin an attack: `pause` waits again, and `written` counts from 0."""
        self._stop.clear()
        self.written = 0

    def end(self) -> None:
        self._stop.set()

    def vanish(self) -> None:
        """Delete every object of every namespace whose name begins with the attacker's."""
        with self._api.store.transaction():
            for kind in (*KINDS, "Event"):
                for obj in self._api.list(kind):
                    metadata = obj["metadata"]
                    if metadata.get("namespace", "").startswith(SPACE):
                        self._api.delete(kind, metadata["namespace"], metadata["name"])

    def events(self) -> int:
        """How many Event objects there are about its objects."""
        return sum(
            str(obj["metadata"].get("namespace", "")).startswith(SPACE) for obj in self._api.list("Event")
        )


class Strike:
    """An attack on a thread of its own. `failure` holds what it raised."""

    def __init__(self, attacker: Attacker, work: Callable[[Attacker], None]) -> None:
        self._attacker = attacker
        self._work = work
        self._thread = threading.Thread(target=self._run, name="attacker", daemon=True)
        self.failure: BaseException | None = None
        attacker.begin()
        self._thread.start()

    @property
    def going_on(self) -> bool:
        return self._thread.is_alive()

    def end(self, patience: float) -> None:
        """Ask it to end, and wait. Raises what the attack raised."""
        self._attacker.end()
        self._thread.join(patience)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            self._work(self._attacker)
        except Exception as error:  # noqa: BLE001 - raised again by `end`
            self.failure = error


def _batched(objects: Iterable[JSON], size: int) -> Iterator[tuple[JSON, ...]]:
    iterator = iter(objects)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch
