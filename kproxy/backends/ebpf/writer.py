"""Writes one family's frontends so that a program finds endpoints of the right service at every moment.

Slots are written before the frontend that refers to them. An IPv4 slot is one word, which is replaced at
once, so that a changed service mostly keeps its block. An IPv6 slot is three words: any change takes a new
block.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.ebpf.blocks import QUARANTINE, Blocks, room_for
from kproxy.backends.ebpf.counters import Counters
from kproxy.backends.ebpf.record import NO_COUNTER, Standing, is_as_recorded, read_record, value_of
from kproxy.backends.ebpf.render import Frontend
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.kernel.bpf.types import SLOT_WORDS, BpfError, BpfFailure

MANY = 32
"""So many frontends are written with one request."""

_PASSING = frozenset({BpfFailure.FULL, BpfFailure.INTERRUPTED})
"""Failures of a write after which other frontends may be written."""


class FrontendWriter:
    """One family's part of the maps; `standing` is what they hold. `wait` lets seconds pass.

    `slots_written` counts. Every method raises BpfError; the record is then to be read again.
    """

    def __init__(
        self,
        family: Family,
        shared: SharedTable,
        clock: Callable[[], float],
        wait: Callable[[float], None],
    ) -> None:
        self.standing: dict[bytes, Standing] = {}
        self.unsure: Collection[bytes] = ()
        """The frontends of a request whose outcome is not known."""
        self.slots_written = 0
        self.blocks = Blocks(0, clock, wait)
        self.counters = Counters(*shared.numbering(family), shared.connections)
        self._family = family
        self._shared = shared
        self._clock = clock
        self._wait = wait
        self._full = ""
        """Why the maps could not be made larger; "" if that was not tried."""
        self._was_read = False

    def read(self) -> None:
        """Read the maps into the record."""
        shared, family = self._shared, self._family
        if self._was_read or not shared.table.fresh:
            self._wait(QUARANTINE)  # it is not known any more which blocks were freed
        maps = shared.maps
        self.standing = read_record(maps, family, self.counters.is_own, self.standing)
        taken = sorted((each.first, each.room) for each in self.standing.values() if each.room)
        self.blocks = Blocks(maps.capacity(family).slots, self._clock, self._wait, taken)
        if self.standing or self._was_read or not shared.table.fresh:
            used = (each.counter for each in self.standing.values() if each.counter != NO_COUNTER)
            self.counters.adopt(used, maps.sizes.counters)
        self._was_read = True
        self.unsure = ()

    def is_as_recorded(self) -> bool:
        """Whether the maps hold what was written."""
        return is_as_recorded(self.standing, self._shared.maps, self._family)

    def try_growth_again(self) -> None:
        """Forget that the maps could not be made larger."""
        self._full = ""

    def delete(self, keys: Collection[bytes]) -> int:
        """Delete those of the frontends that stand; return how many."""
        standing = {key: self.standing[key] for key in keys if key in self.standing}
        if standing:
            self.unsure = standing.keys()
            self._shared.maps.delete_frontends(self._family, standing)
            self.unsure = ()
        for key, each in standing.items():
            del self.standing[key]
            self._free(each)
            if each.counter != NO_COUNTER:
                self.counters.give(each.counter)
        return len(standing)

    def change(self, frontend: Frontend) -> bool:
        """Change a frontend in its block, if it has one that fits and its slots are single words.

        Raises BpfError; the block may then hold endpoints that are gone.
        """
        each = self.standing.get(frontend.key)
        if each is None or each.slots is None or SLOT_WORDS[self._family] != 1:
            return False
        old, new = memoryview(each.slots).cast("Q").tolist(), memoryview(frontend.slots).cast("Q").tolist()
        if len(new) > each.room:
            return False
        memory, first = self._shared.maps.slots(self._family), each.first
        # The slots that are given up get endpoints of now, for a program that has read the former number.
        changed = new if len(new) >= len(old) else [*new, *new[:1] * (len(old) - len(new))]
        known = len(old)
        for number, word in enumerate(changed):
            if number >= known or old[number] != word:
                memory[first + number] = word
                self.slots_written += 1
        each.slots = frontend.slots
        if len(old) != len(new):
            self.unsure = (frontend.key,)
            value = value_of(each, self._family)
            self._shared.maps.write_frontends(self._family, {frontend.key: value})
            self.unsure = ()
        return True

    def place(self, frontends: Sequence[Frontend]) -> dict[bytes, str]:
        """Write frontends into new blocks; return the reason for each that was refused.

        What was refused is still in the record if it stood before.
        """
        refused: dict[bytes, str] = {}
        placed: dict[bytes, Standing] = {}
        self._make_room(frontends)
        left = self._shared.maps.capacity(self._family).frontends - len(self.standing)
        for frontend in frontends:
            is_new = frontend.key not in self.standing
            each = self._block(frontend) if left > 0 or not is_new else None
            if each is None:
                refused[frontend.key] = self._full or "the maps are full"
            else:
                placed[frontend.key] = each
                left -= is_new
        refused |= self._write({key: value_of(each, self._family) for key, each in placed.items()})
        if refused:
            # A batch that failed may have written some of them.
            self._shared.maps.delete_frontends(self._family, refused.keys())
        for key, each in placed.items():
            former = self.standing.get(key)
            if key in refused:
                self._free(each)
                if former is None or former.counter != each.counter:
                    self.counters.give(each.counter)
                continue
            self.standing[key] = each
            if former is not None:
                self._free(former)
        return refused

    def _make_room(self, frontends: Sequence[Frontend]) -> None:
        """Let the maps grow once for all of these, if they have to."""
        capacity = self._shared.maps.capacity(self._family)
        self.blocks.extend(capacity.slots)  # they may have grown for the other family
        wanted = len(self.standing) + sum(each.key not in self.standing for each in frontends)
        slots = sum(room_for(len(each.slots) // self._slot_bytes) for each in frontends)
        self.blocks.release()
        if wanted > capacity.frontends or slots > self.blocks.free:
            self._grow(wanted, self.blocks.size - self.blocks.free + slots)

    def _block(self, frontend: Frontend) -> Standing | None:
        """Fill a new block; None if there is none."""
        room = room_for(len(frontend.slots) // self._slot_bytes)
        first = self.blocks.take(room)
        if first is None:
            self._grow(0, self.blocks.size + room)
            first = self.blocks.take_late(room)
        if first is None:
            return None
        number = self._counter(frontend.key)
        if number is None:
            self.blocks.give(first, room)
            return None
        words = memoryview(frontend.slots).cast("Q")
        at = first * SLOT_WORDS[self._family]
        self._shared.maps.slots(self._family)[at : at + len(words)] = words
        self.slots_written += len(words) // SLOT_WORDS[self._family]
        return Standing(first, room, number, frontend.slots)

    def _counter(self, key: bytes) -> int | None:
        former = self.standing.get(key)
        if former is not None and former.counter != NO_COUNTER:
            return former.counter
        number = self.counters.take(self._shared.maps.sizes.counters)
        if number is None and self._grow(self._shared.maps.capacity(self._family).frontends + 1, 0):
            number = self.counters.take(self._shared.maps.sizes.counters)
        return number

    def _write(self, values: Mapping[bytes, bytes]) -> dict[bytes, str]:
        """Write frontends; return the reason for each that was refused."""
        if not values:
            return {}
        self.unsure = values.keys()
        maps = self._shared.maps
        write = maps.fill if len(values) > MANY else maps.write_frontends
        try:
            write(self._family, values)
        except BpfError as error:
            if error.kind not in _PASSING:
                raise
            refused = dict(self._write_each(values))
        else:
            refused = {}
        self.unsure = ()
        return refused

    def _write_each(self, values: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, str]]:
        for key, value in values.items():
            error = self._refusal(key, value)
            if error is not None and error.kind is BpfFailure.FULL:
                # Others have put frontends of their own into the map.
                most = self._shared.maps.capacity(self._family).frontends
                error = self._refusal(key, value) if self._grow(most + 1, 0) else error
            if error is not None:
                yield key, error.message

    def _refusal(self, key: bytes, value: bytes) -> BpfError | None:
        try:
            self._shared.maps.write_frontends(self._family, {key: value})
        except BpfError as error:
            if error.kind not in _PASSING:
                raise
            return error
        return None

    def _grow(self, frontends: int, slots: int) -> bool:
        """Make the maps larger; False if that failed, now or before."""
        if self._full:
            return False
        try:
            self._shared.grow(self._family, frontends, slots)
        except BpfError as error:
            self._full = f"the maps are full, and larger ones could not be made: {error.message}"
            return False
        self.blocks.extend(self._shared.maps.capacity(self._family).slots)
        return True

    def _free(self, each: Standing) -> None:
        if each.room:
            self.blocks.give(each.first, each.room)

    @property
    def _slot_bytes(self) -> int:
        return SLOT_WORDS[self._family] * 8
