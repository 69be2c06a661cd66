"""Blocks of slots: any sequence of requests neither gives a slot twice nor loses one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.backends.ebpf.blocks import QUARANTINE, Blocks, room_for
from tests.backends.strategies import SETTINGS
from tests.suite.matrix import examples


class _Clock:
    """Goes on by waiting only."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


def _blocks(size: int, clock: _Clock, taken: list[tuple[int, int]] | None = None) -> Blocks:
    return Blocks(size, clock, clock.wait, taken or [])


_STEP = st.one_of(
    st.tuples(st.sampled_from(["take", "late"]), st.integers(1, 12)),
    st.tuples(st.just("give"), st.integers(0, 30)),
    st.tuples(st.just("pass"), st.integers(0, 3)),
    st.tuples(st.just("extend"), st.integers(1, 20)),
)


@given(steps=st.lists(_STEP, max_size=60))
@settings(SETTINGS, max_examples=examples(200))
def test_no_slot_belongs_to_two_blocks_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    clock = _Clock()
    blocks = _blocks(16, clock)
    used: dict[int, int] = {}
    resting: dict[int, tuple[float, int]] = {}
    for what, number in steps:
        if what in {"take", "late"}:
            first = blocks.take(number) if what == "take" else blocks.take_late(number)
            if first is not None:
                for slot in range(first, first + number):
                    assert 0 <= slot < blocks.size
                    assert not any(start <= slot < start + size for start, size in used.items())
                    assert not any(
                        start <= slot < start + size and clock.now - when < QUARANTINE - 1e-9
                        for start, (when, size) in resting.items()
                    )
                used[first] = number
        elif what == "give" and used:
            first = sorted(used)[number % len(used)]
            resting[first] = (clock.now, used[first])
            blocks.give(first, used.pop(first))
        elif what == "pass":
            clock.now += number * QUARANTINE / 2
        elif what == "extend":
            blocks.extend(blocks.size + number)
        assert blocks.used == sum(used.values())
        assert blocks.free + blocks.waiting + blocks.used == blocks.size
    for first, size in used.items():
        blocks.give(first, size)
    clock.now += QUARANTINE
    assert blocks.take(blocks.size) == 0


def test_a_freed_block_waits_before_others_have_it() -> None:
    clock = _Clock()
    blocks = _blocks(8, clock)
    first = blocks.take(4)
    assert first is not None
    blocks.give(first, 4)
    assert blocks.take(4) != first
    clock.now += QUARANTINE
    assert blocks.take(4) == first


def test_a_full_array_waits_for_what_was_freed_and_no_longer() -> None:
    clock = _Clock()
    blocks = _blocks(4, clock)
    assert blocks.take(4) == 0
    assert blocks.take_late(1) is None
    assert clock.waited == []
    clock.now = 5.0
    blocks.give(0, 4)
    clock.now += QUARANTINE / 2
    assert blocks.take(4) is None
    assert blocks.take_late(4) == 0
    assert sum(clock.waited) <= QUARANTINE / 2 + 1e-9


@given(taken=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=6), spare=st.integers(0, 5))
@settings(SETTINGS, max_examples=examples(60))
def test_blocks_in_use_at_the_start_are_left_alone(taken: list[tuple[int, int]], spare: int) -> None:
    at, stands = 0, []
    for gap, size in taken:
        stands.append((at + gap, size))
        at += gap + size
    blocks = _blocks(at + spare, _Clock(), stands)
    assert blocks.used == sum(size for _, size in stands)
    own = {slot for first, size in stands for slot in range(first, first + size)}
    found = set()
    while (first := blocks.take(1)) is not None:
        found.add(first)
    assert found == set(range(at + spare)) - own


@given(count=st.integers(1, 5000))
def test_a_block_has_room_for_its_endpoints_and_little_more(count: int) -> None:
    assert count <= room_for(count) <= max(2, count * 3 // 2)
    assert room_for(room_for(count)) == room_for(count)
