"""The threads beside the run loop: if one dies, the whole process stops.

Otherwise the rules would become stale unnoticed.
"""

import threading
from collections.abc import Callable
from typing import Self

import structlog

from kproxy.sources.base import SourceError
from kproxy.state.store import ObjectStore

log = structlog.stdlib.get_logger(__name__)


class Threads:
    """They end with the block. Methods may be called from any thread.

    `died` is True after one died; `refused` holds the error of a source that could not begin.
    """

    def __init__(self, stop: threading.Event, store: ObjectStore) -> None:
        self._stop = stop
        self._store = store
        self._wakes = [store.wake]
        self._started: list[threading.Thread] = []
        self.died = False
        self.refused: SourceError | None = None

    def start(self, name: str, work: Callable[[], None], wake: Callable[[], None] | None = None) -> None:
        """Run `work`, which must end once `stop` is set and `wake` was called."""
        thread = threading.Thread(target=self._guarded, args=(name, work), name=name, daemon=True)
        thread.start()
        self._started.append(thread)
        if wake is not None:
            self._wakes.append(wake)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except SourceError as error:
            self.refused = error
        except Exception:
            self.died = True
            log.exception("thread_died", thread=name)
        finally:
            if not self._stop.is_set():
                self._stop.set()
                self._store.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for wake in self._wakes:
            wake()
        for thread in self._started:
            thread.join(timeout=5)
