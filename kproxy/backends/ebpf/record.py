"""The record of one family's frontends in the maps, and how it is read from them.

A frontend with slots outside of the array, or of another frontend, is recorded without a block, so that it is
written anew or deleted, and those slots are left alone. One with a counter of another frontend, or family,
keeps its block until it is written anew.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.ebpf.blocks import room_for
from kproxy.backends.ebpf.render import describe_frontend, describe_slots
from kproxy.kernel.bpf.types import SLOT_WORDS, SocketMaps

_VALUE = struct.Struct("=III")

NO_COUNTER = -1


class Standing(msgspec.Struct, gc=False):
    """A frontend in the map: its block of `room` slots from `first` on, its counter, and its slots in memory.

    `room` 0: it has no block of its own; `slots` None: whatever they hold, it is to be written into another.
    """

    first: int
    room: int
    counter: int
    slots: bytes | None


def value_of(standing: Standing, family: Family) -> bytes:
    """The value in the map of a frontend with a block."""
    assert standing.slots is not None  # noqa: S101 - goes with the block
    return _VALUE.pack(standing.first, len(standing.slots) // (SLOT_WORDS[family] * 8), standing.counter)


def read_record(
    maps: SocketMaps,
    family: Family,
    is_counter: Callable[[int], bool],
    former: Mapping[bytes, Standing],
) -> dict[bytes, Standing]:
    """Read the maps of a family. `is_counter`: whether a number may be that of one of its counters.

    Of two frontends that claim a slot, the one that is as in the `former` record has it. Raises BpfError.
    """
    found = maps.frontends(family)
    size, counters = maps.capacity(family).slots, maps.sizes.counters
    words, memory = SLOT_WORDS[family], maps.slots(family)
    entries = sorted((*_VALUE.unpack(value), key) for key, value in found.items())
    known = {
        key
        for key, each in former.items()
        if each.slots is not None and found.get(key) == value_of(each, family)
    }
    known_starts = [first for first, _, _, key in entries if key in known]
    starts = [*(first for first, _, _, _ in entries[1:]), size]
    used = {former[key].counter for key in known}
    record: dict[bytes, Standing] = {}
    end = 0
    for following, (first, count, counter, key) in zip(starts, entries, strict=False):
        if key not in known:
            at = bisect_left(known_starts, first)
            limit = known_starts[at] if at < len(known_starts) else size
            if first < end or not 0 < count <= limit - first:
                record[key] = Standing(0, 0, NO_COUNTER, None)
                continue
        room = max(count, min(room_for(count), following - first, size - first))
        end = first + room
        if key not in known and (counter >= counters or counter in used or not is_counter(counter)):
            record[key] = Standing(first, room, NO_COUNTER, None)
            continue
        used.add(counter)
        content = bytes(memory[first * words : (first + count) * words])
        record[key] = Standing(first, room, counter, content)
    return record


def is_as_recorded(record: Mapping[bytes, Standing], maps: SocketMaps, family: Family) -> bool:
    """Whether the maps of a family hold what the record says. Raises BpfError."""
    found = maps.frontends(family)
    if found.keys() != record.keys():
        return False
    words, memory = SLOT_WORDS[family], maps.slots(family)
    for key, standing in record.items():
        if standing.slots is None or found[key] != value_of(standing, family):
            return False
        first = standing.first * words
        if memory[first : first + len(standing.slots) // 8].tobytes() != standing.slots:
            return False
    return True


def differences(
    family: Family,
    before: Mapping[bytes, Standing],
    after: Mapping[bytes, Standing],
    owner: Callable[[bytes], str | None],
    unsure: Collection[bytes] = (),
) -> Iterator[Drift]:
    """Name every frontend that is not as recorded; not those of a request whose outcome is unknown."""
    for key in sorted(before.keys() | after.keys()):
        if key in unsure:
            continue
        name = describe_frontend(key, family)
        was, now = before.get(key), after.get(key)
        of = f"of {owner(key) or 'no service'}"
        if now is None:
            yield Drift("frontend", name, Difference.MISSING, of)
        elif was is None:
            yield Drift("frontend", name, Difference.UNEXPECTED, of)
        elif (was.first, was.counter, was.slots) != (now.first, now.counter, now.slots):
            yield Drift("frontend", name, Difference.MODIFIED, f"{of}: {_detail(family, was, now)}")


def _detail(family: Family, was: Standing, now: Standing) -> str:
    if was.slots is None or now.slots is None or was.first != now.first or was.counter != now.counter:
        return "has other slots or another counter"
    had, has = describe_slots(was.slots, family), describe_slots(now.slots, family)
    if len(had) != len(has):
        return f"has {len(has)} slots instead of {len(had)}"
    return next(
        f"slot {number} has {found} instead of {wanted}"
        for number, (wanted, found) in enumerate(zip(had, has, strict=True))
        if wanted != found
    )
