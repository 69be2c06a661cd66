"""The shared table of the backends, with an account of its publications.

A publication that fails is no failure of the write that led to it: the maps are right, and only the links or
pins are not. So the writes go on, and the publication is tried again later.
"""

import time
from collections.abc import Callable, Collection

from kproxy.addresses import Family
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.kernel.bpf.types import BpfError, SocketMaps, SocketTable


class WatchedTable(SharedTable):
    """`failure`: why the last publication failed, None if it did not; the next is not before `not_before`.

    `publications` counts those that may have changed something.
    """

    def __init__(
        self,
        table: SocketTable,
        families: Collection[Family],
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pause`: seconds between a failed publication and the next attempt."""
        super().__init__(table, families)
        self.failure: BpfError | None = None
        self.publications = 0
        self.not_before = 0.0
        self._pause = pause
        self._clock = clock

    def settle(self, family: Family) -> None:
        """See SharedTable; an error is kept, not raised."""
        if self.failure is not None and self._clock() < self.not_before:
            self._filled.add(family)
            return
        try:
            super().settle(family)
        except BpfError as error:
            self.failure, self.not_before = error, self._clock() + self._pause
        else:
            if self.serves:
                self.failure = None

    def _publish(self, maps: SocketMaps | None) -> None:
        super()._publish(maps)
        self.publications += 1
