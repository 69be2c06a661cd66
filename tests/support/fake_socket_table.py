"""The socket table in memory with faults, and with an eye on every store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from kproxy.addresses import Family
from kproxy.backends.ebpf.memory import MemoryMaps, MemorySocketTable
from kproxy.backends.ebpf.render import describe_frontend
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Change, Problem, Sizes, SocketMaps

NO_MEMORY = "no memory"


class Faults:
    """What goes wrong.

    `refuse`: frontends, by text, for which the kernel has no memory. `lose_at`: the number of requests until
    one fails whose outcome is unknown, half of it done. `growth`: new maps cannot be made. `hook`: others
    have the hook, so that nothing is published. `after` is called after each store.
    """

    def __init__(self) -> None:
        self.refuse: Callable[[str], bool] = lambda _: False
        self.lose_at: int | None = None
        self.growth = False
        self.hook = False
        self.after: Callable[[], None] = lambda: None
        self.writes = 0

    def is_lost(self) -> bool:
        """Whether this request is the one to be lost."""
        if self.lose_at is None:
            return False
        self.lose_at -= 1
        return self.lose_at < 0


class _Slots:
    """The memory of slots; tells of every store."""

    def __init__(self, words: memoryview, faults: Faults) -> None:
        self.words = words
        self._faults = faults

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self.words[at] = value.words if isinstance(value, _Slots) else value
        self._faults.writes += 1
        self._faults.after()


class FakeMaps(MemoryMaps):
    """Maps with faults."""

    def __init__(self, sizes: Sizes, faults: Faults) -> None:
        super().__init__(sizes)
        self._faults = faults

    def slots(self, family: Family) -> memoryview:
        assert not self.closed
        return cast("memoryview", _Slots(super().slots(family), self._faults))

    def frontends(self, family: Family) -> dict[bytes, bytes]:
        assert not self.closed
        return super().frontends(family)

    def write_frontends(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        assert not self.closed
        faults = self._faults
        lost = faults.is_lost()
        for number, (key, value) in enumerate(frontends.items()):
            if lost and number >= len(frontends) // 2:
                raise BpfError(BpfFailure.REFUSED, "the answer was lost")
            if faults.refuse(describe_frontend(key, family)):
                raise BpfError(BpfFailure.INTERRUPTED, NO_MEMORY)
            super().write_frontends(family, {key: value})
            faults.writes += 1
            faults.after()

    def delete_frontends(self, family: Family, keys: Collection[bytes]) -> None:
        assert not self.closed
        lost = self._faults.is_lost()
        for number, key in enumerate(keys):
            if lost and number >= len(keys) // 2:
                raise BpfError(BpfFailure.REFUSED, "the answer was lost")
            super().delete_frontends(family, [key])
            self._faults.writes += 1
            self._faults.after()


class FakeSocketTable(MemorySocketTable):
    """A table with faults."""

    maps: FakeMaps

    def __init__(self, sizes: Sizes, *, fresh: bool = True) -> None:
        self.faults = Faults()
        self.made: Callable[[Sizes], None] = lambda _: None
        super().__init__(sizes, fresh=fresh)

    def make(self, sizes: Sizes) -> FakeMaps:
        return FakeMaps(sizes, self.faults)

    def grow(self, sizes: Sizes) -> MemoryMaps:
        if self.faults.growth:
            raise BpfError(BpfFailure.INTERRUPTED, NO_MEMORY)
        self.made(sizes)
        return super().grow(sizes)

    def publish(self, maps: SocketMaps | None = None) -> None:
        if self.faults.hook:
            raise BpfError(BpfFailure.OCCUPIED, "another program has the hook for itself")
        super().publish(maps)

    def break_link(self, name: str) -> None:
        """Let a link be detached until the next publication."""
        self.trouble.append(Problem(name, Change.MISSING, "detached"))

    def add_foreign(self, name: str) -> None:
        """Put a program of others on a hook, beside the own one."""
        self.trouble.append(Problem(name, Change.UNEXPECTED, "program 7 of others"))

    def restarted(self) -> FakeSocketTable:
        """The table as another process opens it: with what was published, or new."""
        other = FakeSocketTable(self.sizes, fresh=self.live is None)
        other.faults = self.faults
        other.maps = other.make(self.sizes)
        if self.live is not None:
            other.maps, other.live = self.maps, self.live
        return other

    def contents(self, family: Family) -> dict[str, list[str]]:
        """The endpoints in the slots of every frontend that programs find."""
        assert self.live in {None, self.maps}
        return {} if self.live is None else self.maps.contents(family)
